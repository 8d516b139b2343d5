"""The membrane equations, each once, as pure functions.

Symbols: `u` the membrane before it fires, `m` its drift (all of `u` but the fresh noise), `I` the
input current, `eps` standard normal noise. Membranes are in units of the threshold where that
is 1, time is in steps. Every tensor is of shape (N, *) or broadcasts to it.
"""

import torch
from torch import Tensor


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


def soft_reset(membrane: Tensor, spike: Tensor, threshold: float) -> Tensor:
    """`v_t = u_t - s_t * threshold`."""
    return membrane - spike * threshold
