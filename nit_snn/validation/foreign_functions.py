"""Derivatives of the user's own in the graph in front of a noisy layer: surrogates, most likely.

What lies between two noisy layers is differentiated by autograd, so a home-made neuron there, or a
surrogate called by hand, would bring its surrogate gradient into the estimate. It shows as a
`torch.autograd.Function` that is not torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn


class _Segment(Protocol):
    inputs: Any
    drift: Tensor | None


class _Layer(Protocol):
    name: str
    segments: Any


def custom_function(node: Any) -> type | None:
    """The `torch.autograd.Function` that a node of a graph is of, if it is not torch's own."""
    kind = getattr(type(node), "_forward_cls", None)
    own = kind is None or kind.__module__.split(".")[0] in ("torch", "nit_snn")
    return None if own else kind


def custom_functions(root: Tensor) -> list[type]:
    """Those in the graph of a tensor."""
    return [kind for _, kind in _walk(root, {}, set())]


def _walk(root: Tensor, made: Mapping[Any, str], seen: set[Any]) -> Iterator[tuple[str, type]]:
    """The custom functions in a graph, each with the module that has made what it is part of.

    Args:
        root: A tensor with a graph.
        made: The modules that have made some nodes, by node.
        seen: Nodes that need not be looked at again; it is added to.
    """
    nodes: list[tuple[Any, str]] = [(root.grad_fn, "")]
    while nodes:
        node, name = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = made.get(node, name)
        kind = custom_function(node)
        if kind is not None:
            yield name, kind
        nodes += [(following, name) for following, _ in node.next_functions]


@contextmanager
def outputs_by_module(net: nn.Module) -> Iterator[dict[Any, str]]:
    """Inside, the graph's nodes of all that modules return are put down with their names.

    Modules of torch are left out; the innermost one counts.
    """
    made: dict[Any, str] = {}

    def look(name: str, output: Any) -> None:
        for each in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(each, Tensor) and each.grad_fn is not None:
                made.setdefault(each.grad_fn, name)

    handles = [
        module.register_forward_hook(
            lambda m, _, output, n=name: look(f"{n} ({type(m).__name__})", output)
        )
        for name, module in net.named_modules()
        if name and not type(module).__module__.startswith("torch.")
    ]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def before_noisy_layers(layers: Iterable[_Layer], made: Mapping[Any, str]) -> dict[str, str]:
    """Custom functions in front of noisy layers: what, and in front of which.

    Args:
        layers: What was recorded of the noisy layers.
        made: See `outputs_by_module`.
    """
    found: dict[str, str] = {}
    seen: set[Any] = set()
    for layer in layers:
        for root in _roots(layer.segments):
            for name, kind in _walk(root, made, seen):
                found.setdefault(
                    f"{kind.__name__} in {name}" if name else kind.__name__, layer.name
                )
    return found


def _roots(segments: Iterable[_Segment]) -> Iterator[Tensor]:
    for segment in segments:
        if segment.drift is not None:
            yield segment.drift
        for each in segment.inputs:
            if each.graph is not None:
                yield each.graph
