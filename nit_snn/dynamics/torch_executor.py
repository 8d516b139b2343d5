"""Noisy steps by torch, and their scores: `nit_snn.dynamics.cuda_executor.Layer` with no kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..estimators.scores import Scores, scores
from ..neurons.base import Lif
from ..recording.bits import Packer
from ..recording.packed_spikes import Packed
from .closed_form import left_behind, noisy_step, spikes_of
from .cuda_executor import Past

#: How many numbers are weighted at once: as many as a processor's cache holds.
_AT_ONCE = 2**18


#: See `TorchLayer.run`.
Watch = Callable[[int, Tensor, Tensor, Tensor], None]


@dataclass(eq=False)
class TorchLayer:
    """One layer's noise in one pass.

    Attributes:
        draw: The noise of a call, from its number, shape (N, *) and type.
        sigma: Its noise level, a scalar or broadcasting to (*).
        rule: "nit" or "nit-s".
        learn_sigma: Whether the noise level's scores are wanted.
        keeps: Whether there is room for so many bytes of scores; else the noise is drawn again.
        kept: The scores of a call.
        totals: Their sums over the steps of a run, by the number of its first call.
    """

    draw: Callable[[int, torch.Size, torch.dtype], Tensor]
    sigma: Tensor
    rule: str
    learn_sigma: bool
    keeps: Callable[[int], bool]
    kept: dict[int, Scores] = field(default_factory=dict)
    totals: dict[int, Scores] = field(default_factory=dict)

    @property
    def signs(self) -> bool:
        """See `nit_snn.dynamics.cuda_executor.Layer`."""
        return self.rule == "nit-s"

    def run(
        self,
        current: Tensor,
        state: Tensor,
        lif: Lif,
        threshold: Tensor | float,
        *,
        steps: int,
        first_step: int,
        bits: Tensor | None,
        summed: bool = False,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `nit_snn.dynamics.cuda_executor.Layer.run`; `summed` keeps the scores as one sum.

        `watch` is shown each step while it is in the processor's cache: its number, noise, membrane
        before the reset, and spikes. Without `bits` the spikes are not packed.
        """
        shape, dtype = current.shape[1:], current.dtype
        if len(current) < steps:  # the same at all steps: its factor once
            current, lif = current * lif.gain, replace(lif, gain=1.0)
        spikes = current.new_empty((steps, *shape))
        packer = None if bits is None else Packer(bits)
        fired: Tensor | None = None
        for t in range(steps):
            eps = self.draw(first_step + t, shape, dtype)
            now = current[t if len(current) == steps else 0]
            membrane = noisy_step(now, state, fired, lif, threshold, self.sigma, eps)
            fired = spikes_of(membrane, threshold, lif.dynamics.or_equal, out=spikes[t])
            if packer is not None:
                packer.add(fired)
            if watch is not None:
                watch(t, eps, membrane, fired)
            state = left_behind(membrane, fired, lif, threshold)
            size = eps.nbytes * (2 if self.learn_sigma else 1)
            if summed and t and first_step in self.totals:
                self.totals[first_step] += scores(eps, self.rule, self.learn_sigma)
            elif not (summed and t) and self.keeps(size):
                held = self.totals if summed else self.kept
                held[first_step + t] = scores(eps, self.rule, self.learn_sigma)
        if packer is not None:
            packer.close()
        return spikes, state

    def forget(self, calls: list[int]) -> None:
        """Lets go of the scores of some calls."""
        for call in calls:
            self.kept.pop(call, None)
            self.totals.pop(call, None)

    def cotangents(
        self,
        weight: Tensor,
        shape: torch.Size,
        steps: range,
        *,
        gain: float | Tensor = 1.0,
        summed: bool = False,
        whole: bool = False,
        dtype: torch.dtype = torch.float32,
        past: Past | None = None,
    ) -> Iterator[tuple[range, Tensor]]:
        """See `nit_snn.dynamics.cuda_executor.Layer.cotangents`."""
        length = len(steps) if whole else max(1, _AT_ONCE // max(1, shape.numel()))
        rows = (-1, *(1,) * (len(shape) - 1))
        if summed and weight.dim() == 1:
            score = self._total(steps, shape, dtype).drift
            yield range(len(steps)), score * self._scale(weight.view(rows), gain, score.dtype)
            return
        total: Tensor | None = None
        for start in range(0, len(steps), length):
            chunk = range(start, min(start + length, len(steps)))
            own = weight[chunk.start : chunk.stop] if weight.dim() > 1 else weight[None]
            held = [self._of(steps[t], shape, dtype).drift for t in chunk]
            score = held[0][None] if len(held) == 1 else torch.stack(held)
            found = score * self._scale(own.reshape(len(own), *rows), gain, score.dtype)
            if summed:
                total = found.sum(0) if total is None else total + found.sum(0)
            else:
                yield chunk, found
        if total is not None:
            yield range(len(steps)), total

    def _scale(self, weight: Tensor, gain: float | Tensor, dtype: torch.dtype) -> Tensor:
        """What multiplies a score: `A * gain / sigma`; a direction keeps its scale."""
        weight = weight.to(dtype)
        if self.signs:
            return weight * (gain != 0) if isinstance(gain, Tensor) else weight
        return weight * (gain / self.sigma.to(dtype))

    def sigma_total(
        self, weight: Tensor, shape: torch.Size, calls: list[int], past: Past | None = None
    ) -> Tensor:
        """See `nit_snn.dynamics.cuda_executor.Layer.sigma_total`."""
        rows = (-1, *(1,) * (len(shape) - 1))
        dtype = self.sigma.dtype
        if weight.dim() == 1 and calls[0] in self.totals:
            parts = {calls[0]: self.totals[calls[0]].sigma}
        else:
            parts = {call: self._of(call, shape, dtype).sigma for call in calls}
        total = torch.zeros(shape[1:], dtype=dtype, device=self.sigma.device)
        for call, score in parts.items():
            assert score is not None
            own = weight if weight.dim() == 1 else weight[call - calls[0]]
            total += (own.view(rows).to(score.dtype) * score).sum(0).to(dtype)
        return total

    def of_linear(
        self, weight: Tensor, spikes: Packed, steps: range, outputs: int, gain: float | Tensor
    ) -> Tensor | None:
        """torch has no product with bits."""
        return None

    def _of(self, call: int, shape: torch.Size, dtype: torch.dtype) -> Scores:
        """The scores of one call."""
        if call in self.kept:
            return self.kept[call]
        return scores(self.draw(call, shape, dtype), self.rule, self.learn_sigma)

    def _total(self, steps: range, shape: torch.Size, dtype: torch.dtype) -> Scores:
        """The sum of some calls' scores."""
        if steps.start in self.totals:
            return self.totals[steps.start]
        first, *others = (self._of(call, shape, dtype) for call in steps)
        total = Scores(first.drift.clone(), first.sigma)
        for other in others:
            total += other
        return total
