"""Layers of the two frameworks, from the nodes of a NIR graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..compat import require
from ..errors import ExchangeError

Array = npt.NDArray[np.float64]


class Builder:
    """Makes layers of a framework from nodes.

    Args:
        dt: Duration of a time step.
        layers: Where Linear, Conv2d, AvgPool2d and Flatten are.
    """

    def __init__(self, dt: float, layers: Any) -> None:
        self.dt = dt
        self.layers = layers

    def __call__(self, node: Any) -> tuple[nn.Module, Array | None]:
        """The layer, and for a neuron what one unit of its membrane is in the node's units."""
        kind = type(node).__name__
        makers: dict[str, Callable[[Any], nn.Module]] = {
            "Linear": self._linear,
            "Affine": self._linear,
            "Conv2d": self._conv,
            "AvgPool2d": self._pool,
            "Flatten": self._flatten,
        }
        if kind in makers:
            return makers[kind](node), None
        if kind not in ("IF", "LIF", "CubaLIF"):
            raise ExchangeError(f"no layer for a node of kind {kind}")
        return self._neuron(node, kind)

    def _neuron(self, node: Any, kind: str) -> tuple[nn.Module, Array]:
        raise NotImplementedError

    def _linear(self, node: Any) -> nn.Module:
        bias = getattr(node, "bias", None)
        outputs, inputs = node.weight.shape
        layer: nn.Module = self.layers.Linear(inputs, outputs, bias=bias is not None)
        return _filled(layer, node.weight, bias)

    def _conv(self, node: Any) -> nn.Module:
        if int(node.groups) != 1:
            raise ExchangeError("its groups, which readers of NIR disagree about")
        outputs, inputs, *kernel = node.weight.shape
        padding = node.padding
        if isinstance(padding, bytes):
            padding = padding.decode()
        layer: nn.Module = self.layers.Conv2d(
            inputs,
            outputs,
            tuple(kernel),
            stride=_pair(node.stride),
            padding=padding if isinstance(padding, str) else _pair(padding),
            dilation=_pair(node.dilation),
        )
        return _filled(layer, node.weight, node.bias)

    def _pool(self, node: Any) -> nn.Module:
        sizes = (node.kernel_size, node.stride, node.padding)
        layer: nn.Module = self.layers.AvgPool2d(*(_pair(size) for size in sizes))
        return layer

    def _flatten(self, node: Any) -> nn.Module:
        first, last = (int(d) + 1 if d >= 0 else int(d) for d in (node.start_dim, node.end_dim))
        layer: nn.Module = self.layers.Flatten(first, last)
        return layer

    def _scale(self, node: Any, kind: str) -> Array:
        """What a current of 1 adds to the membrane in one step."""
        if kind == "IF":
            gain = node.r * self.dt
        elif kind == "LIF":
            gain = node.r * self.dt / node.tau
        else:
            gain = node.r * self.dt / node.tau_mem * node.w_in * self.dt / node.tau_syn
        if not (gain > 0).all():
            raise ExchangeError("a resistance that is not positive")
        return np.asarray(gain, np.float64)

    def _rest(self, node: Any, kind: str) -> Array:
        """Where the membrane rests, which has to be where it is reset to."""
        rest = np.asarray(node.v_reset if kind == "IF" else node.v_leak, np.float64)
        if not np.allclose(rest, node.v_reset):
            raise ExchangeError("it is reset to another level than the one it leaks to")
        return rest

    def _decay(self, tau: Any) -> Array:
        if not (tau >= self.dt * (1 - 1e-9)).all():
            raise ExchangeError("a time constant below the time step")
        return np.asarray(1 - self.dt / tau, np.float64).clip(0)


class SnnTorch(Builder):
    def __init__(self, dt: float) -> None:
        super().__init__(dt, nn)
        self.snn = require("snntorch", extra="snntorch")

    def _neuron(self, node: Any, kind: str) -> tuple[nn.Module, Array]:
        scale = self._scale(node, kind)
        options = {
            "threshold": one_or_all((node.v_threshold - self._rest(node, kind)) / scale),
            "reset_mechanism": "zero",
            "init_hidden": True,
        }
        if kind == "IF":
            return self.snn.Leaky(beta=1.0, **options), scale
        if kind == "LIF":
            return self.snn.Leaky(beta=one_or_all(self._decay(node.tau)), **options), scale
        alpha, beta = (one_or_all(self._decay(tau)) for tau in (node.tau_syn, node.tau_mem))
        return self.snn.Synaptic(alpha=alpha, beta=beta, reset_delay=False, **options), scale


class SpikingJelly(Builder):
    def __init__(self, dt: float) -> None:
        jelly = require("spikingjelly.activation_based.layer", extra="spikingjelly")
        super().__init__(dt, jelly)
        self.neurons = require("spikingjelly.activation_based.neuron", extra="spikingjelly")

    def _neuron(self, node: Any, kind: str) -> tuple[nn.Module, Array]:
        if kind == "CubaLIF":
            raise ExchangeError("SpikingJelly's CUBALIFNode has no noisy counterpart")
        scale = np.unique(self._scale(node, kind))
        levels = (node.v_threshold, self._rest(node, kind), *([node.tau] if kind == "LIF" else []))
        if len(scale) > 1 or any(len(np.unique(level)) > 1 for level in levels):
            raise ExchangeError("parameters that differ from neuron to neuron")
        threshold, rest = (float(np.ravel(level)[0]) for level in levels[:2])
        if kind == "IF":
            own = bool(np.isclose(scale, 1.0))
            options = _levels(threshold, rest) if own else _levels((threshold - rest) / scale, 0.0)
            return self.neurons.IFNode(**options), np.ones(1) if own else scale
        tau = float(np.ravel(node.tau)[0]) / self.dt
        if tau <= 1:
            raise ExchangeError("a time constant of one step, which LIFNode does not take")
        driven = bool(np.isclose(np.ravel(node.r)[0], 1.0))
        own = driven or bool(np.isclose(scale, 1.0))
        options = _levels(threshold, rest) if own else _levels((threshold - rest) / scale, 0.0)
        neuron = self.neurons.LIFNode(tau=tau, decay_input=driven, **options)
        return neuron, np.ones(1) if own else scale


def _levels(threshold: Any, rest: float) -> dict[str, float]:
    return {"v_threshold": float(np.ravel(threshold)[0]), "v_reset": rest}


def _filled(layer: Any, weight: Any, bias: Any) -> nn.Module:
    layer.weight.data = tensor(weight)
    if bias is not None:
        layer.bias.data = tensor(bias)
    return layer  # type: ignore[no-any-return]


def _pair(size: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(size), (2,)).tolist()
    return first, second


def one_or_all(values: Array) -> Any:
    """A number if all are the same, else a tensor."""
    return float(values.flat[0]) if len(np.unique(values)) == 1 else tensor(values)


def tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.get_default_dtype())
