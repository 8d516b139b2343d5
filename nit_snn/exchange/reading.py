"""From a NIR graph to a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..compat import require
from ..errors import ExchangeError
from ..swap import swap_neurons
from .layers import Builder, SnnTorch, SpikingJelly, one_or_all, tensor
from .obstacles import refuse

FRAMEWORKS: dict[str, Callable[[float], Builder]] = {
    "snntorch": SnnTorch,
    "spikingjelly": SpikingJelly,
}


def from_nir(graph: Any, framework: str, *, dt: float = 1e-4) -> nn.Sequential:
    """The network that a NIR graph describes, noisy if its metadata say so.

    Where a framework has no such neuron as it stands (another resistance, a rest that is not 0),
    one whose membrane is shifted and scaled takes its place, threshold and noise with it: it spikes
    alike.

    Args:
        graph: A `nir.NIRGraph`, or the path of a file.
        framework: "snntorch" or "spikingjelly": whose neurons it gets. snnTorch's keep their state
            themselves (`init_hidden=True`); SpikingJelly's are in step mode "s".
        dt: Duration of a time step, in seconds.

    Returns:
        A network that makes one time step, (N, \\*), its layers named as the nodes. Other
        structures than a chain are for the frameworks' own importers.

    Raises:
        ImportError: nir or the framework is not installed; the message names the extra.
        ExchangeError: The file cannot be read, the graph is no chain, or it holds what the
            framework cannot express; all such nodes are named.
    """
    nir = require("nir", extra="nir")
    if framework not in FRAMEWORKS:
        raise ExchangeError(f"framework must be one of {tuple(FRAMEWORKS)}, got {framework!r}.")
    if not hasattr(graph, "nodes"):
        graph = _read(nir, graph)
    build = FRAMEWORKS[framework](dt)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    levels: dict[str, Tensor] = {}
    obstacles: dict[str, str] = {}
    silent: list[str] = []
    for name, node in _nodes_in_order(graph):
        short = name.replace(".", "_")
        try:
            modules[short], scale = build(node)
            if scale is not None:
                if "sigma" in node.metadata:
                    levels[short] = tensor(one_or_all(np.asarray(node.metadata["sigma"]) / scale))
                else:
                    silent.append(name)
        except ExchangeError as error:
            obstacles[name] = str(error)
        except Exception as error:  # a node whose values are not of the kind or shape they must be
            obstacles[name] = f"its values make no layer: {error}"
    refuse(obstacles)
    try:
        net = nn.Sequential(modules)
    except KeyError as error:
        raise ExchangeError(f"A node has a name that no layer can have: {error}.") from error
    if levels and silent:
        raise ExchangeError(f"These neurons, unlike the others, have no sigma: {', '.join(silent)}")
    return swap_neurons(net, levels) if levels else net  # type: ignore[return-value]


def _read(nir: Any, path: Any) -> Any:
    try:
        return nir.read(path)
    except Exception as error:  # whatever HDF5 and nir make of a file that is none, or damaged
        raise ExchangeError(
            f"{path} cannot be read as a NIR graph ({type(error).__name__}: {error})."
        ) from error


def _nodes_in_order(graph: Any) -> list[tuple[str, Any]]:
    """The nodes of a chain between its input and its output."""
    after: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in dict.fromkeys(map(tuple, graph.edges)):
        if source not in after:
            raise ExchangeError(f"The graph has an edge from {source!r}, which is no node of it.")
        after[source].append(target)
    begin = [name for name, node in graph.nodes.items() if type(node).__name__ == "Input"]
    names = begin[:1]
    while names and len(after.get(names[-1], ())) == 1 and len(names) <= len(after):
        names += after[names[-1]]
    ends = bool(names) and type(graph.nodes.get(names[-1])).__name__ == "Output"
    if len(begin) != 1 or not ends or set(names) != set(graph.nodes):
        raise ExchangeError(
            "The graph is not a chain from one input to one output. The frameworks' own importers "
            "take other structures: snntorch.import_nir, spikingjelly's nir_exchange"
        )
    return [(name, graph.nodes[name]) for name in names[1:-1]]
