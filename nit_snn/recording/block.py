"""The surrogate derivatives of some steps of a layer, as they are kept until the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dynamics.lif import number

#: In which type a derivative is kept once a pass has become too long for numbers of full precision.
_HALF = {torch.float64: torch.float32}


#: For how many steps memory is taken at once.
_STEPS = 16


@dataclass(eq=False)
class Room:
    """Memory for blocks that stay until the backward pass.

    It is taken for many steps at once: small pieces between the numbers of each step would leave
    gaps that nothing else fits into.
    """

    held: Tensor | None = None
    used: int = 0

    def put(self, values: Tensor) -> Tensor:
        """(T, N, *) in memory of its own."""
        held, count = self.held, len(values)
        if count > _STEPS:
            return values.clone()
        fits = held is not None and held.shape[1:] == values.shape[1:]
        if held is None or not fits or self.used + count > len(held) or held.dtype != values.dtype:
            held = self.held = values.new_empty(_STEPS, *values.shape[1:])
            self.used = 0
        self.used += count
        return held[self.used - count : self.used].copy_(values)


@dataclass(eq=False, slots=True)
class Block:
    """Steps of a layer that lie end to end; every tensor is (T, N, *).

    Attributes:
        signed: `phi(b) / w`, the surrogate's derivative in the drift, times `scale`; negative where
            the neuron fired, so that spikes take no memory of their own.
        dtype: That of the membranes.
        least: What stands for zero, which would have no sign to compare.
        scale: Makes it at most 0.4, so that half precision holds it; a number, or (*).
        slope: `b phi(b)`, b in units of the noise's own deviation, for a learned noise level.
        carried: What the membranes carry of their own noise, over sigma, likewise.
    """

    signed: Tensor
    dtype: torch.dtype
    least: float
    scale: float | Tensor = 1.0
    slope: Tensor | None = None
    carried: Tensor | None = None

    @staticmethod
    def of(density: Tensor, spike: Tensor) -> Block:
        """Keeps a derivative, (T, N, *), and where the layer fired.

        Args:
            density: Of the surrogate; written to.
            spike: Zeros and ones.
        """
        least = torch.finfo(density.dtype).tiny
        signed = density.clamp_(min=least).copysign_(0.5 - spike)
        return Block(signed, density.dtype, least)

    @staticmethod
    def joined(blocks: Sequence[Block]) -> Block | None:
        """Several of one kind, end to end; None of none."""
        if len(blocks) < 2:
            return blocks[0] if blocks else None
        first = blocks[0]

        def together(parts: list[Tensor | None]) -> Tensor | None:
            found = [part for part in parts if part is not None]
            return torch.cat(found) if found else None

        return Block(
            torch.cat([block.signed for block in blocks]),
            first.dtype,
            first.least,
            first.scale,
            together([block.slope for block in blocks]),
            together([block.carried for block in blocks]),
        )

    def halve(self, scale: float | Tensor, room: Room) -> None:
        """Keeps everything in half the precision: 11 bits in the place of 24.

        Args:
            scale: A width that no surrogate's is below.
            room: Where the derivatives are kept.
        """
        half, self.scale = _HALF.get(self.dtype, torch.float16), number(scale)
        self.least = 2.0**-24 if half == torch.float16 else torch.finfo(half).tiny
        sides, size = self.signed, (self.signed.abs() * self.scale).clamp_(min=self.least)
        self.signed = room.put(size.copysign_(sides).to(half))
        self.slope = None if self.slope is None else self.slope.to(half)
        self.carried = None if self.carried is None else self.carried.to(half)

    def read(self, steps: range) -> tuple[Tensor, Tensor]:
        """The derivative of some steps, and where they fired, (t, N, *) each, in full precision."""
        signed = self.signed[steps.start : steps.stop].to(self.dtype)
        spike = torch.lt(signed, 0, out=torch.empty_like(signed))
        density = F.threshold(signed.abs(), self.least, 0.0)
        if isinstance(self.scale, Tensor) or self.scale != 1.0:
            density /= self.scale
        return density, spike
