"""Noisy neurons for snnTorch: subclasses of its own, with noise in the state function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import require
from .base import Charge, NoisyNeuron
from .functional import leaky_charge
from .guard import guarded, unguarded

require("snntorch", extra="snntorch")

import snntorch as snn  # noqa: E402


class NoisyLeaky(NoisyNeuron, snn.Leaky):
    """`snntorch.Leaky` with Gaussian noise in its membrane.

    `u_t = beta * u_{t-1} + I_t - reset + sigma * eps_t`; it fires when `u_t > threshold`. The same
    `u_t` decides the spike, the next reset, and is returned as the membrane. Outside of
    a learner's `record()`, autograd and the surrogate gradient work as in `snntorch.Leaky`.

    Args:
        beta: Decay of the membrane per step, as in `snntorch.Leaky`.
        sigma: Noise level, scalar or (\\*) as the current without its batch dimension.
        **options: Every other option of `snntorch.Leaky`.

    Shape:
        Current and membrane (N, \\*), spikes (N, \\*).

    Raises:
        SwapError: sigma is negative or not finite.
    """

    mem: Tensor
    reset: Tensor
    reset_mechanism: str
    beta: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    spike_grad: Callable[[Tensor], Tensor]
    state_quant: Any
    inhibition: bool
    _given: Tensor | None = None

    def __init__(
        self, beta: float | Tensor, *args: Any, sigma: float | Tensor = 1.0, **options: Any
    ) -> None:
        super().__init__(beta, *args, **options)
        self._init_noise(sigma, like=self.beta)

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        self.mem = unguarded(self.mem)
        self._given = None if mem is None else unguarded(mem)
        with self._cut():
            output = super().forward(input_, self._given)
        del self._given
        if self._recorder is None or not self._recorder.hides_membranes:
            return output
        self.mem = guarded(self.mem, self._recorder)
        return (output[0], self.mem) if isinstance(output, tuple) else output

    def _base_state_function(self, input_: Tensor) -> Tensor:
        mem, beta = self.mem, self.beta
        subtracts = self.reset_mechanism == "subtract"
        if self._given is not None and self._given.requires_grad:
            # snnTorch has already masked it, but without a graph while a learner records.
            with torch.enable_grad():
                zeroes = self.reset_mechanism == "zero"
                mem = (1 - self.reset) * self._given if zeroes else self._given
        return self._perturb(
            Charge(
                input_,
                lambda: leaky_charge(input_, mem, beta),
                local=(mem, beta),
                pending=(lambda: -self.reset * self.threshold) if subtracts else None,
                threshold=self.threshold,
                fires=lambda membrane: membrane - self.threshold > 0,
                delayed_reset=self.reset_mechanism != "none",
            )
        )

    def reset_state(self) -> None:
        self.mem = torch.zeros_like(unguarded(self.mem)).detach()

    def detach_state(self) -> None:
        self.mem = unguarded(self.mem).detach()

    def why_not_conditional(self) -> str | None:
        if self.reset_mechanism != "zero":
            return f"its reset mechanism is {self.reset_mechanism!r}, not 'zero'"
        return self.why_no_firing_probability()

    def why_no_firing_probability(self) -> str | None:
        if self.inhibition:
            return "inhibition couples it to its neighbours"
        if self.state_quant:
            return "its membrane is quantised"
        if not spikes_at_threshold(self.spike_grad):
            return "its spike_grad does not fire at the threshold"
        return None

    def fire(self, mem: Tensor) -> Tensor:
        if self._recorder is None:
            # Surrogates return float32 whatever the membrane is; the next layer wants its dtype.
            return super().fire(mem).to(mem.dtype)
        if self.state_quant:
            mem = self.state_quant(mem)
        spike = self._emit(self.spike_grad(mem - self.threshold).to(mem.dtype))
        # A learnable factor belongs to the block behind the neuron, which has a graph.
        factor = self.graded_spikes_factor
        with torch.set_grad_enabled(factor.requires_grad or spike.requires_grad):
            return spike * factor


#: What `swap_neurons` puts in the place of each neuron of the framework.
NOISY = {snn.Leaky: NoisyLeaky}


def spikes_at_threshold(spike: Callable[[Tensor], Tensor]) -> bool:
    """Whether a surrogate's forward pass is the step function that snnTorch's equations have."""
    distances = torch.tensor([-100.0, -0.01, 0.01, 100.0])
    fired = [spike(distances) for _ in range(8)]  # a stochastic one gives itself away
    return all(torch.equal(f.float(), (distances > 0).float()) for f in fired)


def is_spiking(module: nn.Module) -> bool:
    """Whether `module` is a neuron of this framework that fires, noisy or not."""
    return any(kind.__module__.startswith("snntorch._neurons") for kind in type(module).__mro__)
