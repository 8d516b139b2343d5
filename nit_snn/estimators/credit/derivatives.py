"""The loss's derivative in spikes and membranes, kept by one walk back through the spikes.

This is what a control variate is made of. How far the walk goes is the ledger's `reach` (see
`nit_snn.recording.spike_node`). A spike's density is that given all past noise, phi(a) / sigma; for
conditioned scores the membrane is followed given its spike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...dynamics.lif import MembraneRule, number
from ...recording.segment import Segment
from ...recording.spike_node import NodeState
from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace


def collect(trace: PassTrace, losses: Tensor, conditioned: bool) -> None:
    """Fills in what the nodes of a pass know of the losses.

    Args:
        trace: The pass; says of each layer afterwards whether the losses reach it.
        losses: With their graph; (C * B,) or (T, C * B).
        conditioned: Whether membranes are followed given their spikes.
    """
    ledger = trace.ledger
    assert ledger is not None
    places: dict[NodeState, _Place] = {}
    for layer in trace.active:
        layer.reached = False
        if layer.segments[0].node is not None:
            for timeline in layer.timelines:
                places.update(_places(layer, timeline, ledger.reach, conditioned))

    def step(
        node: NodeState, spikes: Tensor | None, membrane: Tensor | None, later: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        place = places[node]
        place.layer.read |= membrane is not None
        place.layer.reached |= spikes is not None or membrane is not None
        node.spike_gradient = spikes
        if not node.gains and place.chain is None:
            return None, None  # nothing lies before it
        found = node.drift_gradient = place.drift_gradient(node, spikes, membrane, later)
        if found is None or place.chain is None:
            return found, None
        return found, found[0] if node.several else found

    if losses.requires_grad and losses.numel():
        ledger.go(losses, step)


@dataclass(eq=False, slots=True)
class _Place:
    """What a walk needs at a node; (N, *), or (T, N, *) for several steps.

    Attributes:
        layer: The node's layer.
        density: phi(a) / sigma; None where the walk goes no further.
        chain: E, where time is followed.
        read: Makes the derivative of the membrane that is handed out in its drift, (N, *); None if
            that is 1.
    """

    layer: LayerTrace
    density: Tensor | None = None
    chain: Tensor | None = None
    read: partial[Tensor] | None = None

    def drift_gradient(
        self, node: NodeState, spikes: Tensor | None, membrane: Tensor | None, later: Tensor | None
    ) -> Tensor | None:
        """f, from the derivatives in the spikes and the membrane, and f of the step after."""
        assert self.density is not None
        found = None if spikes is None else spikes * self.density.to(spikes.dtype)
        if membrane is not None:
            own = membrane if self.read is None else membrane * self.read()
            if node.several:
                found = torch.zeros_like(self.density) if found is None else found
                found[-1] += own
            else:
                found = own if found is None else found.add_(own)
        if self.chain is not None and (later is not None or (found is not None and node.several)):
            if found is None:
                found = torch.zeros_like(self.chain)
            steps = found if node.several else found[None]
            chain = self.chain if node.several else self.chain[None]
            for t in range(len(steps) - 1, -1, -1):
                if later is not None:
                    steps[t].addcmul_(later, chain[t])
                later = steps[t]
        return found


def _places(
    layer: LayerTrace, timeline: Timeline, reach: str, conditioned: bool
) -> dict[NodeState, _Place]:
    """What a walk needs of a layer; takes away what its nodes had."""
    found = {s.node: (s, _Place(layer)) for s in timeline.segments if s.node is not None}
    for node in found:
        node.spike_gradient = node.drift_gradient = None
    if reach == "last":
        return {node: place for node, (_, place) in found.items()}
    density, rule = timeline.density, timeline.rule
    chain = None
    if reach == "time" and rule.carries:
        if conditioned:
            chain = conditioned_chain(timeline)
        else:
            chain = torch.zeros_like(density) + surrogate_chain(rule, timeline.spike, density)
    for (segment, place), (_, own) in zip(found.values(), timeline.parts(density), strict=True):
        place.density = own
        if rule.leave is not None:
            place.read = partial(_read_last, timeline, segment, density)
    if chain is not None:
        for (_, place), (_, own) in zip(found.values(), timeline.parts(chain), strict=True):
            place.chain = own
    return {node: place for node, (_, place) in found.items()}


def _read_last(timeline: Timeline, segment: Segment, density: Tensor) -> Tensor:
    """The derivative of the membrane that a segment has left in its last drift, (N, *)."""
    last = timeline.spans[segment].stop - 1
    factor = read_factor(timeline.rule, timeline.spike[last], density[last])
    assert isinstance(factor, Tensor)
    return factor


def spike_derivatives(timeline: Timeline) -> Tensor:
    """The losses' derivatives in the spikes, (T, N, *)."""
    nodes = [s.node for s in timeline.segments if s.node is not None]
    return timeline.joined([node.spike_gradient for node in nodes])


def later_drifts(timeline: Timeline) -> Tensor:
    """The losses' derivative in the drift of the step after each step, (T, N, *)."""
    nodes = [s.node for s in timeline.segments if s.node is not None]
    return timeline.later(timeline.joined([node.drift_gradient for node in nodes]))


def surrogate_chain(rule: MembraneRule, spike: Tensor, density: Tensor) -> Tensor | float:
    """E: the derivative of the next drift in each drift, (*) or (T, N, *), or one number.

    Args:
        rule: What the neuron does.
        spike: Where it fired, likewise.
        density: The derivative of the firing probability in the drift, likewise.
    """
    carry = number(rule.carry)
    fall = 0.0 if rule.jump is None else rule.jump(number(rule.threshold))
    if not (rule.wiped or isinstance(carry, Tensor) or isinstance(fall, Tensor) or fall):
        return carry
    kept = (1 - spike).mul_(carry) if rule.wiped else torch.zeros_like(spike) + carry
    return kept.add_(density * fall)


def handed_out(rule: MembraneRule, spike: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """The derivatives of the membranes as they are handed out, in the shape of `spike`: in the
    membranes before their reset, given the spikes, and in the spikes.

    snnTorch hands them out before their reset, SpikingJelly after it.
    """
    if rule.leave is None:
        return 1.0, 0.0
    at = torch.full_like(spike, 1.0) * number(rule.threshold)
    fall = rule.leave(at, torch.ones_like(at)) - at
    return 1 - spike if rule.wiped else torch.ones_like(spike), fall


def read_factor(rule: MembraneRule, spike: Tensor, density: Tensor) -> Tensor | float:
    """Their derivative in the drifts, likewise; see `surrogate_chain`."""
    kept, fall = handed_out(rule, spike)
    return kept + density * fall if isinstance(fall, Tensor) else kept


def conditioned_chain(timeline: Timeline) -> Tensor:
    """E given each spike, (T, N, *): `carry D + phi(a) / sigma (jump + carry gap)`.

    See `nit_snn.dynamics.firing`.
    """
    carried = timeline.firing.decay * number(timeline.rule.carry)
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
