"""Puts noise around the activations of an ordinary torch network, in place, and takes it off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..neurons.ann import NoisyActivation

#: The activations of torch.nn that treat each number for itself; what else is there (the Softmax
#: family, GLU, MultiheadAttention) mixes features, and stays as it is.
ELEMENTWISE = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)


class Place(NamedTuple):
    """Where a module stands: the module that holds it, and under which name."""

    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        held = self.parent._modules[self.name]
        assert held is not None
        return held

    def put(self, module: nn.Module) -> None:
        self.parent._modules[self.name] = module
        if isinstance(self.parent, nn.TransformerEncoderLayer) and self.name == "activation":
            # Its fused inference goes by this number, past the module and its noise.
            kinds = isinstance(module, nn.ReLU), isinstance(module, nn.GELU)
            self.parent.activation_relu_or_gelu = kinds.index(True) + 1 if any(kinds) else 0


def activations(net: nn.Module) -> dict[str, Place]:
    """The places of all activations of torch.nn in `net` without noise, by qualified name.

    One that stands in several places is listed for each. Inside of a NoisyActivation, and of a
    parametrization, where it is part of a weight, an activation is none.
    """
    return {
        name: place
        for name, place in _places(net)
        if isinstance(place.module, ELEMENTWISE)
        and not isinstance(place.parent, (NoisyActivation, ParametrizationList))
    }


def wrapped(net: nn.Module) -> dict[str, Place]:
    """The places of all noisy activations in `net`, by qualified name."""
    return {name: p for name, p in _places(net) if isinstance(p.module, NoisyActivation)}


def wrap(places: dict[str, Place], levels: dict[str, Tensor | None], like: Tensor | None) -> None:
    """Puts a NoisyActivation of its own around the activation in each place."""
    for name, place in places.items():
        noisy = NoisyActivation(place.module)
        noisy._init_noise(levels[name], like)
        place.put(noisy.train(place.module.training))


def unwrap(places: dict[str, Place]) -> None:
    """Puts the activations back."""
    for place in places.values():
        noisy = place.module
        assert isinstance(noisy, NoisyActivation)
        place.put(noisy.activation)


def _places(net: nn.Module) -> Iterator[tuple[str, Place]]:
    for prefix, parent in net.named_modules():
        for name, module in parent._modules.items():
            if module is not None:
                yield (f"{prefix}.{name}" if prefix else name), Place(parent, name)
