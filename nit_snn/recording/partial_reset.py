"""A membrane of which some rows were set to a constant between two steps: `mem * (1 - done)`.

Where it is kept, the next step starts from what the last one left, and its derivative is carried
on; where it is not, the past is cut off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .places import Left
from .provenance import Seen, unchanged
from .spike_node import SpikeNode
from .thresholds import Lifted
from .trace import LayerTrace

_MOST_NODES = 32
#: Which output of a segment's node is the membrane.
MEMBRANE = 1


def partly_reset(layer: LayerTrace, state: Tensor | None) -> Left | None:
    """What left a membrane that was partly reset since, if that is all that happened to it.

    It is found by the graph between them, which must lead nowhere else, and by values that are the
    same wherever the derivative is 1; elsewhere it has to be 0.

    Args:
        layer: The layer.
        state: The membrane that a step starts from, (N, *).
    """
    if state is None or state.grad_fn is None:
        return None
    ends = _ends(state)
    if ends is None or len(ends) != 1:
        return None
    ((node, output),) = ends
    for left in layer.left:
        known = unchanged([left.state])
        if known is None or not _left(left, node, output):
            continue
        held = known[0]
        edge = torch.autograd.graph.GradientEdge(node, output)
        (kept,) = torch.autograd.grad(state, edge, torch.ones_like(state), retain_graph=True)
        if kept is None or kept.shape != state.shape or held.shape != state.shape:
            return None
        binary = bool(((kept == 0) | (kept == 1)).all())
        same = binary and torch.equal(kept * held, kept * state.detach())
        return after_reset(left, state, kept) if same else None
    return None


def after_reset(left: Left, state: Tensor, kept: Tensor) -> Left:
    """The same step's membrane, after rows of it were reset.

    Args:
        left: What left it.
        state: What it is now, (N, *).
        kept: 1 where it is as it was, else 0; broadcasts to (N, *).
    """
    both = kept if left.kept is None else kept * left.kept
    lift = None if left.lift is None else left.lift * kept
    return Left(Seen(state), left.segment, None, both, lift, left.token)


def _left(left: Left, node: Any, output: int) -> bool:
    """Whether an output of a graph's node is the membrane that a step has left."""
    if node._forward_cls is Lifted:
        return left.token is node.token
    return left.segment.node is node.state and output == MEMBRANE


def _ends(state: Tensor) -> set[tuple[Any, int]] | None:
    """Where the graph of a membrane ends: at spikes and membranes; None for anything else."""
    nodes: list[tuple[Any, int]] = [(state.grad_fn, state.output_nr)]
    ends, seen = set[tuple[Any, int]](), set[Any]()
    while nodes:
        node, output = nodes.pop()
        if node is None:
            continue
        if getattr(type(node), "_forward_cls", None) in (SpikeNode, Lifted):
            ends.add((node, output))
        elif node.name() == "torch::autograd::AccumulateGrad" or len(seen) > _MOST_NODES:
            return None
        elif node not in seen:
            seen.add(node)
            nodes += node.next_functions
    return ends
