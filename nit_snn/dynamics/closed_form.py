"""One noisy step of a membrane whose drift has a closed form, in as few passes as torch allows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..neurons.base import Lif


def noisy_step(
    current: Tensor,
    state: Tensor,
    fired: Tensor | None,
    lif: Lif,
    threshold: float | Tensor,
    sigma: float | Tensor,
    noise: Tensor,
) -> Tensor:
    """`u = decay * (v - rest) + rest + gain * I + sigma * eps` with its resets (Eq. 7).

    Args:
        current: I, (N, *).
        state: v, (N, *), what the step before left.
        fired: Where it fired, zeros and ones in the current's type, if that is known.
        lif: What the membrane does.
        threshold: Where the neurons fire.
        sigma: Noise level; a scalar, or broadcasting to (*), as all parameters.
        noise: eps, (N, *).

    Returns:
        The membrane before it fires, (N, *).
    """
    dynamics = lif.dynamics
    reset = dynamics.reset if dynamics.delayed else "none"
    level = number(threshold)
    if fired is None or reset == "none":  # without a reset nobody asks
        fired = state if reset == "none" else spikes_of(state, level, dynamics.or_equal)
    if reset == "hard":
        apart = state - dynamics.v_reset if dynamics.v_reset else state
        state = torch.addcmul(state, apart, fired, value=-1)
    if dynamics.rest:
        state = state - dynamics.rest
    decay, gain = number(lif.decay), number(lif.gain)
    if isinstance(gain, float) and gain == 1.0:
        membrane = (
            torch.add(current, state, alpha=decay)
            if isinstance(decay, float)
            else torch.addcmul(current, state, decay.to(current.dtype))
        )
    else:
        membrane = add(current * gain, state, decay)
    if dynamics.rest:
        membrane += dynamics.rest
    if reset == "soft":
        add(membrane, fired, -level)
    elif reset == "whole":
        membrane.addcmul_(membrane, fired, value=-1)
    add(membrane, noise.to(membrane.dtype), number(sigma))
    return membrane


def spikes_of(
    membrane: Tensor, threshold: float | Tensor, or_equal: bool, out: Tensor | None = None
) -> Tensor:
    """Where a membrane fires, zeros and ones in its own type, (N, *); into `out` if given.

    Compared straight into numbers: torch takes many times as long to make these from bool.
    """
    found = torch.empty_like(membrane) if out is None else out
    compare = torch.ge if or_equal else torch.gt
    return compare(membrane, number(threshold), out=found)


def left_behind(membrane: Tensor, fired: Tensor, lif: Lif, threshold: float | Tensor) -> Tensor:
    """The state that the next step starts from; the membrane itself is written to.

    Args:
        membrane: Before it fires, (N, *).
        fired: Where it fires, zeros and ones in its type.
        lif: What the membrane does.
        threshold: Where it fires.
    """
    dynamics = lif.dynamics
    if dynamics.delayed or dynamics.reset == "none":
        return membrane
    if dynamics.reset == "soft":
        return add(membrane, fired, -number(threshold))
    apart = membrane - dynamics.v_reset if dynamics.v_reset else membrane
    return membrane.addcmul_(apart, fired, value=-1)


def add(x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    """`x += factor * y`, in place."""
    if isinstance(factor, Tensor):
        return x.addcmul_(y, factor.to(x.dtype))
    return x.add_(y, alpha=factor)


def number(x: float | Tensor) -> float | Tensor:
    """A parameter that is one number as a number, where it need not be waited for."""
    if isinstance(x, Tensor) and x.numel() == 1 and x.device.type == "cpu":
        return float(x.item())  # float(x) alone warns where x wants a gradient
    return x.detach() if isinstance(x, Tensor) else float(x)
