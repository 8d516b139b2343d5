"""Spikes on their way from a noisy neuron to the next synapse, kept there as bits."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import bits
from .expansion import Mark, reshaped_from

_MARK = "_nit_spikes"


@dataclass(eq=False)
class Packed:
    """What went into a synapse: spikes of one step, or of several, as bits.

    Attributes:
        bits: (planes, N, *) bytes.
        slots: Which of their bits.
        shape: (N, *) of one step, (T, N, *) of several.
    """

    bits: Tensor
    slots: range
    shape: torch.Size

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The spikes as numbers, in the shape that the synapse saw."""
        return bits.unpack(self.bits, self.slots, dtype).view(self.shape)

    def part(self, steps: range) -> Packed:
        """Some of several steps."""
        slots = self.slots[steps.start : steps.stop]
        return Packed(self.bits, slots, torch.Size([len(slots), *self.shape[1:]]))


@dataclass(eq=False)
class SpikeTrain:
    """The spikes of one neuron in a pass, as bits; a new byte of each after every eight steps."""

    plane: Tensor | None = None
    used: int = 0

    def room(self, shape: torch.Size, device: torch.device) -> tuple[Tensor, int]:
        """Where the bits of one more step go: (1, N, *) bytes, and which bit."""
        if self.plane is None or self.used == 8 or self.plane.shape[1:] != shape:
            self.plane, self.used = bits.empty(1, shape, device), 0
        self.used += 1
        return self.plane, self.used - 1


@dataclass(eq=False)
class Emitted(Mark):
    """The mark on spikes: that they are nothing but zeros and ones, and where their bits are.

    Attributes:
        train: The neuron's.
        version: autograd's version counter of the spikes when they were emitted.
        several: Whether they are those of several steps, (T, N, *).
        packed: Their bits, once something has asked for them.
    """

    train: SpikeTrain
    version: int
    several: bool
    packed: Packed | None = field(default=None)

    @staticmethod
    def mark(spikes: Tensor, train: SpikeTrain, several: bool, packed: Packed | None) -> None:
        setattr(spikes, _MARK, Emitted(train, spikes._version, several, packed))

    @staticmethod
    def pack(x: Tensor) -> Packed | None:
        """`x` as bits if it is what a neuron emitted, or a mere reshape of it; else None."""
        mark, base = getattr(x, _MARK, None), x
        if not isinstance(mark, Emitted):
            found = reshaped_from(x)
            mark = getattr(found, _MARK, None)
            if found is None or not isinstance(mark, Emitted):
                return None
            kept = 2 if mark.several else 1
            if x.shape[:kept] != found.shape[:kept]:
                return None
            base = found
        if mark.version != x._version or x.requires_grad:
            return None
        if mark.packed is None:
            mark.packed = _packed(base, mark)
        inner = x.shape[2:] if mark.several else x.shape[1:]
        rows = x.shape[1 if mark.several else 0]
        held = mark.packed
        return Packed(held.bits.view(len(held.bits), rows, *inner), held.slots, x.shape)


def _packed(spikes: Tensor, mark: Emitted) -> Packed:
    if mark.several:
        return Packed(bits.pack(spikes), range(len(spikes)), spikes.shape)
    plane, slot = mark.train.room(spikes.shape, spikes.device)
    bits.pack_into(plane, spikes, slot)
    return Packed(plane, range(slot, slot + 1), spikes.shape)
