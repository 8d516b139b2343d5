"""A layer's noisy steps by compiled loops, where the noise's own scores are kept of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...estimators.scores import Scores, scores
from ...neurons.base import Lif
from ..torch_executor import TorchLayer
from .arguments import fits
from .steps import run_steps

if TYPE_CHECKING:
    from ...estimators.control import Watched
    from ..torch_executor import Watch

#: How much noise is drawn before the steps that take it: 8 MiB.
_AT_ONCE = 2**21


@dataclass(eq=False, kw_only=True)
class NativeLayer(TorchLayer):
    """A `TorchLayer` whose steps are not taken operator by operator.

    Attributes:
        read: The noise of some calls, like (T, N, *), but for a sign of each.
    """

    read: Callable[[list[int], Tensor], tuple[list[Tensor], list[float]]]

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
        watch: Watch | Watched | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `TorchLayer.run`; so many steps at once as their noise may take memory."""
        seen = told(watch)
        if not fits(current, state) or seen is None:
            return super().run(
                current,
                state,
                lif,
                threshold,
                steps=steps,
                first_step=first_step,
                bits=bits,
                summed=summed,
                watch=watch,
            )
        spikes = current.new_empty((steps, *current.shape[1:]))
        last = torch.empty_like(state)
        size = state.nbytes * (2 if self.learn_sigma else 1)
        total: Scores | None = None
        if summed and self.keeps(size):
            sigma = torch.zeros_like(state) if self.learn_sigma else None
            total = self.totals[first_step] = Scores(torch.zeros_like(state), sigma)
        length = max(1, _AT_ONCE // max(1, state.numel()))
        for start in range(0, steps, length):
            part = slice(start, min(start + length, steps))
            calls = list(range(first_step + start, first_step + part.stop))
            noise, signs = self.read(calls, spikes[part])
            into = {
                "spikes": spikes[part],
                "last": last,
                "sums": None if total is None else total.drift,
                "sigma_sums": None if total is None else total.sigma,
                "bits": bits,
                **{name: tensor[part] for name, tensor in seen.items()},
            }
            now = current if len(current) == 1 else current[part]
            options = (lif, threshold, self.sigma, into)
            run_steps(now, state, noise, signs, *options, slot=start, signs_alone=self.signs)
            state = last
            for call, eps, sign in zip(calls, noise, signs, strict=True):
                if not summed and self.keeps(size):
                    own = eps if sign == 1 else sign * eps
                    self.kept[call] = scores(own, self.rule, self.learn_sigma)
        return spikes, last


def told(watch: Watch | Watched | None) -> dict[str, Tensor] | None:
    """Where a loop writes what a control variate wants to see; None if it cannot know."""
    if watch is None:
        return {}
    residuals, densities = getattr(watch, "residuals", None), getattr(watch, "densities", None)
    if residuals is None or densities is None or not fits(residuals, densities):
        return None
    levels = getattr(watch, "levels", None)
    own = {"residuals": residuals, "densities": densities}
    return own if levels is None else {**own, "levels": levels}
