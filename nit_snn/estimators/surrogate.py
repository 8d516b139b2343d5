"""The cheap estimate: the credit of each spike alone, as a surrogate gradient has it.

    f_t = g_t phi(b_t) / w_t + E_t f_{t+1}
    E_t = carry (1 - spike_t wiped) + phi(b_t) / w_t * jump(threshold)

The surrogate `phi(b_t) / w_t` is the density of the noise that the membrane carries, and at least
half as wide as the threshold is high above the rest (see `nit_snn.recording.surrogates`, which
says in which precision it is kept). A membrane carries its drift on, but for a spike that wipes it
out, and a reset is a jump at the threshold. g_t is the loss's derivative in the spikes of the
replica's own pass. What the loss owes to more than one spike at a time is left out: the estimate is
biased, and has hardly any variance.

It is made step by step, from the last to the first, while the losses' derivative walks back through
the spikes. Each step's cotangents are handed on at once, so that none has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dynamics.lif import number
from ..recording.block import Block
from ..recording.segment import Segment
from ..recording.spike_node import NodeState
from ..recording.timeline import Chunk
from ..recording.trace import LayerTrace, PassTrace
from .credit import Credit
from .credit.derivatives import handed_out, read_factor, surrogate_chain

#: How many numbers of a segment of several steps are worked on at once.
_AT_ONCE = 2**18
#: Who takes cotangents, and of which layer they are.
Take = Callable[[LayerTrace, Chunk], None]
NOTHING: Mapping[NodeState, Tensor] = MappingProxyType({})


def walk_back(
    trace: PassTrace,
    losses: Tensor,
    credit: Credit,
    rows: int,
    take: Take,
    known: Mapping[NodeState, Tensor] = NOTHING,
) -> dict[LayerTrace, Tensor | None]:
    """Makes the cheap estimate of all layers that the losses, or a credit, reach.

    Args:
        trace: The pass; says of each layer afterwards whether the losses reach it.
        losses: With their graph; (C * B,) or (T, C * B).
        credit: What a spike is worth.
        rows: Over how many rows the losses are averaged.
        take: Gets the cotangents, chunk by chunk, those of the last steps first.
        known: f of segments that have theirs from elsewhere; the walk goes on with it.

    Returns:
        For each layer that was reached, the gradient of its noise level; None if that is fixed.
    """
    ledger = trace.ledger
    assert ledger is not None
    lines: list[Line] = []
    places: dict[NodeState, tuple[Line, Segment]] = {}
    for layer in trace.active:
        assert layer.surrogates is not None
        layer.surrogates.finish()
        layer.reached, line = False, Line(layer, take)
        lines.append(line)
        places.update({s.node: (line, s) for s in layer.segments if s.node is not None})

    def step(
        node: NodeState, spikes: Tensor | None, membrane: Tensor | None, later: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if node in known:
            return known[node], None
        line, segment = places[node]
        line.layer.read |= membrane is not None
        line.layer.reached |= spikes is not None or membrane is not None
        sends = ledger.reach if node.gains else "last"
        return line.back(segment, spikes, membrane, later, sends)

    if losses.requires_grad and losses.numel():
        ledger.go(losses, step, 1 / rows)
    for line in lines:
        if not line.layer.reached and credit.reaches(line.layer):
            line.all_back(credit, rows)
        line.hand_on()
    return {line.layer: line.sigma for line in lines if credit.reaches(line.layer)}


class Line:
    """The steps of one layer, gone through from the last to the first.

    Args:
        layer: The layer.
        take: Who gets its cotangents.

    Attributes:
        sigma: The gradient of its noise level so far; None if that is not learned.
    """

    def __init__(self, layer: LayerTrace, take: Take) -> None:
        self.layer, self.take, self.rule = layer, take, layer.segments[0].rule
        level = layer.neuron.sigma
        self.sigma = torch.zeros_like(level) if level.requires_grad else None
        self._block: Block | None = None
        self._steps: list[tuple[Tensor, Tensor, Tensor | float]] = []
        self._segments: list[Segment] = []
        self._found: list[Tensor] = []

    def back(
        self,
        segment: Segment,
        gradient: Tensor | None,
        read: Tensor | None,
        later: Tensor | None,
        sends: str,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Makes a segment's cotangents and hands them on.

        Args:
            segment: The segment.
            gradient: g, the losses' derivative in its spikes, in its own shape; None for zero.
            read: In the membrane that it has left, (N, *), likewise.
            later: f of the step that starts from that membrane, (N, *), likewise.
            sends: What goes on to the layer before: "last" for nothing, "layers" for what later
                steps have no part in, "time" for f.

        Returns:
            That, and f of the segment's first step, (N, *).
        """
        if gradient is None and read is None and later is None:
            return None, None
        if segment.several:
            self.hand_on()
            return self._sequence(segment, gradient, read, later, sends)
        if segment.block is not self._block:
            self._next_block(segment.block)
        density, spike, chain = self._steps[segment.first]
        own = None if gradient is None else gradient * density
        if read is not None:
            left = read * read_factor(self.rule, spike, density)
            own = left if own is None else own.add_(left)
        f = own
        if later is not None:
            f = later * chain if own is None else own + later * chain
        assert f is not None
        if self.sigma is not None:
            self._learn_level(segment, range(1), spike, gradient, read, later)
        self._segments.append(segment)
        self._found.append(f)
        return {"last": None, "layers": own, "time": f}[sends], f

    def _next_block(self, block: Block | None) -> None:
        """The surrogates, the spikes and E of another block's steps; those before are done."""
        self.hand_on()
        assert block is not None
        density, spike = block.read(range(len(block.signed)))
        chain = surrogate_chain(self.rule, spike, density)
        chains = chain.unbind(0) if isinstance(chain, Tensor) else [chain] * len(density)
        self._block = block
        self._steps = list(zip(density.unbind(0), spike.unbind(0), chains, strict=True))

    def hand_on(self) -> None:
        """The cotangents of single steps that are still here."""
        if self._segments:
            self.take(self.layer, Chunk(self._segments, range(1), torch.stack(self._found)))
            self._segments, self._found = [], []

    def _sequence(
        self,
        segment: Segment,
        gradient: Tensor | None,
        read: Tensor | None,
        later: Tensor | None,
        sends: str,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Several steps, in parts that a cache holds; a local graph takes them all at once."""
        block, count = segment.block, len(segment.calls)
        assert block is not None
        graphs = segment.drift is not None or any(
            each.source is None and each.graph is not None for each in segment.inputs
        )
        length = count if graphs else max(1, _AT_ONCE // max(1, segment.shape.numel()))
        sent = torch.empty_like(block.signed, dtype=block.dtype) if sends != "last" else None
        for start in range((count - 1) // length * length, -1, -length):
            steps = range(start, min(start + length, count))
            part, last = slice(steps.start, steps.stop), steps.stop == count
            density, spike = block.read(steps)
            own = torch.zeros_like(density) if gradient is None else gradient[part] * density
            if read is not None and last:
                own[-1] += read * read_factor(self.rule, spike[-1], density[-1])
            f, after = own, later
            if self.rule.carries:
                f = own.clone() if sends == "layers" else own
                chain = surrogate_chain(self.rule, spike, density)
                for t in range(len(f) - 1, -1, -1):
                    if later is not None:
                        factor = chain[t] if isinstance(chain, Tensor) else chain
                        f[t] = _plus(f[t], later, factor)
                    later = f[t]
            if self.sigma is not None:
                follows = f[1:] if after is None else torch.cat([f[1:], after[None]])
                follows = F.pad(follows, (0, 0) * (f.dim() - 1) + (0, len(f) - len(follows)))
                own_gradient = None if gradient is None else gradient[part]
                self._learn_level(
                    segment, steps, spike, own_gradient, read if last else None, follows
                )
            self.take(self.layer, Chunk([segment], steps, f))
            if sent is not None:
                sent[part] = f if sends == "time" else own
        return sent, later

    def all_back(self, credit: Credit, rows: int) -> None:
        """The same for a credit that is sent to all steps alike."""
        later: dict[Segment, Tensor] = {}
        sent: dict[torch.Size, Tensor] = {}
        for segment in reversed(self.layer.segments):
            if segment.shape not in sent:
                found = credit.sent(self.layer, segment.shape)
                sent[segment.shape] = found.to(segment.dtype) / rows
            own = sent[segment.shape]
            gradient = own.expand(len(segment.calls), *own.shape) if segment.several else own
            first = self.back(segment, gradient, None, later.pop(segment, None), "last")[1]
            if self.rule.carries and segment.origin is not None and first is not None:
                first = first if segment.kept is None else first * segment.kept
                held = later.get(segment.origin)
                later[segment.origin] = first if held is None else held + first

    def _learn_level(
        self,
        segment: Segment,
        steps: range,
        spike: Tensor,
        gradient: Tensor | None,
        read: Tensor | None,
        later: Tensor | None,
    ) -> None:
        """The noise level's: `dp/dsigma = b phi(b) / sigma` and `du/dsigma = nu / sigma`.

        Both hold for all of the noise that a membrane carries, `b` in units of its own deviation,
        so no step is followed to a later one but by its spike.
        """
        assert self.sigma is not None and segment.block is not None
        block, rule, level = segment.block, self.rule, self.layer.neuron.sigma
        assert block.slope is not None and block.carried is not None
        first = segment.first + steps.start
        part = slice(first, first + len(steps)) if segment.several else first
        spiked = torch.zeros_like(spike) if gradient is None else gradient.clone()
        last = (lambda x: x[-1]) if segment.several else (lambda x: x)
        if read is not None:
            kept, fall = handed_out(rule, last(spike))
            last(spiked).add_(read * fall)
            moved = read * kept * last(block.carried[part]).to(read.dtype)
            self.sigma += moved.sum_to_size(level.shape)
        if later is not None and rule.jump is not None and rule.carries:
            spiked += later * rule.jump(number(rule.threshold))
        moved = spiked * block.slope[part].to(spiked.dtype) / level.detach().to(spiked.dtype)
        self.sigma += moved.sum_to_size(level.shape)


def _plus(own: Tensor, later: Tensor, chain: Tensor | float) -> Tensor:
    """`own + chain * later`."""
    if isinstance(chain, Tensor):
        return torch.addcmul(own, later, chain)
    return torch.add(own, later, alpha=chain)
