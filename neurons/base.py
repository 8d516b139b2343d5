"""What every noisy neuron has: its noise level, its noise, and the hook for a learner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..dynamics.kernels.noisy_lif.reference import Dynamics
from ..dynamics.lif import perturb
from ..errors import CurrentError, RecordingError, SwapError


@dataclass(frozen=True, eq=False)
class Current:
    """A summand of the drift that may come straight from a synapse.

    Attributes:
        value: What enters this step, (N, *).
        whole: The tensor that `value` is a time slice of, (T, N, *), if it is one.
        step: Which slice.
        gain: The factor of `value` in the drift; a scalar, or broadcasting to (*).
    """

    value: Tensor
    whole: Tensor | None = None
    step: int | None = None
    gain: float | Tensor = 1.0


@dataclass(frozen=True, eq=False)
class Lif:
    """A drift in closed form: `decay * (v - rest) + rest + gain * I`, with its resets.

    Attributes:
        dynamics: The resets.
        decay: A scalar, or broadcasting to (*).
        gain: The factor of the whole current, likewise.
        learns: Whether any of it is learnable, and gets its gradient through the drift's graph.
    """

    dynamics: Dynamics
    decay: float | Tensor = 1.0
    gain: float | Tensor = 1.0
    learns: bool = False


@dataclass(frozen=True, eq=False)
class Charge:
    """One charging of a membrane, before its noise.

    Attributes:
        currents: The summands of the drift that may come straight from synapses.
        drift: Computes m, (N, *), from the values of the currents. Whatever else it depends on, a
            learnable decay or a current with a memory, is part of its graph.
        threshold: Where the neuron fires.
        or_equal: Whether it fires at the threshold, too.
        state: The state that the drift was computed from, as the last call left it.
        carry: The derivative of the drift in the membrane that the last call left, given its
            spike; a scalar, or broadcasting to (*).
        wiped: Whether a spike leaves nothing of the membrane.
        jump: From what that membrane would be without a spike to what a spike adds to the drift.
        jumps: Whether the drift holds a reset that was decided on `state`.
        lif: The same drift in closed form, from `state` and the sum of the currents, where it
            has one.
    """

    currents: tuple[Current, ...]
    drift: Callable[..., Tensor]
    threshold: Tensor | float = 1.0
    or_equal: bool = False
    state: Tensor | None = None
    carry: float | Tensor = 0.0
    wiped: bool = False
    jump: Callable[[Tensor], float | Tensor] | None = None
    jumps: bool = False
    lif: Lif | None = None

    @property
    def carries(self) -> bool:
        """Whether the drift depends on the membrane that the last call left."""
        return isinstance(self.carry, Tensor) or self.carry != 0


@dataclass(frozen=True, eq=False)
class Sequence:
    """Several steps of a neuron at once.

    Attributes:
        current: What enters at each step, (T, N, *).
        state: The membrane that the sequence starts from, (N, *).
        lif: What the membrane does.
        threshold: Where the neuron fires.
    """

    current: Tensor
    state: Tensor
    lif: Lif
    threshold: Tensor | float


class Recorder(Protocol):
    """What is put into a neuron to give it its noise and to see what becomes of it."""

    learns: bool
    hides_membranes: bool
    hides_states: bool
    pending: bool
    binary: Collection[NoisyNeuron]

    def perturb(self, neuron: NoisyNeuron, charge: Charge) -> Tensor:
        """Returns the charged membrane with its noise; see `NoisyNeuron._perturb`."""
        ...

    def run(self, neuron: NoisyNeuron, sequence: Sequence) -> tuple[Tensor, Tensor] | None:
        """Spikes (T, N, *) of a whole sequence and the state after it; None: step by step."""
        ...

    def hold(self, current: Tensor) -> Tensor:
        """A current that the neuron keeps beyond its step; see `NoisyNeuron._hold`."""
        ...

    def leave(self, neuron: NoisyNeuron, state: Tensor) -> None:
        """Sees the state that a call leaves behind, where it is not the charged membrane."""
        ...

    def emit(self, neuron: NoisyNeuron, spikes: Tensor) -> Tensor:
        """Sees the spikes of a call, (N, *) or (T, N, *), and hands them on."""
        ...


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
    _fired: tuple[Tensor, int, Tensor, int] | None = None
    _shares_sigma: bool = False

    def _init_noise(self, sigma: float | Tensor, like: Tensor | None = None) -> None:
        value = checked_sigma(sigma)
        if like is not None:
            value = value.to(like.device, like.dtype)
        self.register_buffer("sigma", value, persistent=False)

    def extra_repr(self) -> str:
        sigma = self.sigma
        shown = f"{sigma.item():.4g}" if sigma.numel() == 1 else f"tensor{tuple(sigma.shape)}"
        return ", ".join(filter(None, [super().extra_repr(), f"sigma={shown}"]))

    def _perturb(self, charge: Charge) -> Tensor:
        """Charges the membrane and adds one draw of noise (Eq. 7).

        Returns:
            The membrane before it fires, (N, *). The one draw in it serves the spike, the
            reset and the membrane that is carried over.
        """
        if self._recorder is not None:
            return self._recorder.perturb(self, charge)
        drift = charge.drift(*(current.value for current in charge.currents))
        if not self.noise:
            return drift
        self._check_current(drift)
        return perturb(drift, self.sigma, torch.randn_like(drift))

    def _check_current(self, drift: Tensor) -> None:
        kind, sigma = type(self).__name__, self.sigma
        if not drift.is_floating_point():
            raise CurrentError(
                f"{kind} got a current of shape {tuple(drift.shape)} and dtype {drift.dtype}, to "
                "which no noise can be added. Call .float() on the input."
            )
        if sigma.dim() and not _broadcasts_to(sigma.shape, drift.shape[1:]):
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

    def _fit_sigma(self, name: str, drift: Tensor, features_last: bool) -> None:
        """Gives a learnable scalar its shape; an optimizer may hold the parameter already."""
        inner = drift.shape[1:]
        grows = isinstance(self.sigma, nn.Parameter) and not self._shares_sigma
        if self.sigma.dim() == 0 and grows and inner:
            shape = inner[-1:] if features_last else (inner[0], *(1,) * (len(inner) - 1))
            self.sigma.data = self.sigma.data.expand(shape).clone()
        if self.sigma.dim() and not _broadcasts_to(self.sigma.shape, inner):
            raise RecordingError(
                f"sigma of {name} has shape {tuple(self.sigma.shape)}, which does not fit a "
                f"current of shape {tuple(drift.shape)}. A neuron that is shared by layers of "
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

    def detach_state(self) -> None:
        """Cuts the membrane off from the graph that made it."""
        raise NotImplementedError

    @property
    def membrane(self) -> Tensor | None:
        """What the last call left, (N, *); None if that is nothing, or a class does not say."""
        return None

    def _emit(self, spikes: Tensor) -> Tensor:
        return spikes if self._recorder is None else self._recorder.emit(self, spikes)

    def _remember(self, membrane: Tensor, spikes: Tensor) -> None:
        """Keeps what a membrane was found to do, for who asks again in this pass."""
        spikes = spikes.detach()
        self._fired = (membrane, membrane._version, spikes, spikes._version)

    def _spikes_of(self, membrane: Tensor) -> Tensor | None:
        """The spikes that `membrane` was found to fire in this pass, if both are unchanged."""
        if self._fired is None or self._recorder is None:
            return None
        seen, version, spikes, spikes_version = self._fired
        same = seen.data_ptr() == membrane.data_ptr() and seen.shape == membrane.shape
        unchanged = version == membrane._version and spikes_version == spikes._version
        return spikes if same and unchanged else None

    def why_no_firing_probability(self) -> str | None:
        """Why a spike is not just the membrane above its threshold; None if it is."""
        raise NotImplementedError

    def unreachable(self) -> dict[str, str]:
        """Own parameters that the noise cannot teach anything, by name, and why."""
        return {}

    def why_biased(self) -> str | None:
        """Why the estimate would be biased for this neuron, whatever the options; None if not."""
        return None

    def why_not_conditional(self) -> str | None:
        """Why a spike does not tell all that the membrane leaves behind; None if it does."""
        raise NotImplementedError

    def why_not_pathwise(self) -> str | None:
        """Why what a membrane carries on is no smooth function of it, given its spike."""
        return self.why_no_firing_probability()

    @contextmanager
    def _cut(self) -> Iterator[None]:
        """While a learner records, no graph runs through a neuron."""
        if not self._learning:
            yield
            return
        if not torch.is_grad_enabled():
            raise RecordingError(
                "learner.record() needs grad mode for whatever lies between two noisy layers. "
                "Run the network inside it without torch.no_grad() or inference_mode()."
            )
        with torch.no_grad():
            yield


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False


def checked_sigma(sigma: float | Tensor) -> Tensor:
    """A copy of `sigma` as a floating-point tensor.

    Raises:
        SwapError: It is no real number, negative, or not finite.
    """
    try:
        value = torch.as_tensor(sigma).detach().clone()
    except (RuntimeError, TypeError, ValueError):
        value = None
    if value is None or value.is_complex():
        raise SwapError(f"sigma must be a real number or a tensor of them, got {sigma!r}.")
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if not torch.isfinite(value).all() or (value < 0).any():
        raise SwapError(f"sigma must be finite and not negative, got {sigma!r}.")
    return value


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
