"""From what a pass leaves behind, and its losses, to the cotangents of the drifts.

    g = sum_t [ c_t phi(a_t) / sigma  +  lambda (A - explained) score_t ] dm_t / dtheta

An `Estimator` is four small objects, each of which states its own conditions: the score, the
baseline that makes A of the losses, the credit c, and the residual's weight lambda. Its `estimate`
is the only way from losses to cotangents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..dynamics.needs import Needs
from ..errors import RecordingError
from ..neurons.base import NoisyNeuron
from ..recording.orders import Order
from ..recording.spike_node import NodeState
from ..recording.timeline import Chunk, Timeline
from ..recording.trace import LayerTrace, PassTrace
from ..training.distributed import ALONE, Ranks
from . import surrogate
from .baselines import INDEPENDENT, Sharing, advantages
from .control_coefficients import coefficients
from .credit import Credit
from .credit.derivatives import collect
from .last_layers import by_node, last_layers, sum_of_outputs
from .residual import FixedResidual, Residual, WienerResidual
from .scores import LayerCotangents, Score
from .surrogate import Take


@dataclass(eq=False)
class Estimate:
    """What an estimator makes of one pass.

    Attributes:
        cheap: Of each layer with a credit, the credit's cotangents alone.
        unbiased: Of each layer whose residual counts, the unbiased ones.
        weights: lambda of each layer.
        reached: The layers that the losses have a derivative in.
        couples: Whether a loss depends on the noise of other samples.
        passed_on: Whether a likelihood ratio stood in for the losses' derivative.
    """

    cheap: dict[LayerTrace, LayerCotangents] = field(default_factory=dict)
    unbiased: dict[LayerTrace, LayerCotangents] = field(default_factory=dict)
    weights: dict[LayerTrace, float] = field(default_factory=dict)
    reached: set[LayerTrace] = field(default_factory=set)
    couples: bool = False
    passed_on: bool = False

    def parts(self) -> Iterator[LayerCotangents]:
        """The cotangents that make up the estimate, each with its weight in it."""
        for layer, weight in self.weights.items():
            if weight < 1 and layer in self.cheap:
                yield self.cheap[layer].times(1 - weight)
            if weight > 0 and layer in self.unbiased:
                yield self.unbiased[layer].times(weight)


@dataclass(frozen=True)
class Estimator:
    """A score, a baseline, a credit and a residual.

    Attributes:
        score: What multiplies the loss.
        baseline: One of `nit_snn.estimators.baselines.NAMES`.
        credit: What the loss gains per spike.
        residual: How much of the rest is added.
        sharing: Which replicas have noise that depends on one another's.
        per_step: Whether the losses come per time step, (T, C * B).
        ranks: Who has other rows of the batch.
    """

    score: Score
    baseline: str
    credit: Credit
    residual: Residual
    sharing: Sharing = INDEPENDENT
    per_step: bool = False
    ranks: Ranks = ALONE

    def needs(
        self,
        guarded: bool,
        scores: bool = True,
        likely: bool = True,
        replicas: int | None = None,
        outputs: bool = False,
    ) -> Needs:
        """What a pass has to keep for it.

        Args:
            guarded: Whether membranes may be read by nobody.
            scores: Whether the residual counts in this pass, or might.
            likely: Whether it is more than a mere possibility.
            replicas: C; None for more than enough for a control variate.
            outputs: Whether the losses may turn out to have no derivative.
        """
        follows = self.credit.reach is not None
        exact = self.residual.weight("") == 1
        controls = follows and (exact or replicas is None or self._controls(replicas))
        return Needs(
            signs=self.score.signs,
            scores=scores,
            noise=likely,
            firing=self.score.conditioned or (scores and controls),
            surrogate=follows and (not exact or self.residual.measures()),
            reach=self.credit.reach,
            guarded=guarded,
            apart=self.per_step,
            outputs=self.credit.learns or (outputs and self.credit.reach in ("layers", "time")),
        )

    def why_not(self, neuron: NoisyNeuron) -> str | None:
        """Why the estimate cannot be made for a neuron; None if it can."""
        if self.credit.reach is not None:
            return neuron.why_no_firing_probability() or self.score.why_not(neuron)
        return self.score.why_not(neuron)

    def fitting(self, trace: PassTrace) -> Estimator:
        """The estimator for a pass: halves of a batch tell nothing where samples are coupled."""
        if trace.couples and isinstance(self.residual, WienerResidual):
            return replace(self, residual=FixedResidual(0.0))
        return self

    def estimate(
        self,
        trace: PassTrace,
        losses: Tensor,
        measure: bool = False,
        shared: Tensor | None = None,
        take: Take | None = None,
    ) -> Estimate:
        """The cotangents of all drifts of a pass.

        Args:
            trace: What the pass left behind.
            losses: (U,), or (T, U) per step; with a graph where the credit asks for it. U is
                C * B, or C where a loss belongs to all samples of a replica.
            measure: Whether both the cheap and the unbiased cotangents are wanted, whatever their
                weights.
            shared: (C,) or (T, C), what is added to the mean loss of each replica.
            take: Gets the cheap cotangents as soon as they are there, with their weight in them;
                they are not part of the result then. It stays None to measure.
        """
        found, rows = Estimate(couples=trace.couples), self._count(losses)
        layers = list(trace.active)
        exact = all(self.residual.weight(layer.name) == 1 for layer in layers)
        terms = [losses] if shared is None else [losses, shared]
        whole = losses
        if shared is not None:  # over as many rows as the losses
            whole = (losses.sum() + shared.sum() * (rows / self._count(shared)))[None]
        blind = trace.mixed or any(not term.requires_grad for term in terms)
        if self.credit.reach is not None and whole.requires_grad:
            self.credit.look(trace, whole)
            if blind or (exact and not measure):
                self._collect(trace, whole)
            else:
                found.cheap = self._cheap(trace, whole, rows, take)
            found.reached = {layer for layer in layers if self.credit.reaches(layer)}
        elif not (exact or self.score.signs):
            found.passed_on = self._pass_on(trace, terms, found, take)
        for layer in layers:
            # A credit sees nothing of a term that has no derivative.
            own = layer in found.reached and (found.passed_on or not blind)
            found.weights[layer] = self.residual.weight(layer.name) if own else 1.0
        counts = [layer for layer, weight in found.weights.items() if weight > 0 or measure]
        counts = [layer for layer in counts if layer not in found.unbiased]
        if counts:
            again = bool(found.cheap) or len(terms) > 1
            again = again and self._controls(trace.replicas) and bool(found.reached)
            self._charge(trace, terms, found, counts, again)
        if blind and not found.passed_on:
            found.reached = set()
        self.credit.learn(trace)
        return found

    def _pass_on(
        self, trace: PassTrace, terms: list[Tensor], found: Estimate, take: Take | None
    ) -> bool:
        """Lets the likelihood ratio of the last layers stand in for the losses' derivative.

        Returns:
            Whether it could.
        """
        outputs = sum_of_outputs(trace)
        if outputs is None or self.credit.reach not in ("layers", "time"):
            return False
        last = last_layers(trace, outputs)
        self._charge(trace, terms, found, last, False)
        for layer in last:
            part = found.unbiased[layer]
            found.unbiased[layer] = replace(part, chunks=list(part.chunks))
        known = by_node(found.unbiased.values())
        if known is None:
            return False
        found.cheap = self._cheap(trace, outputs, 1, take, known)
        found.reached = set(found.cheap)
        return True

    def _count(self, losses: Tensor) -> int:
        """Over how many losses a mean is taken, those of all processes."""
        return max(1, losses.shape[-1] * self.ranks.size)

    def _cheap(
        self,
        trace: PassTrace,
        losses: Tensor,
        rows: int,
        take: Take | None,
        known: Mapping[NodeState, Tensor] = surrogate.NOTHING,
    ) -> dict[LayerTrace, LayerCotangents]:
        """The credit's cotangents of all layers that it reaches, kept or handed on."""
        kept: dict[LayerTrace, list[Chunk]] = {layer: [] for layer in trace.active}
        shares = {layer: 1 - self.residual.weight(layer.name) for layer in trace.active}

        def keep(layer: LayerTrace, chunk: Chunk) -> None:
            kept[layer].append(chunk)

        def hand_on(layer: LayerTrace, chunk: Chunk) -> None:
            assert take is not None
            share = shares[layer]
            if share > 0:
                take(layer, chunk if share == 1 else replace(chunk, values=chunk.values * share))

        receive = keep if take is None else hand_on
        levels = surrogate.walk_back(trace, losses, self.credit, rows, receive, known)
        return {
            layer: LayerCotangents(layer, kept[layer], sigma) for layer, sigma in levels.items()
        }

    def _controls(self, replicas: int) -> bool:
        """Whether a credit may be a control variate.

        With one replica it would depend on the replica's own noise.
        """
        return not self.per_step and replicas >= 2 * self.sharing.size

    def _collect(self, trace: PassTrace, losses: Tensor) -> None:
        """What a control variate is made of; nothing where nobody had thought of one."""
        if _has_membranes(trace):
            collect(trace, losses, self.score.conditioned)

    def _charge(
        self,
        trace: PassTrace,
        terms: list[Tensor],
        found: Estimate,
        counts: list[LayerTrace],
        again: bool,
    ) -> None:
        """The unbiased cotangents, from all terms of the loss.

        Args:
            trace: The pass.
            terms: The losses, and what replicas share.
            found: What is added to.
            counts: The layers that are asked for.
            again: Whether each term's own derivatives are asked for; else they are there.
        """
        weights: dict[LayerTrace, Tensor] = {}
        credits: dict[LayerTrace, dict[Timeline, Tensor]] = {}
        for term in terms:
            controlled = found.reached
            if again and term.requires_grad:
                self.credit.look(trace, term)
                self._collect(trace, term)
                controlled = {layer for layer in controlled if self.credit.reaches(layer)}
            elif again:
                controlled = set()
            weight, own = self._weigh(trace, term.detach(), controlled)
            for layer in counts:
                spread = _order(layer, trace.replicas, term.shape[-1]).spread(weight)
                weights[layer] = weights[layer] + spread if layer in weights else spread
                for timeline, c in own.get(layer, {}).items():
                    held = credits.setdefault(layer, {})
                    held[timeline] = held[timeline] + c if timeline in held else c
        for layer in counts:
            found.unbiased[layer] = self.score.cotangents(layer, weights[layer], credits.get(layer))

    def _weigh(
        self, trace: PassTrace, losses: Tensor, controlled: set[LayerTrace]
    ) -> tuple[Tensor, dict[LayerTrace, dict[Timeline, Tensor]]]:
        """What multiplies the scores, in the losses' shape, and the coefficients by layer."""
        rows = self._count(losses)
        weight = self._advantages(losses, trace.replicas) / rows
        credit: dict[LayerTrace, dict[Timeline, Tensor]] = {}
        if not self._controls(trace.replicas) or not _has_membranes(trace):
            return weight, credit
        for layer in trace.active:
            if layer not in controlled:
                continue
            order = _order(layer, trace.replicas, losses.shape[-1])
            own = {}
            for timeline in layer.timelines:
                known = self.credit.known(timeline, self.score.conditioned)
                c, explained = coefficients(timeline, known, order, self.sharing)
                own[timeline] = c.div_(rows)
                weight = weight - explained.to(weight) / rows
            credit[layer] = own
        return weight, credit

    def _advantages(self, losses: Tensor, replicas: int) -> Tensor:
        if not losses.numel():
            return losses
        baseline, alone = self.baseline, replicas * self.ranks.sharers <= self.sharing.size
        if baseline == "leave-one-out" and alone:
            baseline = "batch-mean"  # no other replica is there to be left over
        if baseline == "batch-mean" and alone and losses.shape[-1] <= self.sharing.size:
            baseline = "none"

        def of(step: Tensor) -> Tensor:
            rows = step.view(replicas, -1)
            return advantages(rows, baseline, self.sharing, self.ranks).flatten()

        if not self.per_step:
            return of(losses)
        # The noise of step t is charged with the losses from t on.
        return torch.stack([of(step) for step in losses]).flip(0).cumsum(0).flip(0)


def _order(layer: LayerTrace, replicas: int, units: int) -> Order:
    """How the rows of a layer lie, for a term of so many losses.

    Raises:
        RecordingError: They do not fit together.
    """
    order = layer.order or Order(replicas, layer.rows // replicas)
    if units == order.units:
        return order
    if units == replicas:
        return order.whole
    raise RecordingError(
        f"{layer.name} has {layer.rows} rows for {units} losses. Give one loss for each row."
    )


def _has_membranes(trace: PassTrace) -> bool:
    """Whether they were kept; else nobody had thought that scores would count in this pass."""
    return all(layer.segments[0].membrane is not None for layer in trace.active)
