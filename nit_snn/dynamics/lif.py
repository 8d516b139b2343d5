"""The membrane equations, each once, as pure functions, and the descriptions that go with them.

Symbols: `u` the membrane before it fires, `m` its drift (all of `u` but the fresh noise), `I` the
input current, `eps` standard normal noise. Membranes are in units of the threshold where that
is 1, time is in steps. Every tensor is of shape (N, *) or broadcasts to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RESETS = ("none", "hard", "soft", "whole")


@dataclass(frozen=True)
class Dynamics:
    """The leak and the reset of a membrane.

    Attributes:
        rest: Where the leak leads to.
        v_reset: Where a hard reset leads to.
        reset: "none"; "hard", to `v_reset`; "soft", by the threshold; or "whole", which sets the
            next drift to zero, current included.
        delayed: snnTorch: the reset is decided at the next step, from the membrane that was left.
        or_equal: The neuron fires at the threshold, too.
    """

    rest: float = 0.0
    v_reset: float = 0.0
    reset: str = "none"
    delayed: bool = False
    or_equal: bool = False


@dataclass(frozen=True, eq=False)
class Lif:
    """A drift in closed form: `decay * (v - rest) + rest + gain * I`, with its resets.

    Attributes:
        dynamics: The leak and the reset.
        decay: A scalar, or broadcasting to (*).
        gain: The factor of the whole current, likewise.
        learns: Whether any of it is learnable, and gets its gradient through the drift's graph.
    """

    dynamics: Dynamics
    decay: float | Tensor = 1.0
    gain: float | Tensor = 1.0
    learns: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Current:
    """A summand of the drift that may come straight from a synapse.

    Attributes:
        value: What enters, (N, *) or, for several steps, (T, N, *).
        gain: Its factor in the drift; a scalar, or broadcasting to (N, *).
        whole: (T, N, *), of which it is one step; None if it is no part of anything.
        step: Which.
    """

    value: Tensor
    gain: float | Tensor = 1.0
    whole: Tensor | None = None
    step: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class MembraneRule:
    """What a neuron does at every step, but for its current: the same for a whole pass.

    Attributes:
        threshold: Where the neuron fires.
        or_equal: Whether it fires at the threshold, too.
        rest: Where its membrane goes back to.
        lif: The drift in closed form, from the sum of the currents, where it has one.
        carry: The derivative of a drift in the membrane that the step before left, given its
            spike; a scalar, or broadcasting to (*).
        wiped: Whether a spike leaves nothing of the membrane.
        jump: From the membrane without a spike to what a spike adds to the next drift.
        delayed: Whether a drift holds the reset, decided on the membrane it starts from (snnTorch).
        leave: From the membrane before it fires and its spikes to the one after the reset, where
            that is another.
    """

    threshold: Tensor | float = 1.0
    or_equal: bool = False
    rest: float = 0.0
    lif: Lif | None = None
    carry: float | Tensor = 0.0
    wiped: bool = False
    jump: Callable[[Tensor | float], float | Tensor] | None = None
    delayed: bool = False
    leave: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def carries(self) -> bool:
        """Whether the drift depends on the membrane that the step before left."""
        return isinstance(self.carry, Tensor) or self.carry != 0

    @property
    def height(self) -> Tensor | float:
        """How far the threshold lies from where the membrane rests."""
        apart = number(self.threshold) - self.rest
        return apart.abs() if isinstance(apart, Tensor) else abs(apart)


@dataclass(frozen=True, eq=False, slots=True)
class MembraneUpdate:
    """One step of a membrane, or several, before the noise.

    Attributes:
        currents: The summands of the drift that may come straight from synapses.
        state: The membrane that the first step starts from, (N, *).
        drift: Computes m, (N, *), from one step's currents and the membrane. Whatever else it
            depends on, a learnable decay or a current with a memory, is part of its graph.
        rule: What the neuron does at every step.
        several: Whether the currents are (T, N, *).
    """

    currents: tuple[Current, ...]
    state: Tensor | None
    drift: Callable[..., Tensor]
    rule: MembraneRule
    several: bool = False


def leaky_charge(current: Tensor, membrane: Tensor, beta: Tensor) -> Tensor:
    """snnTorch's Leaky: `m_t = beta * u_{t-1} + I_t`, beta clamped to [0, 1]."""
    return beta.clamp(0, 1) * membrane + current


def lapicque_charge(
    current: Tensor, membrane: Tensor, resistance: Tensor, capacitance: Tensor, time_step: Tensor
) -> Tensor:
    """snnTorch's Lapicque: `m_t = (1 - dt / (R C)) u_{t-1} + dt / C * I_t`."""
    rate = 1 / (resistance * capacitance)
    driven = current * resistance * rate * time_step
    return driven + (1 - (time_step / (resistance * capacitance))) * membrane


def synaptic_current(current: Tensor, trace: Tensor, alpha: Tensor) -> Tensor:
    """The current with a memory of snnTorch's Synaptic: `syn_t = alpha * syn_{t-1} + I_t`."""
    return alpha.clamp(0, 1) * trace + current


def alpha_charge(excitatory: Tensor, inhibitory: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """snnTorch's Alpha: `m_t = (log a / (log b - log a) + 1) (exc_t + inh_t)`."""
    log_alpha, log_beta = torch.log(alpha.clamp(0, 1)), torch.log(beta.clamp(0, 1))
    return (log_alpha / (log_beta - log_alpha) + 1) * (excitatory + inhibitory)


def if_charge(current: Tensor, membrane: Tensor) -> Tensor:
    """SpikingJelly's IFNode: `m_t = v_{t-1} + I_t`."""
    return membrane + current


def lif_charge(
    current: Tensor, membrane: Tensor, tau: float, decay_input: bool, v_reset: float | None
) -> Tensor:
    """SpikingJelly's LIFNode.

    `m_t = v_{t-1} + (I_t - (v_{t-1} - v_reset)) / tau` with `decay_input`, else
    `m_t = v_{t-1} - (v_{t-1} - v_reset) / tau + I_t`; a soft reset (None) counts as `v_reset = 0`.
    """
    rest = 0.0 if v_reset is None else v_reset
    if decay_input:
        return membrane + (current - (membrane - rest)) / tau
    return membrane - (membrane - rest) / tau + current


def plif_charge(
    current: Tensor, membrane: Tensor, rate: Tensor, decay_input: bool, v_reset: float | None
) -> Tensor:
    """SpikingJelly's ParametricLIFNode: as `lif_charge`, with `rate = sigmoid(w)` for `1 / tau`."""
    rest = 0.0 if v_reset is None else v_reset
    if decay_input:
        return membrane + (current - (membrane - rest)) * rate
    return membrane - (membrane - rest) * rate + current


def perturb(drift: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """The paper's Eq. 7: `u_t = m_t + sigma * eps_t`, in the drift's dtype."""
    return drift.addcmul(noise.to(drift.dtype), sigma.to(drift.dtype))


def hard_reset(membrane: Tensor, spike: Tensor, v_reset: float) -> Tensor:
    """`v_t = s_t * v_reset + (1 - s_t) * u_t`."""
    return spike * v_reset + (1.0 - spike) * membrane


def soft_reset(membrane: Tensor, spike: Tensor, threshold: float | Tensor) -> Tensor:
    """`v_t = u_t - s_t * threshold`."""
    return membrane - spike * threshold


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

    In as few passes over memory as torch allows.

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
    dynamics, decay, gain = lif.dynamics, lif.decay, lif.gain
    reset = dynamics.reset if dynamics.delayed else "none"
    if fired is None or reset == "none":
        fired = state if reset == "none" else spikes_of(state, threshold, dynamics.or_equal)
    if reset == "hard":
        apart = state - dynamics.v_reset if dynamics.v_reset else state
        state = torch.addcmul(state, apart, fired, value=-1)
    if dynamics.rest:
        state = state - dynamics.rest
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
        add(membrane, fired, -threshold)
    elif reset == "whole":
        membrane.addcmul_(membrane, fired, value=-1)
    return add(membrane, noise.to(membrane.dtype), sigma)


def spikes_of(
    membrane: Tensor, threshold: float | Tensor, or_equal: bool, out: Tensor | None = None
) -> Tensor:
    """Where a membrane fires, zeros and ones in its own type, (N, *); into `out` if given.

    Compared straight into numbers: torch takes many times as long to make these from bool.
    """
    found = torch.empty_like(membrane) if out is None else out
    compare = torch.ge if or_equal else torch.gt
    return compare(membrane, threshold, out=found)


def after_reset(membrane: Tensor, fired: Tensor, lif: Lif, threshold: float | Tensor) -> Tensor:
    """The membrane that the next step starts from; a delayed reset leaves it as it is.

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
        if isinstance(threshold, Tensor):
            return torch.addcmul(membrane, fired, threshold.to(membrane.dtype), value=-1)
        return torch.add(membrane, fired, alpha=-threshold)
    apart = membrane - dynamics.v_reset if dynamics.v_reset else membrane
    return torch.addcmul(membrane, apart, fired, value=-1)


def add(x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    """`x += factor * y`, in place."""
    if isinstance(factor, Tensor):
        return x.addcmul_(y, factor.to(x.dtype))
    return x.add_(y, alpha=factor)


def number(x: float | Tensor) -> float | Tensor:
    """A parameter that is one number as a number, where the CPU need not wait for it."""
    if isinstance(x, Tensor):
        if x.numel() == 1 and x.device.type == "cpu":
            return float(x.item())
        return x.detach()
    return float(x)


def sign(x: Tensor) -> Tensor:
    """The sign of Eq. 3: +1 from zero on, -1 below.

    Example:
        >>> sign(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """
    return (x >= 0).to(x.dtype) * 2 - 1
