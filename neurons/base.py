"""What every noisy neuron has: its noise level, its noise, and the hook for a learner."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..dynamics.executor import Moved
from ..dynamics.lif import MembraneRule, MembraneUpdate, perturb
from ..errors import CurrentError, RecordingError
from .checks import broadcasts_to, check_grad_mode, checked_sigma, rows_of


class Recorder(Protocol):
    """What is put into a neuron to give it its noise and to see what becomes of it.

    Attributes:
        learns: Whether gradients will be made of what it sees, so that no graph runs through
            a neuron.
        guards: Whether membranes may be read by nobody while it is pending.
        pending: Whether what was recorded still has to be turned into gradients.
        binary: Neurons whose spikes are the membrane above its threshold: it fires for them.
    """

    learns: bool
    guards: bool
    pending: bool
    binary: Collection[NoisyNeuron]

    def step(self, neuron: NoisyNeuron, update: MembraneUpdate) -> Moved:
        """Takes one step of a neuron, or several, with noise."""
        ...

    def leave(self, neuron: NoisyNeuron, state: Tensor) -> None:
        """Sees the membrane that a call leaves behind, where it is not the step's own."""
        ...

    def partly_reset(self, neuron: Any, old: Tensor, new: Tensor, kept: Tensor) -> None:
        """Sees that a membrane which a neuron left is another where `kept` is 0, and not 1."""
        ...

    def fired(self, neuron: NoisyNeuron, membrane: Tensor) -> Tensor | None:
        """Where a membrane that the neuron left in this pass fired, if that is known."""
        ...

    def hold(self, current: Tensor) -> Tensor:
        """A current that the neuron keeps beyond its step; see `NoisyNeuron._hold`."""
        ...

    def emit(self, neuron: NoisyNeuron, spikes: Tensor) -> Tensor:
        """Sees spikes that the framework's neuron has decided on, and hands them on."""
        ...


#: What is put on a neuron, and what it finds out once, while a pass runs.
FLEETING = ("_recorder", "_known_rule", "_decided", "_grades", "_direct", "_taught")


class NoisyNeuron(nn.Module):
    """Mixin that adds Gaussian noise to the membrane of a framework's spiking neuron.

    Attributes:
        sigma: Noise level in units of the membrane; a scalar, or a tensor that broadcasts to
            the current without its batch dimension. It is a non-persistent buffer, so
            the `state_dict` of the framework's neuron is kept as it is.
        noise: Whether noise is added. On by default, in training and in inference;
            `noise_off` switches it off for a whole network.
    """

    sigma: Tensor
    noise: bool = True
    _recorder: Recorder | None = None
    _shares_sigma: bool = False
    _own_executor: Any = None  # makes what takes its steps, where the usual executors do not

    def _init_noise(self, sigma: float | Tensor | None, like: Tensor | None = None) -> None:
        value = checked_sigma(self._usual_sigma if sigma is None else sigma)
        if like is not None:
            value = value.to(like.device, like.dtype)
        self.register_buffer("sigma", value, persistent=False)

    @property
    def _rule(self) -> MembraneRule:
        """What it does at every step, where its class says so."""
        raise NotImplementedError

    @cached_property
    def _known_rule(self) -> MembraneRule:
        """That of its first step in a recorded pass, which stays the same for all of them."""
        return self._rule

    @property
    def _rule_now(self) -> MembraneRule:
        return self._rule if self._recorder is None else self._known_rule

    @property
    def learned_threshold(self) -> Tensor | None:
        """The threshold, if it is learned from the noise.

        Whatever a drift says of the threshold has its graph then, and a membrane that a spike
        resets does not depend on it; see `nit_snn.recording.thresholds`.
        """
        return None

    @property
    def _usual_sigma(self) -> float | Tensor:
        """The noise level if nobody names one: 1 where there is no threshold to measure it by."""
        return 1.0

    def extra_repr(self) -> str:
        sigma = self.sigma
        shown = f"{sigma.item():.4g}" if sigma.numel() == 1 else f"tensor{tuple(sigma.shape)}"
        return ", ".join(filter(None, [super().extra_repr(), f"sigma={shown}"]))

    def _step(self, update: MembraneUpdate) -> Moved:
        """One step of the membrane with one sample of noise in it (Eq. 7).

        That sample serves the spike, the reset and the membrane that is carried over. While nobody
        records, the spikes are left to the framework's neuron.
        """
        if self._recorder is not None:
            return self._recorder.step(self, update)
        drift = update.drift(*(current.value for current in update.currents), update.state)
        if self.noise:
            self._check_current(drift)
            drift = perturb(drift, self.sigma, torch.randn_like(drift))
        return Moved(drift, None, drift)

    def _check_current(self, drift: Tensor) -> None:
        kind, sigma = type(self).__name__, self.sigma
        if not drift.is_floating_point():
            raise CurrentError(
                f"{kind} got a current of shape {tuple(drift.shape)} and dtype {drift.dtype}, to "
                "which no noise can be added. Call .float() on the input."
            )
        if sigma.dim() and not broadcasts_to(sigma.shape, drift.shape[1:]):
            raise CurrentError(
                f"sigma of {kind} has shape {tuple(sigma.shape)}, which does not fit a current of "
                f"shape {tuple(drift.shape)}. Swap with a scalar sigma, or one of the current's "
                "shape without its batch."
            )

    def _hold(self, current: Tensor) -> Tensor:
        """A current that goes into a memory of the neuron, with a graph that leads to its synapse.

        That memory, a synaptic trace, is no random variable given the spikes before, so its
        gradient has to follow it from step to step; see `_memory`.
        """
        return current if self._recorder is None else self._recorder.hold(current)

    def _memory(self) -> AbstractContextManager[Any]:
        """In which a memory that no noise enters is updated: with its graph, always."""
        return torch.enable_grad() if self._learning else nullcontext()

    @property
    def _learning(self) -> bool:
        return self._recorder is not None and self._recorder.learns

    def set_sigma_learnable(self, learnable: bool, shared: bool = False) -> None:
        """Makes `sigma` a parameter, which the `state_dict` then holds, or a fixed buffer again.

        A scalar that is learnable gets one value per neuron, or per channel of a current with
        spatial dimensions, when the first current shows how many there are; a `shared` one
        stays a scalar.
        """
        value = self.sigma.detach()
        self._shares_sigma = shared
        del self.sigma
        if learnable:
            self.sigma = nn.Parameter(value)
        else:
            self.register_buffer("sigma", value, persistent=False)

    def _fit_sigma(self, name: str, shape: torch.Size, features_last: bool) -> None:
        """Gives a learnable scalar its shape; an optimizer may hold the parameter already.

        Args:
            name: The neuron's, for the message.
            shape: (N, *) of the drift.
            features_last: Whether the neurons lie in the last dimension, and not in the first.
        """
        inner = shape[1:]
        grows = isinstance(self.sigma, nn.Parameter) and not self._shares_sigma
        if self.sigma.dim() == 0 and grows and inner:
            own = inner[-1:] if features_last else (inner[0], *(1,) * (len(inner) - 1))
            self.sigma.data = self.sigma.data.expand(own).clone()
        if self.sigma.dim() and not broadcasts_to(self.sigma.shape, inner):
            raise RecordingError(
                f"sigma of {name} has shape {tuple(self.sigma.shape)}, which does not fit a "
                f"current of shape {tuple(shape)}. A neuron that is shared by layers of "
                "different sizes needs a scalar sigma, and cannot learn it."
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "sigma")
        if saved is not None:
            if isinstance(self.sigma, nn.Parameter):
                self.sigma.data = self.sigma.data.new_empty(saved.shape)
            else:  # a learned sigma comes to a network where it is fixed
                self.sigma = saved.detach().clone().to(self.sigma)
                state_dict = {k: v for k, v in state_dict.items() if k != prefix + "sigma"}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def reset_state(self) -> None:
        """Sets the membrane to its initial state, as if no input had been seen."""
        raise NotImplementedError

    def reset_rows(self, rows: Tensor) -> None:
        """Sets some rows of what the neuron keeps to their initial state, also within a pass.

        Of a membrane that is handed in by hand, `mem * (1 - done)` does the same.

        Args:
            rows: (N,), true where a row starts anew.
        """
        raise NotImplementedError

    def _shared_rows(self, membrane: Tensor, rows: Tensor, rest: float) -> Tensor:
        """The membrane with some rows at rest; a recording follows the others on."""
        with torch.no_grad():
            reset = rows_of(rows, membrane)
            found = membrane.detach().masked_fill(reset, rest)
            if self._recorder is not None:
                kept = (~reset).to(membrane.dtype)
                self._recorder.partly_reset(self, membrane, found, kept)
        return found

    def detach_state(self) -> None:
        """Cuts the membrane off from the graph that made it."""
        raise NotImplementedError

    @property
    def membrane(self) -> Tensor | None:
        """What the last call left, (N, *); None if that is nothing, or a class does not say."""
        return None

    def _emit(self, spikes: Tensor) -> Tensor:
        return spikes if self._recorder is None else self._recorder.emit(self, spikes)

    def why_no_firing_probability(self) -> str | None:
        """Why a spike is not just the membrane above its threshold; None if it is."""
        raise NotImplementedError

    def unreachable(self) -> dict[str, str]:
        """Own parameters that the noise cannot teach anything, by name, and why."""
        return {}

    def why_biased(self) -> str | None:
        """Why the estimate would be biased for this neuron, whatever the options; None if not."""
        return None

    def why_not_pathwise(self) -> str | None:
        """Why what a membrane carries on is no smooth function of it, given its spike."""
        return self.why_no_firing_probability()

    @contextmanager
    def _cut(self) -> Iterator[None]:
        """While a learner records, no graph runs through a neuron."""
        if not self._learning:
            yield
            return
        check_grad_mode()
        with torch.no_grad():
            yield


def check_module(net: nn.Module) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"The network must be a torch.nn.Module, got {type(net).__name__}.")


def noisy_neurons(net: nn.Module) -> dict[str, NoisyNeuron]:
    """The noisy neurons of `net` by qualified name, each once, in order of registration.

    Raises:
        TypeError: `net` is no module.
    """
    check_module(net)
    return {name: m for name, m in net.named_modules() if isinstance(m, NoisyNeuron)}


@contextmanager
def noise_off(net: nn.Module) -> Iterator[nn.Module]:
    """Switches the noise of all noisy neurons in `net` off, and back to what it was at exit.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import noise_off, swap_neurons
        >>> net = swap_neurons(torch.nn.Sequential(snntorch.Leaky(beta=0.5)), sigma=1.0)
        >>> with noise_off(net):
        ...     spike, membrane = net(torch.tensor([[2.0, 0.5]]))
        >>> membrane
        tensor([[2.0000, 0.5000]])
    """
    before = {neuron: neuron.noise for neuron in noisy_neurons(net).values()}
    try:
        for neuron in before:
            neuron.noise = False
        yield net
    finally:
        for neuron, noise in before.items():
            neuron.noise = noise
