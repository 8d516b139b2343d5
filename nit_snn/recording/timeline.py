"""The segments of a layer laid end to end, (T, N, *), so that estimators work on whole layers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Protocol

import torch
from torch import Tensor

from ..dynamics.firing import Firing, without_tails
from ..dynamics.lif import number, spikes_of
from ..neurons.base import NoisyNeuron
from .segment import Segment, membranes_of


class Recorded(Protocol):
    """What a timeline asks of its layer; `nit_snn.recording.trace.LayerTrace` is one.

    Attributes:
        name: Its qualified name.
        neuron: The neuron.
        segments: What was recorded of it, of all shapes.
        reached: Whether the losses were found to depend on its spikes or membranes.
    """

    name: str
    neuron: NoisyNeuron
    segments: list[Segment]
    reached: bool

    def drawn_again(self, segment: Segment) -> Tensor:
        """eps of a segment that was not kept, in its own shape."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Cotangents of drifts.

    Attributes:
        segments: One segment, or several of a single step each.
        steps: Of a segment of several steps, which of them.
        values: (t, N, *), one for each of the segments or steps.
        total: Of a segment of several steps: `values` is their sum, (1, N, *).
    """

    segments: Sequence[Segment]
    steps: range
    values: Tensor
    total: bool = False


class Timeline:
    """All segments of a layer that have one shape, end to end: every tensor (T, N, *).

    Args:
        layer: The layer.
        segments: In the order in which they ran.
    """

    def __init__(self, layer: Recorded, segments: list[Segment]) -> None:
        self._layer = weakref.ref(layer)  # which holds this: no circle is to be left to Python
        self.segments = segments
        self.spans: dict[Segment, range] = {}
        start = 0
        for segment in segments:
            self.spans[segment] = range(start, start + len(segment.calls))
            start += len(segment.calls)
        self.steps = start
        self.single = not any(map(attrgetter("several"), segments))
        self.rule = segments[0].rule

    @property
    def layer(self) -> Recorded:
        found = self._layer()
        assert found is not None
        return found

    @property
    def calls(self) -> list[int]:
        return [call for segment in self.segments for call in segment.calls]

    @cached_property
    def noise(self) -> Tensor:
        """eps; what was not kept is drawn again."""
        layer = self.layer
        kept = [(s.noise, s) for s in self.segments]
        return self._stacked([layer.drawn_again(s) if eps is None else eps for eps, s in kept])

    @cached_property
    def density(self) -> Tensor:
        """phi(a) / sigma, the derivative of the firing probability in the drift."""
        sigma = number(self.layer.neuron.sigma.detach().to(self.firing.level.dtype))
        return without_tails(self.firing.density).div_(sigma)

    @cached_property
    def before(self) -> list[int | None]:
        """For each step the one that left the membrane which it starts from; None if none did."""
        found: list[int | None] = []
        for segment in self.segments:
            span = self.spans.get(segment.origin) if segment.origin is not None else None
            found.append(None if span is None else span.stop - 1)
            found.extend(range(len(found) - 1, len(found) - 1 + len(segment.calls) - 1))
        return found

    @cached_property
    def kept(self) -> list[Tensor | None]:
        """For each step where the membrane that it starts from was not reset; None for all."""
        found: list[Tensor | None] = []
        for segment in self.segments:
            found += [segment.kept, *[None] * (len(segment.calls) - 1)]
        return found

    @property
    def linked(self) -> bool:
        """Whether any step starts from a membrane that another one left."""
        return any(step is not None for step in self.before)

    def run_back(self, values: Tensor, chain: Tensor) -> None:
        """`f_t = values_t + E_t f_{t+1}`, backwards in time over each neuron's own steps, in place.

        Args:
            values: (T, N, *).
            chain: E, the derivative of a step's drift in the one before, at the one before.
        """
        each, factors = values.unbind(0), chain.unbind(0)
        for step in range(self.steps - 1, -1, -1):
            before, kept = self.before[step], self.kept[step]
            if before is not None:
                later = each[step] if kept is None else each[step] * kept
                each[before].addcmul_(later, factors[before])

    def later(self, values: Tensor) -> Tensor:
        """Of each step the value of the one that starts from its membrane, or their sum."""
        found = torch.zeros_like(values)
        for step, before in enumerate(self.before):
            if before is not None:
                kept = self.kept[step]
                found[before] += values[step] if kept is None else values[step] * kept
        return found

    @cached_property
    def spike(self) -> Tensor:
        """Where the layer fired, zeros and ones, (T, N, *)."""
        return self._fired(self._membranes())

    @cached_property
    def firing(self) -> Firing:
        """What the layer did, and how likely it was."""
        membrane = self._membranes()
        spike = vars(self).setdefault("spike", self._fired(membrane))
        noise = self.noise.to(membrane.dtype)
        sigma = number(self.layer.neuron.sigma.detach().to(membrane.dtype))
        level = (number(self.rule.threshold) - membrane).div_(sigma).add_(noise)
        return Firing(spike, level, noise, self.rule.wiped)

    def _membranes(self) -> Tensor:
        return self._stacked(membranes_of(self.segments, self.layer.name))

    def _fired(self, membrane: Tensor) -> Tensor:
        return spikes_of(membrane, self.rule.threshold, self.rule.or_equal)

    def _stacked(self, values: list[Tensor]) -> Tensor:
        """(T, N, *) from what each segment has; a single one of several steps is not copied."""
        if self.single:
            return torch.stack(values)
        pairs = zip(self.segments, values, strict=True)
        found = [value if segment.several else value[None] for segment, value in pairs]
        return found[0] if len(found) == 1 else torch.cat(found)

    def joined(self, values: list[Tensor | None]) -> Tensor:
        """What each segment has, end to end; zero where it has nothing."""
        like = self.spike
        if not [value for value in values if value is not None]:
            return torch.zeros_like(like)
        shapes = [own.shape for _, own in self.parts(like)]
        found = [
            like.new_zeros(shape) if value is None else value.to(like.dtype)
            for value, shape in zip(values, shapes, strict=True)
        ]
        joined = self._stacked(found)
        return joined.clone() if len(found) == 1 else joined

    def chunks(self, values: Tensor) -> Iterable[Chunk]:
        """(T, N, *) as what `LayerCotangents` are made of: single steps together."""
        if self.single:
            yield Chunk(self.segments, range(1), values)
            return
        for segment, own in self.parts(values):
            own = own if segment.several else own[None]
            yield Chunk([segment], range(len(segment.calls)), own)

    def parts(self, values: Tensor) -> Iterable[tuple[Segment, Tensor]]:
        """Each segment and its share of (T, N, *), in its own shape."""
        if self.single:
            return zip(self.segments, values.unbind(0), strict=True)
        spans = ((segment, self.spans[segment]) for segment in self.segments)
        return (
            (segment, values[span.start : span.stop] if segment.several else values[span.start])
            for segment, span in spans
        )


def rows_first(weight: Tensor, like: Tensor) -> Tensor:
    """(N,) or (T, N) as a factor of (T, N, *)."""
    weight = weight.to(like.dtype)
    weight = weight if weight.dim() == 2 else weight.unsqueeze(0)
    return weight.reshape(*weight.shape, *(1,) * (like.dim() - 2))
