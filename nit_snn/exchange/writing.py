"""From a network to a NIR graph."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from ..compat import loaded_neuron_families, require
from ..errors import ExchangeError
from ..neurons.base import noisy_neurons
from ..swap import restore_neurons, spiking_modules
from .obstacles import obstacle, refuse

Array = npt.NDArray[np.float64]


def to_nir(net: nn.Module, example: Tensor, *, dt: float = 1e-4) -> Any:
    """The NIR graph of a network, with the noise levels of its neurons.

    SpikingJelly's own exporter is used for its networks. snnTorch's is not: in snnTorch 1.0 it
    writes a reset to zero whatever the neuron's mechanism is.

    Args:
        net: A chain of Linear, Conv2d, AvgPool2d, Flatten and spiking neurons that makes one time
            step, an `nn.Sequential` say; noisy or not, with a learner or without. It is unchanged.
        example: What goes into it, (N, \\*), or (T, N, \\*) in SpikingJelly's step mode "m".
        dt: Duration of a time step, in seconds; both frameworks' importers expect 1e-4.

    Returns:
        A `nir.NIRGraph`, which `nir.write` puts into a file.

    Raises:
        ImportError: nir or nirtorch is not installed; the message names the extra.
        ExchangeError: NIR cannot express something; all such layers are named.

    Example::

        net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(
            beta=0.9, reset_mechanism="zero", init_hidden=True)), sigma=0.5)
        graph = to_nir(net, torch.rand(1, 4))
        nir.write("net.nir", graph)
        net = from_nir("net.nir", "snntorch")  # as noisy as before
    """
    require("nir", extra="nir")
    require("nirtorch", extra="nir")
    if dt <= 0:
        raise ExchangeError(f"dt is a duration in seconds, got {dt}.")
    plain, levels = _without_noise(net)
    chain = _chain(plain)
    refuse({name: why for name, module in chain if (why := obstacle(module))})
    if _family(plain) == "spikingjelly":
        exchange = require("spikingjelly.activation_based.nir_exchange", extra="spikingjelly")
        graph = exchange.export_to_nir(plain, example, dt=dt)
    else:
        graph = _graph(plain, chain, example, dt)
    inner = [n for n in graph.nodes.values() if type(n).__name__ not in ("Input", "Output")]
    names = {module: name for name, module in plain.named_modules()}
    for node, (_, module) in zip(inner, chain, strict=True):
        if names[module] in levels:
            level = levels[names[module]]  # nir.write takes no array without a dimension
            node.metadata["sigma"] = level if level.ndim else float(level)
    return graph


def _without_noise(net: nn.Module) -> tuple[nn.Module, dict[str, Array]]:
    """A copy with the framework's own neurons, and the noise levels that it had."""
    levels = {
        name: neuron.sigma.detach().cpu().numpy().astype(np.float64)
        for name, neuron in noisy_neurons(net).items()
    }
    # The last pass may have left states with a graph, which cannot be copied.
    states = {
        id(value): value.detach().clone()
        for module in net.modules()
        for held in (vars(module), module._buffers, vars(module).get("_memories", {}))
        for value in held.values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    plain = copy.deepcopy(net, states)
    if levels:
        restore_neurons(plain)
    if not spiking_modules(plain):
        raise ExchangeError("There is no spiking neuron of snnTorch or SpikingJelly in the network")
    return plain, levels


def _family(plain: nn.Module) -> str:
    kinds = {type(m).__module__.split(".")[0] for m in spiking_modules(plain).values()}
    if len(kinds) > 1:
        raise ExchangeError("The neurons of both frameworks in one network cannot be exported")
    return kinds.pop()


class _Tracer(fx.Tracer):
    """Looks into whatever holds other layers, and into no layer or neuron."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        neuron = any(family.is_spiking(type(m)) for family in loaded_neuron_families())
        return neuron or not any(True for _ in m.children())


def _chain(plain: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that the network puts its input through, one after the other, by name."""
    step = (
        "NIR describes one time step of a chain of layers. Give to_nir() the part of the network "
        "that makes a step, an nn.Sequential say, without a loop over time"
    )
    if plain in spiking_modules(plain).values():
        raise ExchangeError(f"{step}; this is a single neuron")
    try:
        traced = _Tracer().trace(plain)
    except Exception as error:  # whatever the forward does with what is no tensor
        raise ExchangeError(f"{step}. ({type(error).__name__}: {error})") from error
    chain: list[tuple[str, nn.Module]] = []
    last: fx.Node | None = None
    for node in traced.nodes:
        if node.op not in ("placeholder", "call_module", "output"):
            raise ExchangeError(f"{step}; this one calls {node.target}")
        if list(node.all_input_nodes) != ([] if last is None else [last]):
            raise ExchangeError(f"{step}; {node.name} does not just follow the layer before it")
        if node.op == "call_module":
            chain.append((str(node.name), plain.get_submodule(str(node.target))))
        last = node
    if len({module for _, module in chain}) < len(chain):
        raise ExchangeError(f"{step}; a layer occurs twice in this one")
    return chain


def _graph(plain: nn.Module, chain: list[tuple[str, nn.Module]], example: Tensor, dt: float) -> Any:
    """The graph of a network of snnTorch."""
    nir = require("nir", extra="nir")
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = tuple(inputs[0].shape[1:])

    for _, module in chain:
        module.register_forward_pre_hook(see)
    with torch.no_grad():
        plain(example)
    nodes = {"input": nir.Input(np.array(shapes[chain[0][1]]))}
    for name, module in chain:
        nodes[name] = _node(module, shapes[module], dt)
    last = list(nodes.values())[-1]
    nodes["output"] = nir.Output(last.output_type["output"])
    names = list(nodes)
    return nir.NIRGraph(nodes=nodes, edges=list(itertools.pairwise(names)))


def _node(module: Any, shape: tuple[int, ...], dt: float) -> Any:
    nir = require("nir", extra="nir")
    if isinstance(module, nn.Linear):
        weight = _array(module.weight)
        return (
            nir.Linear(weight) if module.bias is None else nir.Affine(weight, _array(module.bias))
        )
    if isinstance(module, nn.Conv2d):
        weight = _array(module.weight)
        bias = np.zeros(len(weight), weight.dtype) if module.bias is None else _array(module.bias)
        return nir.Conv2d(
            input_shape=shape[-2:],
            weight=weight,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=1,
            bias=bias,
        )
    if isinstance(module, nn.AvgPool2d):
        sizes = (module.kernel_size, module.stride, module.padding)
        return nir.AvgPool2d(*(np.broadcast_to(np.array(size), (2,)) for size in sizes))
    if isinstance(module, nn.Flatten):
        first, last = (d - 1 if d > 0 else d for d in (module.start_dim, module.end_dim))
        return nir.Flatten(np.array(shape), start_dim=first, end_dim=last)

    def full(value: Tensor) -> Array:
        return np.broadcast_to(_array(value).astype(np.float64), shape).copy()

    beta, threshold, zero = full(module.beta.clamp(0, 1)), full(module.threshold), np.zeros(shape)
    if (beta == 1).all():
        return nir.IF(r=np.full(shape, 1 / dt), v_threshold=threshold, v_reset=zero)
    tau = dt / (1 - beta)
    common = {"r": tau / dt, "v_leak": zero, "v_threshold": threshold, "v_reset": zero.copy()}
    if type(module).__name__ == "Leaky":
        return nir.LIF(tau=tau, **common)
    tau_syn = dt / (1 - full(module.alpha.clamp(0, 1)))
    return nir.CubaLIF(tau_mem=tau, tau_syn=tau_syn, w_in=tau_syn / dt, **common)


def _array(values: Tensor) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy().copy()
