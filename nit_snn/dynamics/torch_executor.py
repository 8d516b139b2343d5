"""A layer's noisy steps by torch's operators, and the scores of their noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from ..noise.layer_noise import LayerNoise
from .executor import Budget, Moved, Steps
from .lif import after_reset, noisy_step, number, perturb, sign, spikes_of
from .needs import Needs

#: How many numbers are weighted at once: as many as a processor's cache holds.
_AT_ONCE = 2**18


class TorchExecutor:
    """See `nit_snn.dynamics.executor.Executor`.

    Args:
        noise: The layer's noise.
        sigma: Its noise level; a scalar, or broadcasting to (*).
        needs: What the pass has to keep.
        budget: Bytes that may be kept.
        binary: Whether the layer's spikes are its membrane above the threshold, and nothing else.
    """

    def __init__(
        self, noise: LayerNoise, sigma: Tensor, needs: Needs, budget: Budget, binary: bool
    ) -> None:
        self.noise, self.needs, self.budget, self.binary = noise, needs, budget, binary
        #: Whether somebody looks at the noise at once, or will ask for it while there is room.
        self.always, self.keeps = needs.blocks, needs.keeps_noise
        self.level = sigma.detach()
        #: Whether nobody asks for the noise of single steps where the activity is the same at all.
        self.sums = needs.plain and not needs.apart and not sigma.requires_grad
        self.sigma = number(self.level)

    def advance(
        self, steps: Steps, current: Tensor, state: Tensor | None, fired: Tensor | None
    ) -> Moved:
        rule = steps.rule
        if steps.several:
            assert state is not None
            return self._sequence(steps, current, state, fired)
        noise = self.noise.draw(steps.shape, steps.dtype, call=steps.calls[0])
        if state is None:
            membrane = perturb(current, self.level, noise)
        else:
            assert rule.lif is not None
            membrane = noisy_step(
                current, state, fired, rule.lif, rule.threshold, self.sigma, noise
            )
        if self.always or (self.keeps and self.budget.take(noise.nbytes)):
            steps.noise = noise
        if not self.binary:
            return Moved(membrane, None, membrane)
        spikes = spikes_of(membrane, rule.threshold, rule.or_equal)
        left = membrane if rule.leave is None else rule.leave(membrane, spikes)
        return Moved(membrane, spikes, left)

    def _sequence(
        self, steps: Steps, current: Tensor, state: Tensor, fired: Tensor | None
    ) -> Moved:
        rule, count, lif = steps.rule, len(steps.calls), steps.rule.lif
        assert lif is not None
        static = len(current) < count
        if static:  # the same at all steps: its factor once
            current, lif = current * number(lif.gain), replace(lif, gain=1.0)
        shape = (count, *steps.shape)
        spikes = current.new_empty(shape)
        membranes = None
        if self.needs.firing or self.needs.blocks:
            membranes = current.new_empty(shape)
        noises = total = None
        real = torch.float64 if current.dtype == torch.float64 else torch.float32
        if static and self.sums:
            if self.always or (self.keeps and self.budget.take(spikes.nbytes // count)):
                total = steps.total = current.new_zeros(steps.shape, dtype=real)
        elif self.always or (self.keeps and self.budget.take(spikes.nbytes)):
            noises = steps.noise = torch.empty(shape, dtype=real, device=current.device)
        for t, call in enumerate(steps.calls):
            noise = self.noise.draw(steps.shape, steps.dtype, call=call)
            now = current[t if len(current) == count else 0]
            membrane = noisy_step(now, state, fired, lif, rule.threshold, self.sigma, noise)
            fired = spikes_of(membrane, rule.threshold, rule.or_equal, out=spikes[t])
            state = after_reset(membrane, fired, lif, rule.threshold)
            if membranes is not None:
                membranes[t] = membrane
            if noises is not None:
                noises[t] = noise
            if total is not None:
                total += self._score(noise)
        return Moved(membranes, spikes, state)

    def absorb(self, last: Steps, steps: Steps) -> None:
        """See `Executor`; where noise was not kept, no sum is: all of it is drawn again."""
        if steps.noise is None or (last.total is None and last.noise is None):
            last.total = last.noise = None
            return
        if last.total is None:
            assert last.noise is not None
            last.total, last.noise = self._score(last.noise).clone(), None
        last.total += self._score(steps.noise)
        self.budget.give_back(steps.noise.nbytes)

    def samples(self, steps: Steps) -> Iterator[Tensor]:
        if steps.noise is not None:
            yield from steps.noise if steps.several else (steps.noise,)
        else:
            for call in steps.calls:
                yield self.noise.draw(steps.shape, steps.dtype, call=call)

    def _score(self, noise: Tensor) -> Tensor:
        return sign(noise) if self.needs.signs else noise

    def weighted_scores(
        self, steps: Steps, weight: Tensor, gain: float | Tensor, total: bool
    ) -> Iterator[tuple[range, Tensor]]:
        count, rows = len(steps.calls), (-1, *(1,) * (len(steps.shape) - 1))
        if weight.dim() > 1:
            weight = weight[steps.calls[0] : steps.calls[-1] + 1]
        if not steps.several or (total and weight.dim() == 1):
            score = steps.total
            if score is None:
                # One after the other: what is drawn again need not be there at once.
                score = reduce(torch.add, map(self._score, self.samples(steps)))
            own = weight if weight.dim() == 1 else weight[0]
            found = score * self._scale(own.view(rows), gain, score.dtype)
            yield range(count), found[None]
            return
        length = count if total else max(1, _AT_ONCE // max(1, steps.shape.numel()))
        samples = self.samples(steps)
        for start in range(0, count, length):
            chunk = range(start, min(start + length, count))
            own = weight[chunk.start : chunk.stop] if weight.dim() > 1 else weight[None]
            score = torch.stack([self._score(next(samples)) for _ in chunk])
            found = score * self._scale(own.reshape(len(own), *rows), gain, score.dtype)
            yield chunk, found.sum(0, keepdim=True) if total else found

    def _scale(self, weight: Tensor, gain: float | Tensor, dtype: torch.dtype) -> Tensor:
        """What multiplies a score: `A * gain / sigma`; a direction keeps its scale."""
        weight = weight.to(dtype)
        if self.needs.signs:
            return weight * (gain != 0) if isinstance(gain, Tensor) else weight
        sigma = self.sigma.to(dtype) if isinstance(self.sigma, Tensor) else self.sigma
        return weight * (gain / sigma)

    def sigma_scores(self, steps: Steps, weight: Tensor) -> Tensor:
        rows = (-1, *(1,) * (len(steps.shape) - 1))
        total = torch.zeros(steps.shape[1:], dtype=self.level.dtype, device=self.level.device)
        for call, noise in zip(steps.calls, self.samples(steps), strict=True):
            own = weight if weight.dim() == 1 else weight[call]
            score = noise.square() - 1
            total += (own.view(rows).to(score.dtype) * score).sum(0).to(total.dtype)
        return total
