"""The surrogate derivatives that are compared, and how a network runs backward through each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...compat import require
from ...errors import AuditError
from ...neurons.base import NoisyNeuron, noisy_neurons
from ...swap import spiking_modules

Neuron = TypeVar("Neuron", bound=nn.Module)
Surrogate = Callable[[Tensor], Tensor]
#: The derivative of each noisy neuron that has one to choose.
Candidate = dict[NoisyNeuron, Surrogate]

OWN = "own"
NOISE_DENSITY = "noise density"
_ATTRIBUTES = {"spike_grad": "snntorch", "surrogate_function": "spikingjelly"}
_USUAL = {
    "snntorch": (
        "snntorch.surrogate",
        ("atan", "fast_sigmoid", "sigmoid", "triangular", "straight_through_estimator"),
    ),
    "spikingjelly": (
        "spikingjelly.activation_based.surrogate",
        ("ATan", "Sigmoid", "PiecewiseQuadratic", "PiecewiseExp", "Erf"),
    ),
}


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, excess: Tensor, derivative: Surrogate) -> Tensor:
        ctx.save_for_backward(excess)
        ctx.derivative = derivative
        return (excess > 0).to(excess.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.derivative(ctx.saved_tensors[0]), None


def _with_derivative(derivative: Surrogate) -> Surrogate:
    """A spike above zero, with this derivative."""

    def spike(excess: Tensor) -> Tensor:
        found: Tensor = _Spike.apply(excess, derivative)
        return found

    return spike


def noise_density(sigma: float | Tensor) -> Surrogate:
    """A surrogate whose derivative is `phi(x / sigma) / sigma`, for either framework.

    `P(spike) = Phi((m - threshold) / sigma)`, and this is its derivative in the drift m. So in a
    network without noise it gives one layer the exact gradient of the expected spike.

    Args:
        sigma: Standard deviation of the noise, a scalar or broadcasting to the membrane.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0], requires_grad=True)
        >>> noise_density(1.0)(x).backward()
        >>> x.grad
        tensor([0.3989])
    """

    def density(excess: Tensor) -> Tensor:
        level = torch.as_tensor(sigma, dtype=excess.dtype, device=excess.device).detach()
        return (-0.5 * (excess / level).square()).exp() / (math.sqrt(2 * math.pi) * level)

    return _with_derivative(density)


def rectangle(width: float) -> Surrogate:
    """A surrogate whose derivative is `1 / width` within half a width of the threshold, else 0.

    That of STBP's papers (Wu et al. 2018), for either framework. Where no membrane comes so near to
    its threshold nothing of a loss gets through.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.4, 0.6], requires_grad=True)
        >>> rectangle(1.0)(x).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """

    return _with_derivative(lambda excess: (excess.abs() < width / 2) / width)


def atan(alpha: float) -> Surrogate:
    """`alpha / 2 / (1 + (pi alpha x / 2)^2)`, the usual surrogate of both frameworks, for either.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0], requires_grad=True)
        >>> atan(2.0)(x).backward()
        >>> x.grad
        tensor([1.])
    """
    half = alpha / 2
    return _with_derivative(lambda excess: half / (1 + (math.pi * half * excess).square()))


class Switch:
    """Stands in for a neuron's surrogate: spikes as its own do, derivatives as whichever is chosen.

    One forward pass then serves all candidates: they see the same spikes and membranes.
    """

    def __init__(self, own: Surrogate) -> None:
        self.own = own
        self.chosen = own

    def __call__(self, excess: Tensor) -> Tensor:
        return _Switched.apply(excess, self)


class _Switched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, excess: Tensor, switch: Switch) -> Tensor:
        ctx.save_for_backward(excess)
        ctx.switch = switch
        return switch.own(excess)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _pulled_back(ctx.switch.chosen, ctx.saved_tensors[0], gradients[0]), None


def _pulled_back(surrogate: Surrogate, excess: Tensor, cotangent: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = excess.detach().requires_grad_()
        spikes = surrogate(leaf)
        return torch.autograd.grad(spikes, leaf, cotangent.to(spikes.dtype))[0]


@contextmanager
def switched(net: nn.Module) -> Iterator[Callable[[Mapping[Any, Surrogate]], None]]:
    """Puts switches in the place of all surrogates of `net`, of plain neurons, too.

    Yields:
        Chooses a derivative for each neuron in the backward passes that follow.
    """
    neurons = with_surrogate(spiking_modules(net).values())
    switches = {n: Switch(getattr(n, a)) for n, a in neurons.items()}

    def choose(candidate: Mapping[Any, Surrogate]) -> None:
        for neuron, switch in switches.items():
            switch.chosen = candidate[neuron]

    try:
        for neuron, switch in switches.items():
            _replace(neuron, switch)
        yield choose
    finally:
        for neuron, switch in switches.items():
            _replace(neuron, switch.own)


def _replace(neuron: nn.Module, surrogate: Any) -> None:
    """SpikingJelly's surrogates are submodules, ours are not: torch refuses to assign over one."""
    name = next(a for a in _ATTRIBUTES if hasattr(neuron, a))
    delattr(neuron, name)
    setattr(neuron, name, surrogate)


def surrogate_attributes(net: nn.Module) -> dict[NoisyNeuron, str]:
    """The noisy neurons that have a surrogate, and what their framework calls it."""
    return with_surrogate(noisy_neurons(net).values())


def with_surrogate(neurons: Iterable[Neuron]) -> dict[Neuron, str]:
    """Those of some neurons that have a surrogate, and what their framework calls it."""
    return {n: name for n in neurons for name in _ATTRIBUTES if hasattr(n, name)}


def candidates(
    net: nn.Module, surrogates: Mapping[str, Surrogate] | None
) -> tuple[dict[str, Candidate], str | None]:
    """What is compared, by name, and which of them the network's own is, if it has a derivative.

    Its own goes first, under the name of the one with the same derivative if there is one.

    Args:
        net: A network of noisy neurons.
        surrogates: The user's, or None for the framework's usual ones and the noise density.

    Raises:
        AuditError: There is nothing to compare, or one of them has no derivative.
    """
    neurons = surrogate_attributes(net)
    given = _usual(neurons) if surrogates is None else _checked(surrogates, neurons)
    found: dict[str, Candidate] = {name: dict.fromkeys(neurons, s) for name, s in given.items()}
    for name, candidate in found.items():
        if not _has_derivative(candidate):
            raise AuditError(f"The surrogate {name!r} has no derivative in the membrane.")
    if surrogates is None and neurons:
        found[NOISE_DENSITY] = {neuron: noise_density(neuron.sigma) for neuron in neurons}
    own: Candidate = {neuron: getattr(neuron, name) for neuron, name in neurons.items()}
    if not _has_derivative(own):
        if not found:
            raise AuditError("Nothing to compare: the network's own spikes have no derivative.")
        return found, None
    name = next((name for name, other in found.items() if _same_derivative(own, other)), OWN)
    return {name: own, **{other: c for other, c in found.items() if other != name}}, name


def _checked(
    surrogates: Mapping[str, Surrogate], neurons: Mapping[NoisyNeuron, str]
) -> Mapping[str, Surrogate]:
    if OWN in surrogates:
        raise AuditError(f"{OWN!r} is the name of the network's own surrogate; take another.")
    if surrogates and not neurons:
        raise AuditError(
            "No noisy neuron of this network has a surrogate that could be exchanged; leave "
            "surrogates out to look at its own derivatives."
        )
    return surrogates


def _usual(neurons: Mapping[NoisyNeuron, str]) -> dict[str, Surrogate]:
    usual: dict[str, Surrogate] = {}
    for framework in dict.fromkeys(_ATTRIBUTES[name] for name in neurons.values()):
        module, names = _USUAL[framework]
        library = require(module, extra=framework)
        usual.update({name: getattr(library, name)() for name in names})
    return usual


def _has_derivative(candidate: Candidate) -> bool:
    try:
        return all(_derivative(s).shape == _GRID.shape for s in _distinct(candidate))
    except RuntimeError:  # autograd's: there is no graph
        return False


def _same_derivative(a: Candidate, b: Candidate) -> bool:
    pairs = {(id(a[n]), id(b[n])): (a[n], b[n]) for n in a}.values()
    try:
        return all(torch.allclose(_derivative(x), _derivative(y)) for x, y in pairs)
    except RuntimeError:  # a noise density whose sigma, one per neuron, does not fit the grid
        return False


def _distinct(candidate: Candidate) -> list[Surrogate]:
    return list({id(surrogate): surrogate for surrogate in candidate.values()}.values())


_GRID = torch.linspace(-3.0, 3.0, 60)  # even: no point lies on a threshold


def _derivative(surrogate: Surrogate) -> Tensor:
    return _pulled_back(surrogate, _GRID, torch.ones_like(_GRID))
