"""The loss's derivative in spikes and membranes, collected by one backward pass.

How far it goes is the ledger's `reach` (see `nit_snn.recording.spike_node`), and which density a
spike has is its form:

- "smoothed": averaged over the noise that the membrane still carries, for the credit alone.
- "plain": given all past noise, as the control variate has it.
- "conditioned": likewise, with the membrane followed given its spike, for such scores.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...dynamics.lif import number
from ...recording.segment import Segment
from ...recording.spike_node import NodeState
from ...recording.timeline import Recorded, Timeline
from ...recording.trace import PassTrace


def collect(trace: PassTrace, losses: Tensor, form: str) -> None:
    """Fills in what the nodes of a pass know of the losses.

    Args:
        trace: The pass.
        losses: With their graph; (C * B,) or (T, C * B).
        form: Which density spikes have.
    """
    ledger = trace.ledger
    assert ledger is not None
    nodes: list[NodeState] = []
    for layer in trace.active:
        if layer.segments[0].node is not None:
            for timeline in layer.timelines:
                nodes += _prepared(timeline, ledger.reach, form)
    try:
        if losses.requires_grad and losses.numel():
            ledger.collect(losses)
    finally:
        for node in nodes:
            node.read = None


def _prepared(timeline: Timeline, reach: str, form: str) -> list[NodeState]:
    """Gives the nodes of a layer what a backward pass needs, and takes away what they had."""
    nodes = [s.node for s in timeline.segments if s.node is not None]
    for node in nodes:
        node.spike_gradient = node.membrane_gradient = node.drift_gradient = None
    if reach == "last":
        return nodes
    density = timeline.surrogate if form == "smoothed" else timeline.density
    for node, (_, own) in zip(nodes, timeline.parts(density), strict=True):
        node.density = own
    if form == "smoothed":
        timeline.let_go()
    chain = None
    if reach == "time" and form == "conditioned":
        chain = conditioned_chain(timeline)
    elif reach == "time":
        chain = surrogate_chain(timeline, density)
    if chain is not None:
        for node, (_, own) in zip(nodes, timeline.parts(chain), strict=True):
            node.chain = own
    if timeline.rule.leave is not None:
        for segment, node in zip(timeline.segments, nodes, strict=True):
            node.read = partial(_read_last, timeline, segment, density)
    return nodes


def _read_last(timeline: Timeline, segment: Segment, density: Tensor) -> Tensor:
    """The derivative of the membrane that a segment has left in its last drift, (N, *)."""
    factor = read_factor(timeline, density)
    assert isinstance(factor, Tensor)
    return factor[timeline.spans[segment].stop - 1]


def reached(layer: Recorded) -> bool:
    """Whether the losses depend on a layer's spikes or membranes, as far as was collected."""
    nodes = [segment.node for segment in layer.segments if segment.node is not None]
    return any(n.spike_gradient is not None or n.membrane_gradient is not None for n in nodes)


def derivatives(timeline: Timeline) -> tuple[Tensor, Tensor | None]:
    """The losses' derivatives in the spikes, and in the membranes that were read, (T, N, *)."""
    like = timeline.spike
    nodes = [s.node for s in timeline.segments if s.node is not None]
    read = None
    for segment, node in zip(timeline.segments, nodes, strict=True):
        if node.membrane_gradient is not None:
            read = torch.zeros_like(like) if read is None else read
            read[timeline.spans[segment].stop - 1] = node.membrane_gradient
    return timeline.joined([node.spike_gradient for node in nodes]), read


def later_drifts(timeline: Timeline) -> Tensor:
    """The losses' derivative in the drift of the step after each step, (T, N, *)."""
    nodes = [s.node for s in timeline.segments if s.node is not None]
    return timeline.later(timeline.joined([node.drift_gradient for node in nodes]))


def surrogate_chain(timeline: Timeline, density: Tensor) -> Tensor | None:
    """E: the derivative of the next drift in each drift, (T, N, *); None if nothing is carried.

    Args:
        timeline: The layer.
        density: The derivative of the firing probability in the drift, (T, N, *).
    """
    rule, spike = timeline.rule, timeline.spike
    if not rule.carries:
        return None
    carry = number(rule.carry)
    kept = (1 - spike) * carry if rule.wiped else torch.ones_like(spike) * carry
    fall = 0.0 if rule.jump is None else rule.jump(number(rule.threshold))
    return kept.add_(density * fall)


def handed_out(timeline: Timeline) -> tuple[Tensor | float, Tensor | float]:
    """The derivatives of the membranes as they are handed out, (T, N, *): in the membranes before
    their reset, given the spikes, and in the spikes.

    snnTorch hands them out before their reset, SpikingJelly after it.
    """
    rule, spike = timeline.rule, timeline.spike
    if rule.leave is None:
        return 1.0, 0.0
    at = torch.full_like(spike[:1], 1.0) * number(rule.threshold)
    fall = rule.leave(at, torch.ones_like(at)) - at
    return 1 - spike if rule.wiped else torch.ones_like(spike), fall


def read_factor(timeline: Timeline, density: Tensor) -> Tensor | float:
    """Their derivative in the drifts, likewise; see `surrogate_chain`."""
    kept, fall = handed_out(timeline)
    return kept + density * fall if isinstance(fall, Tensor) else kept


def conditioned_chain(timeline: Timeline) -> Tensor | None:
    """E given each spike, (T, N, *): `carry D + phi(a) / sigma (jump + carry gap)`.

    See `nit_snn.dynamics.firing`; None if nothing is carried.
    """
    rule = timeline.rule
    if not rule.carries:
        return None
    carried = timeline.firing.decay * number(rule.carry)
    return carried.addcmul_(timeline.density, conditioned_jump(timeline))


def conditioned_jump(timeline: Timeline) -> Tensor:
    """What a spike adds to the next drift on average, (T, N, *)."""
    rule, firing = timeline.rule, timeline.firing
    sigma = number(timeline.layer.neuron.sigma.detach().to(firing.level.dtype))
    silent = number(rule.threshold) - firing.level * sigma  # the drift
    if rule.wiped:
        silent = silent + firing.silent_mean * sigma
    fall = 0.0 if rule.jump is None else rule.jump(silent)
    found = torch.zeros_like(firing.level).add_(fall)
    if not rule.wiped:
        found += firing.gap * sigma * number(rule.carry)
    return found
