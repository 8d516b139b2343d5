"""A layer's steps once more, for scores that depend on its spikes: `replay.cuh` in torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .launch import Argument, dense, levels
from .noisy_lif.reference import RESETS, Dynamics, spread


@dataclass(frozen=True, eq=False)
class Replay:
    """What the steps are run from, all of it in float32, as it was when the noise was new.

    Attributes:
        current: (T, N, F), or (1, N, F) for all steps.
        state: (N, F), what the step before left; None for zero.
        decay: 1-D, one number, or one for each F / n neighbours.
        gain: Likewise, the factor of the current.
        threshold: Likewise.
        sigma: Likewise.
        dynamics: The resets.
    """

    current: Tensor
    state: Tensor | None
    decay: Tensor
    gain: Tensor
    threshold: Tensor
    sigma: Tensor
    dynamics: Dynamics

    def run(self, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the steps with their noise, (T, N, F).

        Returns:
            Spikes, bool, (T, N, F); `a = (threshold - m) / sigma`, (T, N, F); and the state left
            behind, (N, F).
        """
        steps, rows, inner = eps.shape
        parameters = (self.decay, self.gain, self.threshold, self.sigma)
        decay, gain, threshold, sigma = (spread(p.float(), inner) for p in parameters)
        current = self.current.float().expand(steps, rows, inner)
        start = torch.zeros_like(eps[:0].sum(0)) if self.state is None else self.state
        membrane = start.to(torch.float32, copy=True)
        spikes, level = torch.empty_like(eps, dtype=torch.bool), torch.empty_like(eps)
        for t in range(steps):
            m = self.dynamics.drift(membrane, current[t], decay, gain, threshold)
            u = m + sigma * eps[t]
            spikes[t] = self.dynamics.fires(u, threshold)
            level[t] = (threshold - m) / sigma
            membrane = self.dynamics.left_behind(u, spikes[t], threshold)
        return spikes, level, membrane


def replay_of(
    current: Tensor | None,
    state: Tensor | None,
    decay: Tensor | None,
    gain: Tensor | None,
    threshold: Tensor | None,
    sigma: Tensor | None,
    dynamics: Dynamics,
) -> Replay | None:
    """What an operator's arguments ask for: no replay where there is no current.

    Raises:
        ValueError: A parameter of the neurons is missing.
    """
    if current is None:
        return None
    if decay is None or gain is None or threshold is None or sigma is None:
        raise ValueError("A replay of the current needs decay, gain, threshold and sigma.")
    return Replay(current, state, decay, gain, threshold, sigma, dynamics)


def replay_arguments(replay: Replay | None, steps: int, rows: int, inner: int) -> list[Argument]:
    """A kernel's REPLAY_PARAMETERS."""
    if replay is None:
        return [None, None, *(None, np.int32(0)) * 4, *_scalars(Dynamics()), np.int64(0)]
    current = dense(replay.current)
    parameters = (replay.decay, replay.gain, replay.threshold, replay.sigma)
    return [
        current,
        None if replay.state is None else dense(replay.state),
        *(argument for p in parameters for argument in levels(dense(p), inner)),
        *_scalars(replay.dynamics),
        np.int64(current.expand(steps, rows, inner).stride(0)),
    ]


def _scalars(dynamics: Dynamics) -> list[Argument]:
    return [
        np.float32(dynamics.rest),
        np.float32(dynamics.v_reset),
        np.int32(RESETS.index(dynamics.reset)),
        np.int32(dynamics.delayed),
        np.int32(dynamics.or_equal),
    ]
