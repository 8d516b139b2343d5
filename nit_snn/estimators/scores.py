"""What multiplies the loss: the score of a membrane's noise, one small object for each kind.

For `u = m + sigma * eps`, `d log p(u) / dm = eps / sigma` and
`d log p(u) / d sigma = (eps^2 - 1) / sigma` (Eq. 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..dynamics.cuda_executor import CudaExecutor
from ..dynamics.lif import number, sign
from ..neurons.base import NoisyNeuron
from ..recording.segment import Segment
from ..recording.timeline import Chunk, Timeline, rows_first
from ..recording.trace import LayerTrace

#: How many numbers of a layer are weighted at once.
_AT_ONCE = 2**20
#: The coefficients c of a layer's spikes, (T, N, *), over the number of rows.
Coefficients = Mapping[Timeline, Tensor]


@dataclass(eq=False)
class LayerCotangents:
    """What an estimate says of one layer.

    Attributes:
        layer: The layer.
        chunks: The cotangents of its drifts; they can be gone through once.
        sigma: The gradient of its noise level, in its shape; None if that is not learned.
        finished: Gradients of parameters that needed no cotangents.
    """

    layer: LayerTrace
    chunks: Iterable[Chunk]
    sigma: Tensor | None = None
    finished: Mapping[Tensor, Tensor] = field(default_factory=dict)

    def times(self, factor: float) -> LayerCotangents:
        """The same, times a number."""
        if factor == 1:
            return self
        chunks = (replace(chunk, values=chunk.values * factor) for chunk in self.chunks)
        sigma = None if self.sigma is None else self.sigma * factor
        finished = {p: gradient * factor for p, gradient in self.finished.items()}
        return LayerCotangents(self.layer, chunks, sigma, finished)


class Score(Protocol):
    """A kind of score.

    Attributes:
        signs: Whether the noise counts by its sign alone.
        conditioned: Whether it is conditioned on the spikes, so that nobody may read a membrane.
    """

    @property
    def signs(self) -> bool: ...

    @property
    def conditioned(self) -> bool: ...

    def why_not(self, neuron: NoisyNeuron) -> str | None:
        """Why the estimate would be biased for a neuron; None if it would not be."""
        ...

    def cotangents(
        self, layer: LayerTrace, weight: Tensor, credit: Coefficients | None
    ) -> LayerCotangents:
        """`A * score / sigma + c * covariance`, with c of the spikes a score is correlated with.

        Args:
            layer: The layer.
            weight: A over the number of rows, (N,), or (T, N) of each call.
            credit: c, for a layer with a control variate.
        """
        ...


@dataclass(frozen=True)
class NoiseScore:
    """The noise itself, `eps / sigma` (Eq. 8), or under NIT-S its sign (Eq. 3).

    Attributes:
        signs: NIT-S: `sign(eps)`, without a scale; the noise level keeps its exact score.
    """

    signs: bool = False
    conditioned: bool = False

    def why_not(self, neuron: NoisyNeuron) -> str | None:
        """Of any neuron the estimate is unbiased."""
        return None

    def cotangents(
        self, layer: LayerTrace, weight: Tensor, credit: Coefficients | None
    ) -> LayerCotangents:
        """See `Score`. The covariance of a spike with eps / sigma is `phi(a) / sigma`.

        With the noise's sign it is `Q(|a|)`, the smaller of p and 1 - p.
        """
        finished: dict[Tensor, Tensor] = {}
        if credit is None:
            segments = layer.segments
            if isinstance(layer.executor, CudaExecutor):
                segments = [s for s in segments if not _from_bits(layer, s, weight, finished)]
            chunks = self._plain(layer, segments, weight)
        else:
            chunks = self._with(layer, weight, credit)
        sigma = layer.neuron.sigma
        if not sigma.requires_grad:
            return LayerCotangents(layer, chunks, finished=finished)
        assert layer.executor is not None
        total = torch.zeros_like(sigma)
        for segment in layer.segments:
            moved = layer.executor.sigma_scores(segment, weight)
            total += moved.sum_to_size(sigma.shape) / sigma.detach()
        for timeline, c in (credit or {}).items():
            moved = c * timeline.density * timeline.firing.level
            total += moved.flatten(0, 1).sum_to_size(sigma.shape)
        return LayerCotangents(layer, chunks, total, finished)

    def _plain(self, layer: LayerTrace, segments: list[Segment], weight: Tensor) -> Iterator[Chunk]:
        assert layer.executor is not None
        if len(segments) == len(layer.segments) and all(map(_is_small, layer.timelines)):
            for timeline in layer.timelines:
                score, factor = self._weighted(timeline, weight)
                yield from timeline.chunks(score * factor)
            return
        for segment in segments:
            static = segment.several and segment.drift is None
            static = static and all(each.static for each in segment.inputs)
            for steps, found in layer.executor.weighted_scores(segment, weight, 1.0, static):
                yield Chunk([segment], steps, found, static)

    def _with(self, layer: LayerTrace, weight: Tensor, credit: Coefficients) -> Iterator[Chunk]:
        for timeline, c in credit.items():
            score, factor = self._weighted(timeline, weight)
            covariance = timeline.firing.lesser if self.signs else timeline.density
            yield from timeline.chunks((score * factor).addcmul_(c, covariance))

    def _weighted(self, timeline: Timeline, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of all steps, (T, N, *), and `A / sigma`; a direction keeps its scale."""
        score = timeline.noise
        own = weight if weight.dim() == 1 else weight[timeline.calls]
        factor = rows_first(own, score)
        if self.signs:
            return sign(score), factor
        sigma = timeline.layer.neuron.sigma.detach().to(score.dtype)
        return score, factor / number(sigma)


def _is_small(timeline: Timeline) -> bool:
    """Single steps whose noise was kept, and fits together into a processor's cache."""
    lost = [segment for segment in timeline.segments if segment.noise is None]
    return timeline.single and not lost and timeline.noise.numel() <= _AT_ONCE


def _from_bits(
    layer: LayerTrace, segment: Segment, weight: Tensor, into: dict[Tensor, Tensor]
) -> bool:
    """Whether a kernel has made a dense layer's gradient straight from its packed spikes."""
    executor = layer.executor
    if not isinstance(executor, CudaExecutor) or not segment.several or weight.dim() > 1:
        return False
    if len(segment.inputs) != 1:
        return False
    (each,) = segment.inputs
    if each.source is None or each.static or segment.drift is not None:
        return False
    gain = each.gain
    found = each.source.from_bits(
        lambda spikes, outputs: executor.linear_gradient(segment, weight, spikes, outputs, gain)
    )
    for parameter, gradient in (found or {}).items():
        into[parameter] = into[parameter] + gradient if parameter in into else gradient
    return found is not None


@dataclass(frozen=True)
class SpikeScore:
    """That of the spike alone, `E[eps | s] / sigma`, the membrane followed by its own derivative.

    Far less variance where neurons are mostly silent or mostly firing; see
    `nit_snn.dynamics.firing`.
    """

    signs: bool = False
    conditioned: bool = True

    def why_not(self, neuron: NoisyNeuron) -> str | None:
        """What a membrane carries on has to be a smooth function of it, given its spike."""
        return neuron.why_not_pathwise()

    def cotangents(
        self, layer: LayerTrace, weight: Tensor, credit: Coefficients | None
    ) -> LayerCotangents:
        """See `Score`; `f_t = A score_t / sigma + c_t phi(a_t) / sigma + carry D_t f_{t+1}`."""
        level = layer.neuron.sigma
        total = torch.zeros_like(level) if level.requires_grad else None
        found: list[Chunk] = []
        for timeline in layer.timelines:
            firing = timeline.firing
            own = weight if weight.dim() == 1 else weight[timeline.calls]
            factor = rows_first(own, firing.score)
            sigma = level.detach().to(firing.score.dtype)
            values = firing.score * (factor / sigma)
            c = None if credit is None else credit.get(timeline)
            if c is not None:
                values.addcmul_(c, timeline.density)
            if total is not None:
                moved = firing.score * firing.level * (factor / sigma)
                if c is not None:
                    moved.addcmul_(c, timeline.density * firing.level)
                total += moved.flatten(0, 1).sum_to_size(level.shape)
            if timeline.rule.carries and timeline.linked:
                timeline.run_back(values, firing.decay * timeline.rule.carry)
                if total is not None:
                    moved = timeline.later(values) * firing.level_decay * timeline.rule.carry
                    total += moved.flatten(0, 1).sum_to_size(level.shape)
            found.extend(timeline.chunks(values))
        return LayerCotangents(layer, iter(found), total)
