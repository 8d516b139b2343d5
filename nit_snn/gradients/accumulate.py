"""From the cotangents of drifts to gradients of parameters.

A drift's cotangent goes to the synapses that made its currents, by their own gradient functions, or
through the local graph that was kept of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..estimators.scores import LayerCotangents
from ..recording.packed_spikes import PackedSpikes
from ..recording.segment import Segment
from ..recording.synapse_call import SynapseCall
from ..recording.timeline import Chunk
from ..recording.trace import LayerTrace, PassTrace
from .synapses.registry import batch_rank

#: How many numbers of presynaptic activity and cotangents are brought together at once.
_AT_ONCE = 2**20


class Accumulator:
    """Adds up gradients.

    Args:
        trace: The pass.
        signed: Whether presynaptic activity counts by its sign, and drifts without a scale (NIT-S).

    Attributes:
        parameters: Finished gradients, by parameter.
        outputs: Tensors with a local graph.
        cotangents: Theirs.
    """

    def __init__(self, trace: PassTrace, signed: bool) -> None:
        self.trace, self.signed = trace, signed
        self.parameters: dict[Tensor, Tensor] = {}
        self.outputs: list[Tensor] = []
        self.cotangents: list[Tensor] = []
        self._totals: dict[SynapseCall, Tensor] = {}
        self._pieces: dict[SynapseCall, list[Tensor]] = {}
        self._size = 0  # of the totals and of the activities that they are for

    def add_layers(self, parts: Iterable[LayerCotangents]) -> Accumulator:
        """Adds what an estimate says of some layers; returns itself."""
        for part in parts:
            if part.sigma is not None:
                self.add(part.layer.neuron.sigma, part.sigma)
            self._add(part.finished)
            for chunk in part.chunks:
                self.take(part.layer, chunk)
        self._flush()
        return self

    def take(self, layer: LayerTrace, chunk: Chunk) -> None:
        """Adds a chunk of a layer's cotangents; some of it waits for more to come."""
        with torch.enable_grad():  # a backward pass may be under way
            self._chunk(chunk)
        if self._size > _AT_ONCE:
            self._flush()

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Adds a finished gradient; in float32 at least, for many may be added up."""
        held = self.parameters.get(parameter)
        if gradient.dtype in (torch.float16, torch.bfloat16):
            gradient = gradient.float()
        self.parameters[parameter] = gradient if held is None else held + gradient

    def _chunk(self, chunk: Chunk) -> None:
        first, values = chunk.segments[0], chunk.values
        if first.several:
            self._several(first, chunk)
        elif all(map(first.absorbs, chunk.segments[1:])):
            # One and the same current enters all of them: one product for the sum.
            self._single(first, values[0] if len(values) == 1 else values.sum(0))
        else:
            for segment, own in zip(chunk.segments, values.unbind(0), strict=True):
                self._single(segment, own)

    def _single(self, segment: Segment, cotangent: Tensor) -> None:
        """Adds what belongs to a step, (N, *)."""
        if segment.drift is not None:
            self._through(segment.drift, cotangent)
        for each in segment.inputs:
            if each.source is None:
                if each.graph is not None:
                    self._through(each.graph, _scaled(cotangent, each.gain))
            else:
                self._hold(each.source, _scaled(cotangent, each.gain, self.signed), each.step)

    def _hold(self, source: SynapseCall, share: Tensor, step: int | None = None) -> None:
        """Adds up what belongs to a synapse's output, or to one step of it."""
        held = self._totals.get(source)
        if held is None:
            self._size += source.activity.shape.numel() + source.output_shape.numel()
        if step is None:
            self._totals[source] = share if held is None else held + share
            return
        if held is None:
            held = self._totals[source] = share.new_zeros(source.output_shape)
        held.view(-1, *share.shape)[step] += share

    def _several(self, segment: Segment, chunk: Chunk) -> None:
        """Adds what belongs to some steps of a segment, (t, N, *), or to the sum of all of them."""
        steps, values = chunk.steps, chunk.values
        whole = len(steps) == len(segment.calls)
        part = slice(steps.start, steps.stop)
        if segment.drift is not None:
            self._through(segment.drift[part], values)
        for each in segment.inputs:
            if each.source is None:
                if each.graph is not None:
                    graph = each.graph if whole else each.graph[part]
                    self._through(graph, _scaled(values, each.gain))
            else:
                share = _scaled(values, each.gain, self.signed)
                if whole or chunk.total or each.static:
                    self._add(each.source.parameter_gradients(share, self.signed))
                else:
                    self._piece(each.source, share, steps, len(segment.calls))

    def _through(self, graph: Tensor, cotangent: Tensor) -> None:
        """Towards a local graph, of a current or of a drift."""
        self.outputs.append(graph)
        self.cotangents.append(cotangent.to(graph.dtype))

    def _piece(self, source: SynapseCall, share: Tensor, steps: range, count: int) -> None:
        """A chunk of a sequence: at once where the synapse's output comes in steps."""
        if source.output_shape[0] == count:
            self._add(source.parameter_gradients(share, self.signed, steps))
            return
        held = self._pieces.setdefault(source, [])
        held.append(share)
        if sum(map(len, held)) == count:
            self._add(source.parameter_gradients(torch.cat(held), self.signed))
            del self._pieces[source]

    def _add(self, found: Mapping[Tensor, Tensor]) -> None:
        for parameter, gradient in found.items():
            self.add(parameter, gradient)

    def _flush(self) -> None:
        """Brings calls of one layer together, so that its gradient is one product."""
        groups: dict[object, list[tuple[SynapseCall, Tensor]]] = {}
        for source, total in self._totals.items():
            groups.setdefault(_alike(source, self.signed), []).append((source, total))
        self._totals, self._size = {}, 0
        for group in groups.values():
            for some in _pieces(group):
                self._add(self._of_calls(some))

    def _of_calls(self, calls: Sequence[tuple[SynapseCall, Tensor]]) -> dict[Tensor, Tensor]:
        first, total = calls[0]
        if len(calls) == 1:
            return first.parameter_gradients(total, self.signed)
        pairs = [call.presynaptic(found.reshape(call.output_shape)) for call, found in calls]
        activities, cotangents = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        return first.gradients_of(activities, cotangents, self.signed, spikes=True)

    def follow_held(self, roots: Sequence[Tensor] = ()) -> None:
        """Adds what reaches synapses through currents that neurons remember.

        Args:
            roots: Scalars that may read such a memory themselves.
        """
        outputs = [*self.outputs, *roots]
        if not self.trace.held or not outputs:
            return
        cotangents = [*self.cotangents, *(torch.ones_like(root) for root in roots)]
        leaves = [leaf for leaf, _ in self.trace.held]
        found = torch.autograd.grad(
            outputs, leaves, cotangents, retain_graph=True, allow_unused=True
        )
        for (_, source), share in zip(self.trace.held, found, strict=True):
            if share is not None:
                self._hold(source, share)
        self._flush()

    def gradients(self, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
        """All gradients, those through local graphs included; writes no `.grad`."""
        self.follow_held()
        found = dict(self.parameters)
        trained = [p for p in parameters if p.requires_grad]
        if self.outputs and trained:
            through = torch.autograd.grad(
                self.outputs, trained, self.cotangents, retain_graph=True, allow_unused=True
            )
            for parameter, gradient in zip(trained, through, strict=True):
                if gradient is not None:
                    held = found.get(parameter)
                    found[parameter] = gradient if held is None else held + gradient
        return found

    def all_outputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """All tensors and their cotangents, for `torch.autograd.backward`."""
        finished = [gradient.to(p.dtype) for p, gradient in self.parameters.items()]
        return [*self.outputs, *self.parameters], [*self.cotangents, *finished]


def _scaled(cotangent: Tensor, gain: float | Tensor, signed: bool = False) -> Tensor:
    """A cotangent of the drift as one of a current; a direction (`signed`) keeps its scale."""
    if signed:
        return cotangent * (gain != 0) if isinstance(gain, Tensor) else cotangent
    return cotangent if isinstance(gain, float) and gain == 1.0 else cotangent * gain


def _alike(source: SynapseCall, signed: bool) -> object:
    """Calls with the same key may be brought together along their rows."""
    activity = source.activity
    if signed and not isinstance(activity, PackedSpikes):
        return source  # whether it is spikes is a question for each
    shape = activity.shape
    if len(shape) != batch_rank(source.module):
        return source
    return source.gradient, id(source.parameters), source.output_shape[1:], shape[1:]


def _pieces(
    group: list[tuple[SynapseCall, Tensor]],
) -> Iterable[list[tuple[SynapseCall, Tensor]]]:
    """A group in parts of which none takes too much memory at once."""
    some: list[tuple[SynapseCall, Tensor]] = []
    size = 0
    for source, total in group:
        own = source.activity.shape.numel() + source.output_shape.numel()
        if some and size + own > _AT_ONCE:
            yield some
            some, size = [], 0
        some.append((source, total))
        size += own
    if some:
        yield some
