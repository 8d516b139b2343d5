"""Whose noise reaches whose loss: asked of the graph, by a derivative for some rows alone.

In the first pass, and again when the loss has another form, a cotangent that is zero but for some
rows goes back from the losses to the spikes that they read, and from the current of each neuron to
the spikes before. Where it arrives is kept as `Evidence`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..dynamics.executor import Moved
from ..dynamics.lif import MembraneUpdate
from ..validation.passes import check_replicas
from .segment import Segment
from .spike_node import Ledger, NodeState, probed

#: How many calls of a neuron are looked at, and how many currents are kept for comparison.
_CALLS, _KEPT = 2, 8
_READING = {Tensor.numpy, Tensor.__array__, Tensor.__float__, Tensor.__int__}


class WithoutGraph(TorchFunctionMode):
    """Inside, numbers can be read of a tensor that has a graph for the sake of a probe alone."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _READING:
            args = (args[0].detach(), *args[1:])
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class Evidence:
    """Where a cotangent of some rows has arrived.

    Attributes:
        reader: The layer whose current was asked; None for the losses.
        asked: Which of its rows, or of the losses, (N,).
        touched: By the name of each layer whose spikes it has reached: along each dimension of
            (N, *), at which places.
    """

    reader: str | None
    asked: Tensor
    touched: dict[str, list[Tensor]]


class RowProbe:
    """What one pass shows of its rows.

    Args:
        ledger: That of the spikes' nodes; None where no estimator asks for their graph.
        seed: Names the rows that are asked.
        replicas: C.
        expanded: The numbers of rows that `expand` has made.

    Attributes:
        evidence: What was found.
        first: The name of the first layer.
        currents: Some of its currents, (N, *), into which no noise has come.
    """

    def __init__(
        self, ledger: Ledger | None, seed: int, replicas: int, expanded: Collection[int]
    ) -> None:
        self.evidence: list[Evidence] = []
        self.first: str | None = None
        self.currents: list[Tensor] = []
        self._ledger = ledger or Ledger("last")
        self._replicas, self._expanded = replicas, expanded
        self._names: dict[NodeState, str] = {}
        self._random = torch.Generator().manual_seed(seed)

    def emit(self, layer: str, segment: Segment, moved: Moved) -> Moved:
        """Remembers a layer's node, or gives its spikes one for this pass alone."""
        if segment.node is not None:
            self._names[segment.node] = layer
        elif moved.spikes is not None:
            node = NodeState(self._ledger, segment.several)
            self._names[node] = layer
            spikes = probed(moved.spikes, node)
            return Moved(moved.membrane, spikes, moved.state, moved.packed)
        return moved

    def look(self, layer: str, calls: int, update: MembraneUpdate, drift: Tensor | None) -> None:
        """Asks the current of a neuron, before its step.

        Args:
            layer: Its name.
            calls: How many steps it has made.
            update: The step, with currents (N, *), or (T, N, *) of several.
            drift: Its drift, if that is known by now.

        Raises:
            RecordingError: The batch lies along another dimension.
        """
        currents, several = [current.value for current in update.currents], update.several
        if not currents and drift is not None:
            currents = [drift]
        if self.first is None:
            self.first = layer
        if layer == self.first and len(self.currents) < _KEPT:
            own = [x.detach()[:_KEPT] if several else x.detach()[None] for x in currents]
            self.currents += sum(own[1:], own[0]).clone().unbind(0)
            check_replicas(layer, self.currents, self._replicas, self._expanded)
        followed = [current for current in currents if current.requires_grad]
        if calls >= _CALLS or not followed:
            return
        rows = currents[0].shape[int(several)]
        for asked in (self._half(rows), self._one(rows)):
            self._ask(layer, asked, followed, int(several))

    def look_at_losses(self, losses: Tensor, times: int) -> None:
        """Asks the losses, (U,) or (T, U), as often for other rows."""
        if not losses.requires_grad:
            return
        for _ in range(times):
            self._ask(None, self._half(losses.shape[-1]), [losses], losses.dim() - 1)

    def _ask(self, reader: str | None, asked: Tensor, values: Sequence[Tensor], dim: int) -> None:
        if bool(asked.all()):
            return
        found: dict[str, list[Tensor]] = {}

        def note(state: NodeState, spikes: Tensor | None, membrane: Tensor | None) -> None:
            name = self._names.get(state)
            if spikes is not None and state.several:
                _merge(found, name, [_nonzero(step) for step in spikes])
            elif spikes is not None:
                _merge(found, name, [_nonzero(spikes)])
            if membrane is not None:
                _merge(found, name, [_nonzero(membrane)])

        cotangents = [self._cotangent(value, asked, dim) for value in values]
        self._ledger.probe = note
        try:
            torch.autograd.grad(
                values, self._ledger.anchor, cotangents, retain_graph=True, allow_unused=True
            )
        except RuntimeError:
            return  # what cannot be differentiated says nothing, and may be right all the same
        finally:
            self._ledger.probe = None
        self.evidence.append(Evidence(reader, asked, found))

    def _cotangent(self, value: Tensor, asked: Tensor, dim: int) -> Tensor:
        """Random: a sum of ones would get lost in a normalisation, for instance."""
        shape = [1] * value.dim()
        shape[dim] = len(asked)
        drawn = torch.rand(value.shape[dim:], generator=self._random) + 0.5
        own = drawn * asked.view(shape[dim:])
        return own.to(value).expand_as(value)

    def _half(self, rows: int) -> Tensor:
        """About half of the rows, at least one."""
        asked = torch.rand(rows, generator=self._random) < 0.5
        return asked if asked.any() and not asked.all() else self._one(rows)

    def _one(self, rows: int) -> Tensor:
        asked = torch.zeros(rows, dtype=torch.bool)
        if rows:
            asked[int(torch.randint(rows, (), generator=self._random))] = True
        return asked


def _nonzero(gradient: Tensor) -> Tensor:
    """Where a derivative has arrived; what is not finite says nothing."""
    return (gradient != 0) & gradient.isfinite()


def _merge(found: dict[str, list[Tensor]], name: str | None, arrived: list[Tensor]) -> None:
    if name is None:
        return
    for own in arrived:
        places = [
            own.transpose(0, dim).flatten(1).any(1).cpu() if own.dim() > 1 else own.cpu()
            for dim in range(own.dim())
        ]
        held = found.get(name)
        if held is None:
            found[name] = places
        elif [len(p) for p in held] == [len(p) for p in places]:
            found[name] = [a | b for a, b in zip(held, places, strict=True)]
