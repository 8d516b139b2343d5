"""Losses without a derivative: the likelihood ratio of the last layers takes its place.

    f = A score,    g = W^T f,    f' = g phi(b) / w + ...

The last layers are those that the network's outputs are made of. They are few neurons, and their
likelihood ratio has little variance. From their drifts on, the walk back through the spikes is that
of any other loss (see `nit_snn.estimators.surrogate`). What a loss owes to the spikes of earlier
layers directly, past the outputs, is left out; the residual has it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..recording.spike_node import NodeState
from ..recording.trace import LayerTrace, PassTrace
from .scores import LayerCotangents


def last_layers(trace: PassTrace, outputs: Tensor) -> list[LayerTrace]:
    """The layers whose spikes the network's outputs are made of, given the outputs' sum."""
    ledger, found = trace.ledger, set()
    assert ledger is not None
    places = {segment.node: layer for layer in trace.active for segment in layer.segments}

    def step(
        node: NodeState, spikes: Tensor | None, membrane: Tensor | None, later: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if spikes is not None or membrane is not None:
            found.add(places[node])
        return None, None

    ledger.go(outputs, step)
    return [layer for layer in trace.active if layer in found]


def sum_of_outputs(trace: PassTrace) -> Tensor | None:
    """Something that depends on all that the network has returned; None if nothing was recorded."""
    outputs = [output.sum() for output in trace.outputs if output.requires_grad]
    return torch.stack(outputs).sum() if outputs else None


def by_node(parts: Iterable[LayerCotangents]) -> dict[NodeState, Tensor] | None:
    """f of all segments of some layers, in their own shapes; None if some have none."""
    found: dict[NodeState, list[Tensor]] = {}
    for part in parts:
        for chunk in sorted(part.chunks, key=lambda chunk: chunk.steps.start):
            for segment, own in zip(
                chunk.segments,
                [chunk.values] if chunk.segments[0].several else chunk.values,
                strict=True,
            ):
                if segment.node is not None:
                    found.setdefault(segment.node, []).append(own)
        for segment in part.layer.segments:
            if segment.node is not None and segment.node not in found:
                return None
    several = {s.node: s.several for part in parts for s in part.layer.segments}
    return {node: torch.cat(own) if several[node] else own[0] for node, own in found.items()}
