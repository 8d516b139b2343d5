"""What stands for a layer's spikes in the graph of whatever reads them.

A noisy neuron's spikes have no derivative, and no gradient is written through them. But where the
loss has a derivative in the spikes, an estimator may ask for it (see `nit_snn.estimators.credit`).
Its *walk* is a backward pass from the losses to the spikes of the last layer, and further. At each
node the estimator says what goes on:

- "last": nothing.
- "layers": what it makes of the derivative in the spikes goes on to the currents of the same step,
  and so from layer to layer within a time step.
- "time": so does what comes from later steps, through the membrane and through its reset.

Nodes of one neuron's steps hang together, so that a walk comes to a step after all later ones. Any
other backward pass stops at the spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

REACHES = ("last", "layers", "time")
_ENDS = ("SpikeNodeBackward", "_ProbedBackward")


#: What a node does in a walk: from its state and the derivatives in its spikes, in its membranes,
#: and of the step after its last one, to what goes on to its currents and to the step before.
Walk = Callable[
    ["NodeState", Tensor | None, Tensor | None, Tensor | None],
    tuple[Tensor | None, Tensor | None],
]


@dataclass(eq=False)
class Ledger:
    """Which walk is under way, and how far one goes.

    Attributes:
        reach: One of `REACHES`.
        anchor: A scalar that every node leads to, so that a backward pass to it visits all.
        walk: The one that is under way; None stops any other backward pass.
        probe: What is told where a backward pass arrives that asks for nothing else: the node, and
            the derivatives in its spikes and membranes.
    """

    reach: str
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    walk: Walk | None = None
    probe: Callable[[NodeState, Tensor | None, Tensor | None], None] | None = None

    def go(self, losses: Tensor, walk: Walk, factor: float = 1.0) -> None:
        """One backward pass from the losses to all spikes that they depend on; writes no `.grad`.

        Args:
            losses: Of any shape, with a graph; their sum is differentiated.
            walk: What each node does.
            factor: Multiplies the sum.
        """
        self.walk, start = walk, torch.full((), factor, dtype=losses.dtype, device=losses.device)
        try:
            torch.autograd.grad(
                losses.sum(), self.anchor, start, retain_graph=True, allow_unused=True
            )
        finally:
            self.walk = None


@dataclass(eq=False, slots=True)
class NodeState:
    """One segment, as its node in the graph knows it; (N, *), or (T, N, *) for several steps.

    The graph holds it, so it holds nothing that has a graph: that would never be freed.

    Attributes:
        ledger: That of the pass.
        several: Whether its tensors have a dimension of time.
        gains: Factors of the currents that the node leads to.
        kept: 1 where the membrane that the first step starts from was not reset, else 0.
        spike_gradient: The losses' derivative in the spikes, if a walk keeps it.
        drift_gradient: In the drifts, likewise.
    """

    ledger: Ledger
    several: bool
    gains: tuple[float | Tensor, ...] = ()
    kept: Tensor | None = None
    spike_gradient: Tensor | None = None
    drift_gradient: Tensor | None = None


class SpikeNode(torch.autograd.Function):
    """A segment's node in the graph: spikes and the membrane that is left, with a graph in place.

    Applied to the spikes and the membrane, (N, *) or (T, N, *) and without a graph, the membrane
    None if nobody may read it; what the node knows; the ledger's anchor; the handle of the segment
    that left the membrane which this one starts from; and what leads to further layers: the
    currents, or the drift itself, with `state.gains` as their factors.

    Its last output is this segment's handle: zeros that take no memory, whose derivative is f of
    the next step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        spikes: Tensor,
        membrane: Tensor | None,
        state: NodeState,
        anchor: Tensor,
        handle: Tensor | None,
        *graphs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.state, ctx.reads, ctx.count = state, membrane is not None, len(graphs)
        ctx.set_materialize_grads(False)
        last = spikes[-1] if state.several else spikes
        own = last.new_zeros(()).expand(last.shape)
        # In place, and not views, which could not be written to.
        changed = (spikes,) if membrane is None else (spikes, membrane)
        ctx.mark_dirty(*changed)
        return *changed, own

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        state: NodeState = ctx.state
        if state.ledger.probe is not None:
            state.ledger.probe(state, gradients[0], gradients[1] if ctx.reads else None)
        walk = state.ledger.walk
        if walk is None:
            return (None,) * (5 + ctx.count)
        found, first = walk(state, gradients[0], gradients[1] if ctx.reads else None, gradients[-1])
        first = first if ctx.needs_input_grad[4] else None
        if first is not None and state.kept is not None:
            first = first * state.kept
        shares = []
        for gain in state.gains:
            whole = found is None or (isinstance(gain, float) and gain == 1.0)
            shares.append(found if whole else found * gain)  # type: ignore[operator]
        return None, None, None, torch.zeros(()), first, *shares


def probed(spikes: Tensor, state: NodeState) -> Tensor:
    """A copy of spikes with a node of its own, which a probe alone arrives at."""
    with torch.enable_grad():
        found: Tensor = _Probed.apply(spikes, state, state.ledger.anchor)  # type: ignore[no-untyped-call]
    return found


class _Probed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, state: NodeState, _anchor: Tensor) -> Tensor:
        ctx.state = state
        return spikes.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        if ctx.state.ledger.probe is not None:
            ctx.state.ledger.probe(ctx.state, gradient, None)
        return None, None, None


def collected_through(x: Tensor, ledger: Ledger) -> Tensor:
    """`x` itself, with a graph that only a walk gets through."""
    found: Tensor = _Gate.apply(x, ledger)  # type: ignore[no-untyped-call]
    return found


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ledger: Ledger) -> Tensor:
        ctx.ledger = ledger
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        passes = ctx.ledger.walk is not None or ctx.ledger.probe is not None
        return gradient if passes else None, None


def leads_to_spikes_alone(x: Tensor) -> bool:
    """Whether the graph of `x` ends at emitted spikes: no gradient is written through it."""
    if x._backward_hooks or x.retains_grad:
        return False
    nodes, seen = [x.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or node.name() in _ENDS:
            continue
        if node.name() == "torch::autograd::AccumulateGrad":
            return False
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
    return x.grad_fn is not None
