"""Turns what a pass has recorded, and what its rows are charged with, into gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dynamics.backend import is_native
from ..dynamics.compiled.conditioned import charge
from ..dynamics.cuda_executor import Layer
from ..estimators.scores import Scores, scores, sigma_gradient, weighted_score
from ..neurons.base import NoisyNeuron
from ..recording.packed_spikes import Packed
from ..recording.synapse_taps import Source
from ..recording.trace import Estimate, Event, LayerTrace

if TYPE_CHECKING:
    from ..recording.recorder import Recording


class Gathering:
    """Gathers the gradient of one recorded pass.

    Args:
        recording: The pass.
        again: Whether it may be gathered another time: it keeps what it has then.
    """

    def __init__(self, recording: Recording, again: bool = False) -> None:
        self.recording = recording
        self.again = again

    def gather(
        self,
        weight: Tensor,
        estimate: Estimate,
        control: Mapping[NoisyNeuron, list[Tensor]] | None = None,
        measure: bool = False,
        everything: bool = True,
    ) -> None:
        """Turns the noise into gradients and cotangents, and lets go of it, if it may.

        Args:
            weight: (rows,), what multiplies the score of each row; if `causal`, (T, rows), what
                multiplies that of each call.
            estimate: Takes them.
            control: For layers with a control variate, its coefficient in each call over the
                number of rows, (rows, *).
            measure: Fill in `Estimate.shares`.
            everything: Or only what later calls will not be summed with.
        """
        for trace in self.recording.traces.values():
            layer: dict[torch.Size, Tensor] = {}  # a shared neuron may have several sizes
            totals: dict[Source, Tensor] = {}
            sequences: dict[Source, dict[int, Tensor]] = {}
            lengths: dict[Source, int] = {}
            arriving: dict[int, Tensor] = {}  # what later drifts ask of each call's membrane
            events = list(trace.events) if self.again else trace.take(everything)
            if not self.recording.pathwise:
                events.reverse()  # the next one is the last of the list
            awaited = Counter(t.source for e in events for t in e.targets if t.step is None)
            while events:
                event = events.pop()
                if event.sequence:
                    whole = (
                        self._sequence(trace, event, weight, control or {}, estimate, measure)
                        if event.steps is None
                        else self._conditioned(
                            trace, event, weight, control or {}, arriving, estimate
                        )
                    )
                    if trace.layer is not None and not self.again:
                        trace.layer.forget(event.calls)
                    if whole is not None and measure:
                        held = layer.get(whole.shape)
                        layer[whole.shape] = whole if held is None else held + whole
                    continue
                own = self._weight(weight, trace.number, event.calls[0])
                cotangent = self._cotangent(trace, event, own, control or {}, estimate)
                if self.recording.pathwise:
                    cotangent = self._followed(trace, event, cotangent, arriving, estimate)
                if measure:
                    held = layer.get(cotangent.shape)
                    layer[cotangent.shape] = cotangent if held is None else held + cotangent
                if event.drift is not None:
                    estimate.drifts.append(event.drift)
                    estimate.cotangents.append(cotangent.to(event.drift.dtype))
                for target in event.targets:
                    share = self._scaled(cotangent, target.gain)
                    if target.step is None:
                        held = totals.get(target.source)
                        totals[target.source] = share if held is None else held + share
                        awaited[target.source] -= 1
                        if not awaited[target.source]:
                            self._through(target.source, totals.pop(target.source), estimate)
                    else:
                        slots = sequences.setdefault(target.source, {})
                        slots[target.step] = slots.get(target.step, 0) + share
                        lengths[target.source] = target.length
            for source, slots in sequences.items():
                nothing = torch.zeros_like(next(iter(slots.values())))
                totals[source] = torch.stack(
                    [slots.get(t, nothing) for t in range(lengths[source])]
                )
            for source, total in totals.items():
                self._through(source, total, estimate)
            estimate.shares[trace.name] = list(layer.values())

    def _sequence(
        self,
        trace: LayerTrace,
        event: Event,
        weight: Tensor,
        control: Mapping[NoisyNeuron, list[Tensor]],
        estimate: Estimate,
        measure: bool,
    ) -> Tensor | None:
        """Adds what a sequence of steps gives; the sum of its cotangents, (rows, *), if measured.

        Chunk by chunk in time, so that what is unpacked and drawn again at once stays small.
        """
        layer, calls = self.recording.layer_of(trace), range(event.calls[0], event.calls[-1] + 1)
        if self.recording.causal:
            weight = torch.stack([self._weight(weight, trace.number, call) for call in calls])
        else:
            weight = self._weight(weight, trace.number, calls[0])
        sigma = trace.neuron.sigma
        if sigma.requires_grad:
            moved = layer.sigma_total(weight, event.shape, event.calls, event.past)
            estimate.add(sigma, moved.sum_to_size(sigma.shape) / sigma.detach())
        put_back = self._put_back(trace, event, control, estimate)
        target = next(iter(event.targets), None)
        source, gain = (None, 1.0) if target is None else (target.source, target.gain)
        total: Tensor | None = None
        if source is None and event.drift is None and not measure:
            return total
        if source is not None and not (measure or self.recording.causal or event.past):
            found = source.from_bits(
                lambda spikes, outputs: layer.of_linear(weight, spikes, calls, outputs, gain)
            )
            if found is not None:
                for pair in found:
                    estimate.add(*pair)
                return total
        for steps, cotangent in layer.cotangents(
            weight,
            event.shape,
            calls,
            gain=event.gain if target is None else gain,
            summed=event.static,
            whole=not _comes_in_steps(source, len(calls), layer.signs),
            dtype=event.dtype,
            past=event.past,
        ):
            if put_back is not None:
                own = put_back[:, steps.start : steps.stop]
                own = own.sum(1) if event.static else own.transpose(0, 1)
                cotangent = cotangent + self._scaled(own, event.gain if target is None else gain)
            if event.drift is not None:
                if layer.signs:  # the graph that a direction is sent through has the gain in it
                    cotangent = cotangent * event.gain
                estimate.drifts.append(event.drift)
                estimate.cotangents.append(cotangent.to(event.drift.dtype))
            elif source is not None:
                whole = event.static or len(steps) == len(calls)
                self._through(source, cotangent, estimate, None if whole else steps)
            if measure:
                share = cotangent if event.static else cotangent.sum(0)
                total = share if total is None else total + share
        return total

    def _conditioned(
        self,
        trace: LayerTrace,
        event: Event,
        weight: Tensor,
        control: Mapping[NoisyNeuron, list[Tensor]],
        arriving: dict[int, Tensor],
        estimate: Estimate,
    ) -> Tensor:
        """Adds what a sequence conditioned pathwise gives; returns the sum of its cotangents."""
        steps, calls, sigma = event.steps, event.calls, trace.neuron.sigma
        assert steps is not None
        if self.recording.causal:
            own = torch.stack([self._weight(weight, trace.number, call) for call in calls])
        else:
            own = self._weight(weight, trace.number, calls[0])[None]
        later = arriving.pop(calls[-1], None)
        charged = None
        if is_native() and not sigma.requires_grad:
            charged = charge(
                steps,
                own if self.recording.causal else own[0],
                sigma,
                event.carry,
                self._to_put_back(trace, event, control),
                later,
                each=event.drift is not None or not event.static,
            )
        if charged is None:
            charged = self._charged(trace, event, own, control, later, estimate)
        cotangents, total, later = charged
        if event.link is not None and later is not None:
            held = arriving.get(event.link.origin)
            arriving[event.link.origin] = later if held is None else held + later
        target = next(iter(event.targets), None)
        found = total if event.static and event.drift is None else cotangents
        assert found is not None
        if event.drift is not None:
            estimate.drifts.append(event.drift)
            estimate.cotangents.append(self._scaled(found, event.gain).to(event.drift.dtype))
        elif target is not None:
            self._through(target.source, self._scaled(found, target.gain), estimate)
        return total

    def _charged(
        self,
        trace: LayerTrace,
        event: Event,
        weight: Tensor,
        control: Mapping[NoisyNeuron, list[Tensor]],
        later: Tensor | None,
        estimate: Estimate,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `nit_snn.dynamics.compiled.conditioned.charge`; `weight` is (1, N) or (T, N)."""
        steps, sigma = event.steps, trace.neuron.sigma
        assert steps is not None
        own = weight.to(steps.score.dtype)
        own = own.view(len(own), -1, *(1,) * (steps.score.dim() - 2))
        if steps.level_score is not None:
            moved = (own * steps.level_score).sum_to_size(sigma.shape)
            estimate.add(sigma, moved / sigma.detach())
        cotangents = steps.score * (own / sigma.detach().to(own.dtype))
        put_back = self._put_back(trace, event, control, estimate)
        if put_back is not None:
            cotangents += put_back.transpose(0, 1)
        carried = torch.zeros_like(sigma) if steps.level_decay is not None else None
        for t in range(len(steps.score) - 1, -1, -1):
            if steps.decay is None:
                break
            if later is not None:
                cotangents[t].addcmul_(later, steps.decay[t])
                if carried is not None and steps.level_decay is not None:
                    carried += (later * steps.level_decay[t]).sum_to_size(sigma.shape)
            later = cotangents[t] * event.carry
        if carried is not None:
            estimate.add(sigma, carried)
        return cotangents, cotangents.sum(0), later

    def _to_put_back(
        self, trace: LayerTrace, event: Event, control: Mapping[NoisyNeuron, list[Tensor]]
    ) -> tuple[Tensor, Tensor] | None:
        """The coefficients and covariances of `_put_back`, (T, rows, *), not multiplied."""
        record, factors = self.recording.firing.get(trace.neuron), control.get(trace.neuron)
        if record is None or factors is None:
            return None
        entry = record.entries[event.calls[0]]
        return factors[entry].transpose(0, 1), record.covariances[entry].transpose(0, 1)

    def _put_back(
        self,
        trace: LayerTrace,
        event: Event,
        control: Mapping[NoisyNeuron, list[Tensor]],
        estimate: Estimate,
    ) -> Tensor | None:
        """What a control variate takes from a sequence's scores on average, (rows, T, *)."""
        found = self._to_put_back(trace, event, control)
        if found is None:
            return None
        factors, covariances = (x.transpose(0, 1) for x in found)
        sigma = trace.neuron.sigma
        if sigma.requires_grad:
            record = self.recording.firing[trace.neuron]
            entry = record.entries[event.calls[0]]
            moved = factors * record.ledger.densities[entry] * record.levels[entry]
            estimate.add(sigma, moved.sum_to_size(sigma.shape))
        return factors * covariances

    def _weight(self, weight: Tensor, layer: int, call: int) -> Tensor:
        """(rows,): what multiplies one call's score."""
        if self.recording.causal:
            weight = weight[call]
        if not self.recording.layerwise:
            return weight
        # Only every so many replicas had noise here: the mean is over these.
        layers = len(self.recording.traces)
        by_replica = torch.zeros_like(weight).view(self.recording.noise.replicas, -1)
        by_replica[layer::layers] = layers * weight.view_as(by_replica)[layer::layers]
        return by_replica.flatten()

    def follow(self, estimate: Estimate, mean: Tensor) -> None:
        """Adds what reaches synapses through currents that neurons remember.

        Args:
            estimate: What `gather` returned.
            mean: The mean loss; it may read such a memory itself.
        """
        outputs = [*estimate.drifts, *([mean] if mean.requires_grad else [])]
        if not self.recording.held or not outputs:
            return
        cotangents = [*estimate.cotangents, torch.ones_like(mean)][: len(outputs)]
        leaves = [leaf for leaf, _ in self.recording.held]
        found = torch.autograd.grad(
            outputs, leaves, cotangents, retain_graph=True, allow_unused=True
        )
        totals: dict[Source, Tensor] = {}
        for (_, source), share in zip(self.recording.held, found, strict=True):
            if share is not None:
                held = totals.get(source)
                totals[source] = share if held is None else held + share
        for source, total in totals.items():
            self._through(source, total, estimate)

    def _through(
        self,
        source: Source,
        cotangent: Tensor,
        estimate: Estimate,
        steps: range | None = None,
    ) -> None:
        for pair in source.parameter_gradients(cotangent, self.recording.rule == "nit-s", steps):
            estimate.add(*pair)

    def _cotangent(
        self,
        trace: LayerTrace,
        event: Event,
        weight: Tensor,
        control: Mapping[NoisyNeuron, list[Tensor]],
        estimate: Estimate,
    ) -> Tensor:
        """A * score of an event's drift, (rows, *); the noise level's share goes to `estimate`."""
        neuron, sigma = trace.neuron, trace.neuron.sigma.detach()
        learns_sigma = neuron.sigma.requires_grad
        if self.recording.plain and event.scores is None:
            layer = self.recording.layer_of(trace)
            assert isinstance(layer, Layer)
            if learns_sigma:
                moved = layer.sigma_total(weight, event.shape, event.calls)
                estimate.add(neuron.sigma, moved.sum_to_size(sigma.shape) / sigma)
            return layer.cotangent(weight, event.shape, event.calls)
        total = self._scores_of(trace, event)
        if learns_sigma and total.sigma is not None:
            estimate.add(neuron.sigma, sigma_gradient(total.sigma, weight, sigma))
        cotangent = weighted_score(total.drift, weight, sigma, self.recording.rule)
        record, factors = self.recording.firing.get(neuron), control.get(neuron)
        if record is not None and factors is not None:
            for entry in (record.entries[call] for call in event.calls):
                cotangent = torch.addcmul(cotangent, factors[entry], record.covariances[entry])
                if learns_sigma:
                    moved = factors[entry] * record.ledger.densities[entry] * record.levels[entry]
                    estimate.add(neuron.sigma, moved.sum_to_size(sigma.shape))
        return cotangent

    def _followed(
        self,
        trace: LayerTrace,
        event: Event,
        cotangent: Tensor,
        arriving: dict[int, Tensor],
        estimate: Estimate,
    ) -> Tensor:
        """The whole cotangent of a drift: with what its membrane means to later drifts."""
        later = arriving.pop(event.calls[0], None)
        if later is not None and event.carried is not None:
            cotangent = torch.addcmul(cotangent, later, event.carried.drift)
            if event.carried.sigma is not None:
                sigma = trace.neuron.sigma
                estimate.add(sigma, (later * event.carried.sigma).sum_to_size(sigma.shape))
        if event.link is not None:
            passed = cotangent * event.link.carry
            held = arriving.get(event.link.origin)
            arriving[event.link.origin] = passed if held is None else held + passed
        return cotangent

    def _scaled(self, cotangent: Tensor, gain: float | Tensor) -> Tensor:
        """A cotangent of the drift as one of a current; a direction keeps its scale."""
        if self.recording.rule == "nit-s":
            return cotangent * (gain != 0) if isinstance(gain, Tensor) else cotangent
        return cotangent if isinstance(gain, float) and gain == 1.0 else cotangent * gain

    def _scores_of(self, trace: LayerTrace, event: Event) -> Scores:
        if event.scores is not None:
            return event.scores
        learn_sigma = trace.neuron.sigma.requires_grad
        total: Scores | None = None
        for call in event.calls:
            noise = trace.noise.draw(call, event.shape, event.dtype)
            drawn = scores(noise, self.recording.rule, learn_sigma)
            if total is None:
                total = drawn
            else:
                total += drawn
        assert total is not None
        return total


def _comes_in_steps(source: Source | None, steps: int, signed: bool) -> bool:
    """Whether a synapse takes the cotangent of some steps of its output alone."""
    if source is None or source.output_shape[0] != steps:
        return False
    # Whether an input that is no bits counts as spikes is told from all of it.
    return not signed or isinstance(source.activity, Packed)
