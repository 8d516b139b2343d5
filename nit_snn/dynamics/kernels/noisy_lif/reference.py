"""A sequence of noisy leaky integrate-and-fire steps, in torch: what the kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from ....noise.philox import Stream, noise
from ....recording.bits import pack_into
from ...lif import Dynamics


def fires(membrane: Tensor, threshold: Tensor, dynamics: Dynamics) -> Tensor:
    above = membrane - threshold
    return above >= 0 if dynamics.or_equal else above > 0


def drift(
    state: Tensor,
    current: Tensor,
    decay: Tensor,
    gain: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
) -> Tensor:
    """m: all of the membrane but the fresh noise."""
    reset = fires(state, threshold, dynamics)
    if not dynamics.delayed or dynamics.reset == "none":
        reset = torch.zeros_like(reset)
    if dynamics.reset == "hard":
        state = torch.where(reset, dynamics.v_reset, state)
    m = decay * (state - dynamics.rest) + dynamics.rest + gain * current
    if dynamics.reset == "soft":
        return m - reset * threshold
    return m * ~reset if dynamics.reset == "whole" else m


def left_behind(membrane: Tensor, spike: Tensor, threshold: Tensor, dynamics: Dynamics) -> Tensor:
    """The state that the next step starts from."""
    if dynamics.delayed or dynamics.reset == "none":
        return membrane
    if dynamics.reset == "soft":
        return membrane - spike * threshold
    return torch.where(spike, dynamics.v_reset, membrane)


def spread(values: Tensor, inner: int) -> Tensor:
    """A parameter of the neurons, one number or one for some neighbours each, for each: (F,)."""
    return values.repeat_interleave(inner // values.numel()) if values.numel() > 1 else values


def noisy_lif(
    current: Tensor,
    state: Tensor | None,
    bits: Tensor | None,
    decay: Tensor,
    gain: Tensor,
    threshold: Tensor,
    sigma: Tensor,
    dynamics: Dynamics,
    stream: Stream,
    steps: int,
    first_step: int = 0,
    slot: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`u_t = m_t + sigma * eps_t`, its spikes, and what is left behind (Eq. 7).

    Args:
        current: (T, N, F), float32, float16 or bfloat16, or (1, N, F) for all steps. Arithmetic
            is in float32; membranes are rounded to this type at each step.
        state: (N, F), what the step before left; None for zero.
        bits: Takes the spikes as bits (see `nit_snn.recording.bits`) from bit `slot` on; None for
            nowhere.
        decay: 1-D, one number, or one for each F / n neighbours.
        gain: Likewise, the factor of the current.
        threshold: Likewise.
        sigma: Likewise.
        dynamics: The resets.
        stream: Whose noise.
        steps: T.
        first_step: Number of the first step, counted from the layer's first call in the pass.
        slot: Where in `bits` the first step goes.

    Returns:
        Spikes (T, N, F), membranes before they fire (T, N, F), and the state left behind (N, F),
        in the current's type.
    """
    rows, inner = current.shape[1:]
    decay, gain, threshold, sigma = (
        spread(p.float(), inner) for p in (decay, gain, threshold, sigma)
    )
    membrane = torch.zeros(rows, inner, device=current.device) if state is None else state.float()
    eps = noise(stream, range(first_step, first_step + steps), rows, inner)
    current = current.expand(steps, rows, inner)
    spikes, membranes = (current.new_empty(current.shape) for _ in range(2))
    for t in range(steps):
        m = drift(membrane, current[t].float(), decay, gain, threshold, dynamics)
        u = (m + sigma * eps[t]).to(current.dtype).float()
        spike = fires(u, threshold, dynamics)
        membrane = left_behind(u, spike, threshold, dynamics).to(current.dtype).float()
        spikes[t], membranes[t] = spike, u
        if bits is not None:
            pack_into(bits, spike, slot + t)
    return spikes, membranes, membrane.to(current.dtype)
