"""Learnable thresholds: a shift of the drift, for whoever asks how far a membrane is from firing.

A spike depends on `u_t - theta` alone. With the past of that, and not of `u_t`, held fixed, the
noise is `u_t - theta = m_t - theta + sigma eps_t`, so every score and every credit that holds for
m_t holds for `m_t - theta`, and

    dE[L]/dtheta = sum_t f_t (dm_t / dtheta - 1),    dv / dtheta = 1 - s_t [reset before it is left]

with f_t the cotangent of the drift, whichever estimator has made it, and v the membrane that a step
leaves, which is `theta + (u_t - theta)` until a spike resets it. Both parts are written into local
graphs here, by a number that is zero: `theta - theta.detach()`. So a threshold gets its gradient as
a learnable decay does. A membrane that is handed out carries its part, too: a loss, or a layer,
that reads it has to be differentiable in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dynamics.executor import Moved
from ..dynamics.lif import MembraneRule

#: dv / dtheta of a membrane, broadcasting to (N, *).
Lift = Tensor | float


def lift_of(rule: MembraneRule, spikes: Tensor) -> Lift:
    """dv / dtheta of the membranes that steps leave, in the shape of their spikes."""
    return 1.0 if rule.leave is None else 1 - spikes.detach()


def drift_of(
    drift: Callable[..., Tensor],
    values: Sequence[Tensor],
    state: Tensor | None,
    threshold: Tensor,
    lift: Lift | None,
) -> Tensor:
    """A drift m, with a graph that leads to theta as that of `m - theta` does.

    Args:
        drift: From currents and a membrane, (N, *).
        values: The currents, (N, *).
        state: The membrane, likewise.
        threshold: theta, broadcasting to (*).
        lift: dv / dtheta of that membrane; None for one that no step has left.
    """
    apart = _nothing(threshold)
    if state is not None and lift is not None:
        state = state + (lift * apart).to(state.dtype)
    found = drift(*values, state)
    return found - apart.to(found.dtype)


def _nothing(threshold: Tensor) -> Tensor:
    """Zero, with a graph."""
    return threshold - threshold.detach()


def handed_out(moved: Moved, threshold: Tensor, lift: Lift, token: object) -> Moved:
    """The same, with the threshold's part in the graph of the membrane that is left.

    Args:
        moved: What came of a step; its membrane is written to in the sense of autograd.
        threshold: theta.
        lift: dv / dtheta.
        token: Found on the graph's node, whatever becomes of the membrane.
    """
    with torch.enable_grad():
        state = Lifted.apply(moved.state, threshold, lift, token)  # type: ignore[no-untyped-call]
    membrane = state if moved.membrane is moved.state else moved.membrane
    return Moved(membrane, moved.spikes, state, moved.packed)


class Lifted(torch.autograd.Function):
    """A membrane as a function of the threshold; in place, and its value stays as it is."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, threshold: Tensor, lift: Lift, token: object) -> Tensor:
        ctx.lift, ctx.like, ctx.token = lift, threshold, token
        ctx.mark_dirty(state)
        return state

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        own = None
        if ctx.needs_input_grad[1]:
            own = (gradient * ctx.lift).sum_to_size(ctx.like.shape).to(ctx.like.dtype)
        return gradient, own, None, None
