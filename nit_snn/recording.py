"""What one recorded forward pass leaves behind, and how it is gathered.

A noisy neuron's drift depends on its parameters in one of two ways. If its current came straight
from a registered synapse (see `taps`), only that is remembered. Any other drift is kept
with its local graph, which ends at the spikes of the noisy layer before.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .control import FiringRecord
from .errors import BiasWarning, RecordingError
from .neurons.base import Charge, NoisyNeuron
from .neurons.functional import perturb
from .noise import ReplicaNoise
from .rules import Scores, conditional_scores, scores, sigma_gradient, weighted_score
from .taps import Source, Tap


@dataclass(eq=False)
class Event:
    """One draw of noise, or the sum of several whose drifts depend alike on the parameters.

    Either `source` or `drift` says what the noise belongs to: the output of a synapse (all of it,
    or one time `step` of it, of `length` in all), or a drift that holds its local graph. Both
    may be missing where only the noise level is learned.
    """

    calls: list[int]
    shape: torch.Size
    dtype: torch.dtype
    scores: Scores | None
    gain: float
    source: Source | None
    step: int | None
    drift: Tensor | None
    length: int

    def absorbs(self, other: Event) -> bool:
        """Whether the two draws may be summed before they meet the presynaptic activity."""
        return (
            self.source is not None
            and self.step is None
            and (self.source, self.step, self.gain, self.shape, self.dtype)
            == (other.source, other.step, other.gain, other.shape, other.dtype)
        )


@dataclass(eq=False)
class LayerTrace:
    """The noise that one neuron got in a pass, and where it came in."""

    name: str
    number: int
    neuron: NoisyNeuron
    calls: int = 0
    events: list[Event] = field(default_factory=list)


class Recording:
    """One forward pass: gives the neurons their noise and remembers what it belongs to.

    Args:
        neurons: The noisy neurons by qualified name.
        noise: Where their noise comes from.
        index: Number of the pass.
        rule: "nit" or "nit-s" (see `nit_snn.rules`).
        conditional: Condition the scores on the spikes.
        controlled: Names of the layers whose spikes the loss reads (see `nit_snn.control`).
        store_noise: Keep the scores until they are gathered, instead of drawing the noise again.
    """

    learns = True

    def __init__(
        self,
        neurons: dict[str, NoisyNeuron],
        noise: ReplicaNoise,
        index: int,
        *,
        rule: str = "nit",
        conditional: bool = False,
        controlled: Collection[str] = (),
        store_noise: bool = True,
    ) -> None:
        self.noise = noise
        self.index = index
        self.rule = rule
        self.hides_membranes = self.conditional = conditional
        self.store_noise = store_noise
        self.pending = True
        self.rows: int | None = None
        self.traces = {
            neuron: LayerTrace(name, number, neuron)
            for number, (name, neuron) in enumerate(neurons.items())
        }
        self.firing = {
            neuron: FiringRecord() for name, neuron in neurons.items() if name in controlled
        }

    @contextmanager
    def running(self, taps: list[Tap]) -> Iterator[None]:
        """The neurons ask this recording for noise, and the taps stand in for the synapses."""
        busy = [trace.name for neuron, trace in self.traces.items() if neuron._recorder is not None]
        if busy:
            raise RecordingError(f"Something else is recording or probing {', '.join(busy)}.")
        try:
            for neuron in self.traces:
                neuron._recorder = self
            for tap in taps:
                tap.install()
            yield
        finally:
            for tap in taps:
                tap.remove()
            for neuron in self.traces:
                vars(neuron).pop("_recorder", None)

    def perturb(self, neuron: NoisyNeuron, charge: Charge) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        trace = self.traces[neuron]
        if not neuron.noise:
            raise RecordingError(
                f"A NITLearner learns from the noise, but that of {trace.name} is switched off. "
                "Leave noise_off() before learner.record()."
            )
        if any(x.requires_grad for x in charge.local):
            source, static = None, False
        else:
            source, static = Source.of(charge.current)
        with torch.set_grad_enabled(source is None):
            drift = charge.drift()
        self._check_rows(trace.name, drift)
        features_last = source is not None and isinstance(source.module, nn.Linear)
        neuron._fit_sigma(trace.name, drift, features_last)
        if charge.delayed_reset and trace.calls and charge.local[0].requires_grad:
            _warn_of_delayed_reset(trace.name)
        call, trace.calls = trace.calls, trace.calls + 1
        noise = self._draw(trace, call, drift.shape, drift.dtype)
        membrane = perturb(drift.detach(), neuron.sigma.detach(), noise)
        learn_sigma = neuron.sigma.requires_grad
        firing = self.firing.get(neuron)
        if self.conditional or firing is not None:
            spike, level = _firing(neuron, charge, drift.detach(), membrane, noise.dtype)
            if firing is not None:
                firing.add(spike, level, neuron.sigma.detach().to(level.dtype))
        if source is not None or drift.requires_grad or learn_sigma:
            if self.conditional:
                kept: Scores | None = conditional_scores(noise, spike, level, learn_sigma)
            else:
                kept = scores(noise, self.rule, learn_sigma) if self.store_noise else None
            event = Event(
                [call],
                drift.shape,
                drift.dtype,
                kept,
                charge.gain,
                source,
                None if static else charge.step,
                drift if source is None else None,
                charge.current.shape[0],
            )
            _remember(trace.events, event)
        return membrane

    def emit(self, neuron: NoisyNeuron, spikes: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        firing = self.firing.get(neuron)
        return spikes if firing is None else firing.emit(spikes)

    def gather(
        self, weight: Tensor, control: Mapping[NoisyNeuron, list[Tensor]] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Turns the noise into cotangents, for `torch.autograd.backward`.

        Args:
            weight: (rows,), what multiplies the score of each row.
            control: For layers with a control variate, its coefficient in each call over the
                number of rows, (rows, *).

        Returns:
            Tensors and their cotangents: drifts with a local graph, and parameters of the
            registered synapses with their finished gradients.
        """
        drifts: list[tuple[Tensor, Tensor]] = []
        gradients: dict[Tensor, Tensor] = {}
        signed = self.rule == "nit-s"

        def add(parameter: Tensor, gradient: Tensor) -> None:
            held = gradients.get(parameter)
            gradients[parameter] = gradient if held is None else held + gradient

        for trace in self.traces.values():
            sigma = trace.neuron.sigma.detach()
            sequences: dict[Source, dict[int, Tensor]] = {}
            lengths: dict[Source, int] = {}
            firing, factors = self.firing.get(trace.neuron), (control or {}).get(trace.neuron)
            for event in trace.events:
                total = self._scores_of(trace, event)
                if isinstance(trace.neuron.sigma, nn.Parameter) and total.sigma is not None:
                    add(trace.neuron.sigma, sigma_gradient(total.sigma, weight, sigma))
                cotangent = weighted_score(total.drift, weight, sigma, self.rule)
                if firing is not None and factors is not None:
                    for call in event.calls:
                        known = factors[call] * firing.densities[call]
                        cotangent = cotangent + known
                        if isinstance(trace.neuron.sigma, nn.Parameter):
                            moved = (known * firing.levels[call]).sum_to_size(sigma.shape)
                            add(trace.neuron.sigma, moved)
                if event.source is None:
                    if event.drift is not None and event.drift.requires_grad:
                        drifts.append((event.drift, cotangent.to(event.drift.dtype)))
                    continue
                if not signed:
                    cotangent = cotangent * event.gain
                if event.step is None:
                    for pair in event.source.parameter_gradients(cotangent, signed):
                        add(*pair)
                else:
                    slots = sequences.setdefault(event.source, {})
                    slots[event.step] = slots.get(event.step, 0) + cotangent
                    lengths[event.source] = event.length
            for source, slots in sequences.items():
                nothing = torch.zeros_like(next(iter(slots.values())))
                stacked = torch.stack([slots.get(t, nothing) for t in range(lengths[source])])
                for pair in source.parameter_gradients(stacked, signed):
                    add(*pair)
        pairs = [*drifts, *((p, g.to(p.dtype)) for p, g in gradients.items())]
        return [tensor for tensor, _ in pairs], [cotangent for _, cotangent in pairs]

    def _scores_of(self, trace: LayerTrace, event: Event) -> Scores:
        if event.scores is not None:
            return event.scores
        learn_sigma = trace.neuron.sigma.requires_grad
        total: Scores | None = None
        for call in event.calls:
            noise = self._draw(trace, call, event.shape, event.dtype)
            drawn = scores(noise, self.rule, learn_sigma)
            if total is None:
                total = drawn
            else:
                total += drawn
        assert total is not None
        return total

    def _draw(self, trace: LayerTrace, call: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self.noise.draw(
            shape,
            dtype,
            trace.neuron.sigma.device,
            index=self.index,
            layer=trace.number,
            call=call,
            layers=len(self.traces),
        )

    def _check_rows(self, name: str, drift: Tensor) -> None:
        replicas = self.noise.replicas
        rows = drift.shape[0] if drift.dim() else 0
        if drift.dim() == 0 or rows % replicas:
            raise RecordingError(
                f"{name} got a current of shape {tuple(drift.shape)}; its first dimension must be "
                f"replicas * batch, a multiple of {replicas}. Did the input go through "
                "learner.expand()? (time-first input: expand(..., dim=1))"
            )
        if self.rows is not None and rows != self.rows:
            raise RecordingError(
                f"{name} got {rows} rows, the noisy layers before it {self.rows}; "
                "every noisy layer must see the same replicas * batch rows."
            )
        self.rows = rows


def _remember(events: list[Event], event: Event) -> None:
    if events and events[-1].absorbs(event):
        events[-1].calls += event.calls
        held = events[-1].scores
        if held is not None and event.scores is not None:
            held += event.scores
    else:
        events.append(event)


def _firing(
    neuron: NoisyNeuron, charge: Charge, drift: Tensor, membrane: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Whether each neuron fires, and a = (threshold - m) / sigma."""
    assert charge.fires is not None
    pending = 0.0 if charge.pending is None else charge.pending()
    level = (charge.threshold - (drift + pending).to(dtype)) / neuron.sigma.detach().to(dtype)
    return charge.fires(membrane + pending), level


def _warn_of_delayed_reset(name: str) -> None:
    warnings.warn(
        f"{name} was given a membrane that depends on trainable parameters. snnTorch decides on "
        "its reset from that membrane, and the jump that this makes is not in the estimate, which "
        "is biased for these parameters. Use reset_mechanism='none', or detach the membrane.",
        BiasWarning,
        stacklevel=2,
    )
