"""A sequence of steps conditioned on its spikes, with its membranes followed pathwise.

What `nit_snn.dynamics.pathwise` says of one call, for all of a sequence, a few steps at a time: as
many as a processor's cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..neurons.base import Lif
from .closed_form import add, number
from .firing import Firing
from .pathwise import carried, gap, silent_mean, spike_scores, wandering
from .torch_executor import TorchLayer

_AT_ONCE = 2**18


@dataclass(eq=False)
class Conditioned:
    """What a layer did in T steps, and how likely; each (T, N, *).

    Attributes:
        score: That of the spike, without its `1 / sigma`.
        level: a, the distance to the threshold in units of sigma; None if only what is made of it
            is asked for.
        decay: du/dm of what each step leaves behind; None where nothing is carried on.
        level_score: The spike's score of the noise level, likewise; None if it is not learned.
        level_decay: du/dsigma, likewise.
        residual: s - p; None, as all that follow, if no control variate asks for it.
        density: phi(a) / sigma.
        wandering: `u - E[u | s]`, if time is followed.
        gap: `E[u | s = 1] - E[u | s = 0]`, likewise, where a spike does not wipe it out.
        jump: What a spike adds to the next drift, likewise.
    """

    score: Tensor
    level: Tensor | None
    decay: Tensor | None = None
    level_score: Tensor | None = None
    level_decay: Tensor | None = None
    residual: Tensor | None = None
    density: Tensor | None = None
    wandering: Tensor | None = None
    gap: Tensor | None = None
    jump: Tensor | None = None


class Conditioning:
    """Watches a sequence (see `nit_snn.dynamics.torch_executor.TorchLayer.run`).

    Args:
        noise: eps of all steps to come, (N, *), for their number and shape.
        sigma: Noise level, in this type.
        lif: What the membrane does; a reset happens at once.
        threshold: Where it fires.
        learns_sigma: Whether the noise level is learned.
        controlled: Whether a control variate asks.
        through_time: Whether it follows membranes and resets.

    Attributes:
        silent: What the last step's membrane would be without its spike, (N, *), if time is
            followed.
    """

    def __init__(
        self,
        noise: Sequence[Tensor],
        sigma: Tensor,
        lif: Lif,
        threshold: float | Tensor,
        *,
        learns_sigma: bool,
        controlled: bool,
        through_time: bool,
    ) -> None:
        self.sigma, self.lif, self.threshold = sigma, lif, threshold
        self.learns_sigma, self.controlled = learns_sigma, controlled
        self.through_time = through_time
        self.wiped = lif.dynamics.reset == "hard"
        self.carries = isinstance(lif.decay, Tensor) or lif.decay != 0
        self._steps, self._length = len(noise), max(1, _AT_ONCE // max(1, noise[0].numel()))
        level = number(sigma)
        self._rate, self._offset = -1 / level, number(threshold) / level
        self._noises: list[Tensor] = []
        self._levels: list[Tensor] = []
        self._spikes: list[Tensor] = []
        self._parts: list[Conditioned] = []
        self.silent: Tensor | None = None

    def __call__(self, step: int, eps: Tensor, membrane: Tensor, spikes: Tensor) -> None:
        """One step: its noise, membrane before the reset, and spikes, (N, *)."""
        self._noises.append(eps)
        self._levels.append(add(eps + self._offset, membrane, self._rate))
        self._spikes.append(spikes)
        if len(self._noises) == self._length or step + 1 == self._steps:
            together = (_stacked(x) for x in (self._noises, self._levels, self._spikes))
            self._parts.append(self._part(*together))
            self._noises, self._levels, self._spikes = [], [], []

    def done(self) -> Conditioned:
        """All steps."""
        parts = self._parts
        if len(parts) == 1:
            return parts[0]
        found: dict[str, Any] = {}
        for name in (field.name for field in fields(Conditioned)):
            values = [getattr(part, name) for part in parts]
            found[name] = None if values[0] is None else torch.cat(values)
        return Conditioned(**found)

    def _part(self, noise: Tensor, level: Tensor, spikes: Tensor) -> Conditioned:
        firing = Firing(spikes, level)
        own = spike_scores(firing, self.learns_sigma)
        found = Conditioned(own.drift, level, level_score=own.sigma)
        if self.carries:
            passed = carried(firing, noise, self.wiped, self.learns_sigma)
            found.decay, found.level_decay = passed.drift, passed.sigma
        if not self.controlled:
            return found
        found.residual, found.density = firing.residual, firing.density / self.sigma
        if self.through_time and self.carries:
            found.wandering = wandering(firing, noise, self.wiped, own.drift).mul_(self.sigma)
            found.gap = None if self.wiped else gap(firing) * self.sigma
            silent = self._silent(firing)
            found.jump, self.silent = jump(self.lif, self.threshold, silent), silent[-1]
        return found

    def _silent(self, firing: Firing) -> Tensor:
        """m, or where a spike wipes it out what would be there without: `m + sigma E[eps | 0]`."""
        apart = silent_mean(firing) - firing.level if self.wiped else -firing.level
        return apart.mul_(self.sigma).add_(self.threshold)


def condition(
    current: Tensor,
    state: Tensor,
    noise: Sequence[Tensor],
    signs: Sequence[float],
    lif: Lif,
    threshold: float | Tensor,
    sigma: Tensor,
    *,
    learns_sigma: bool,
    controlled: bool,
    through_time: bool,
) -> tuple[Tensor, Tensor, Conditioned, Tensor | None]:
    """Makes the steps of a sequence, and tells what there is to know of them.

    Args:
        current: (T, N, *), or (1, N, *) for all steps.
        state: (N, *).
        noise: eps of each step but for its sign, (N, *).
        signs: What each is multiplied with.
        lif: What the membrane does; a reset, "hard" or "soft", happens at once.
        threshold: Where it fires.
        sigma: Noise level.
        learns_sigma: Whether the noise level is learned.
        controlled: Whether a control variate asks.
        through_time: Whether it follows membranes and resets.

    Returns:
        Spikes, (T, N, *); what the last step leaves behind, (N, *); what there is to know of the
        steps; and what the last membrane would be without its spike, if time is followed.
    """
    seen = Conditioning(
        noise,
        sigma.to(current.dtype),
        lif,
        threshold,
        learns_sigma=learns_sigma,
        controlled=controlled,
        through_time=through_time,
    )
    signed = [x if sign == 1 else sign * x for x, sign in zip(noise, signs, strict=True)]
    layer = TorchLayer(lambda call, *_: signed[call], sigma, "nit", False, lambda size: False)
    spikes, last = layer.run(
        current, state, lif, threshold, steps=len(noise), first_step=0, bits=None, watch=seen
    )
    return spikes, last, seen.done(), seen.silent


def jump(lif: Lif, threshold: float | Tensor, silent: Tensor) -> Tensor:
    """What a spike adds to the next drift, (*), from the membrane without it, likewise."""
    decay = number(lif.decay)
    if lif.dynamics.reset == "hard":
        return (silent - lif.dynamics.v_reset).mul_(-decay)
    return silent.new_zeros(()).add(-decay * number(threshold)).expand_as(silent)


def _stacked(steps: list[Tensor]) -> Tensor:
    return steps[0][None] if len(steps) == 1 else torch.stack(steps)
