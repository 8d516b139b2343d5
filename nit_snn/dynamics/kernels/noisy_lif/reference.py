"""A sequence of noisy leaky integrate-and-fire steps, in torch: what the kernel is held to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....noise.philox import Stream, noise
from ....recording.bits import pack_into

RESETS = ("none", "hard", "soft", "whole")


@dataclass(frozen=True)
class Dynamics:
    """What a membrane does from step to step, in units of the membrane.

    Attributes:
        rest: Where the leak leads to.
        v_reset: Where a hard reset leads to.
        reset: "none"; "hard", to `v_reset`; "soft", by the threshold; or "whole", which sets the
            next drift to zero, current and all.
        delayed: snnTorch: the reset is decided at the next step, on the membrane that was left.
        or_equal: It fires at the threshold, too.
    """

    rest: float = 0.0
    v_reset: float = 0.0
    reset: str = "none"
    delayed: bool = False
    or_equal: bool = False

    def fires(self, membrane: Tensor, threshold: Tensor) -> Tensor:
        above = membrane - threshold
        return above >= 0 if self.or_equal else above > 0

    def drift(
        self, state: Tensor, current: Tensor, decay: Tensor, gain: Tensor, threshold: Tensor
    ) -> Tensor:
        """m: all of the membrane but the fresh noise."""
        reset = self.fires(state, threshold)
        if not self.delayed or self.reset == "none":
            reset = torch.zeros_like(reset)
        if self.reset == "hard":
            state = torch.where(reset, self.v_reset, state)
        m = decay * (state - self.rest) + self.rest + gain * current
        if self.reset == "soft":
            return m - reset * threshold
        return m * ~reset if self.reset == "whole" else m

    def left_behind(self, membrane: Tensor, spike: Tensor, threshold: Tensor) -> Tensor:
        """The state that the next step starts from."""
        if self.delayed or self.reset == "none":
            return membrane
        if self.reset == "soft":
            return membrane - spike * threshold
        return torch.where(spike, self.v_reset, membrane)


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
        nowhere. decay: 1-D, one number, or one for each F / n neighbours.
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
        m = dynamics.drift(membrane, current[t].float(), decay, gain, threshold)
        u = (m + sigma * eps[t]).to(current.dtype).float()
        spike = dynamics.fires(u, threshold)
        membrane = dynamics.left_behind(u, spike, threshold).to(current.dtype).float()
        spikes[t], membranes[t] = spike, u
        if bits is not None:
            pack_into(bits, spike, slot + t)
    return spikes, membranes, membrane.to(current.dtype)
