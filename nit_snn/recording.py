"""What one recorded forward pass leaves behind, and how it is gathered.

A noisy neuron's drift depends on its parameters in one of two ways. If its current came straight
from a registered synapse (see `taps`), only that is remembered. Any other drift is kept
with its local graph, which ends at the spikes of the noisy layer before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .errors import RecordingError
from .neurons.base import Charge, NoisyNeuron
from .neurons.functional import perturb
from .noise import ReplicaNoise
from .rules import weighted_score
from .taps import Source, Tap


@dataclass(eq=False)
class Event:
    """One draw of noise, or the sum of several whose drifts depend alike on the parameters.

    Either `source` or `drift` says what the noise belongs to: the output of a synapse (all of it,
    or one time `step` of it), or a drift that holds its local graph.
    """

    calls: list[int]
    shape: torch.Size
    dtype: torch.dtype
    noise: Tensor | None
    gain: float
    source: Source | None
    step: int | None
    drift: Tensor | None

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
        store_noise: Keep the noise until it is gathered, instead of drawing it again.
    """

    needs_graph = True

    def __init__(
        self, neurons: dict[str, NoisyNeuron], noise: ReplicaNoise, index: int, store_noise: bool
    ) -> None:
        self.noise = noise
        self.index = index
        self.store_noise = store_noise
        self.rows: int | None = None
        self.traces = {
            neuron: LayerTrace(name, number, neuron)
            for number, (name, neuron) in enumerate(neurons.items())
        }

    @contextmanager
    def running(self, taps: list[Tap]) -> Iterator[None]:
        """The neurons ask this recording for noise, and the taps stand in for the synapses."""
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
        call, trace.calls = trace.calls, trace.calls + 1
        noise = self._draw(trace, call, drift.shape, drift.dtype)
        if source is not None or drift.requires_grad:
            event = Event(
                [call],
                drift.shape,
                drift.dtype,
                noise if self.store_noise else None,
                charge.gain,
                source,
                None if static else charge.step,
                drift if source is None else None,
            )
            _remember(trace.events, event)
        return perturb(drift.detach(), neuron.sigma.detach(), noise)

    def gather(self, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Turns the noise into cotangents, for `torch.autograd.backward`.

        Args:
            weight: (rows,), what multiplies the score of each row.

        Returns:
            Tensors and their cotangents: drifts with a local graph, and parameters of the
            registered synapses with their finished gradients.
        """
        drifts: list[tuple[Tensor, Tensor]] = []
        gradients: dict[nn.Parameter, Tensor] = {}
        for trace in self.traces.values():
            sequences: dict[Source, dict[int, Tensor]] = {}
            for event in trace.events:
                cotangent = weighted_score(self._noise_of(trace, event), weight, trace.neuron.sigma)
                if event.drift is not None:
                    drifts.append((event.drift, cotangent.to(event.drift.dtype)))
                elif event.source is not None and event.step is None:
                    _add(gradients, event.source, cotangent * event.gain)
                elif event.source is not None and event.step is not None:
                    slots = sequences.setdefault(event.source, {})
                    scaled = cotangent * event.gain
                    slots[event.step] = slots.get(event.step, 0) + scaled
            for source, slots in sequences.items():
                _add(gradients, source, torch.stack([slots[step] for step in sorted(slots)]))
        pairs = [*drifts, *((p, g.to(p.dtype)) for p, g in gradients.items())]
        return [tensor for tensor, _ in pairs], [cotangent for _, cotangent in pairs]

    def _noise_of(self, trace: LayerTrace, event: Event) -> Tensor:
        if event.noise is not None:
            return event.noise
        noise = self._draw(trace, event.calls[0], event.shape, event.dtype)
        for call in event.calls[1:]:
            noise += self._draw(trace, call, event.shape, event.dtype)
        return noise

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
        if events[-1].noise is not None and event.noise is not None:
            events[-1].noise += event.noise
    else:
        events.append(event)


def _add(gradients: dict[nn.Parameter, Tensor], source: Source, cotangent: Tensor) -> None:
    for parameter, gradient in source.parameter_gradients(cotangent):
        held = gradients.get(parameter)
        gradients[parameter] = gradient if held is None else held + gradient
