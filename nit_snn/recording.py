"""What one recorded forward pass leaves behind, and how it is gathered.

A noisy neuron's drift depends on its parameters in one of two ways. If its current came straight
from a registered synapse (see `taps`), only that is remembered. Any other drift is kept
with its local graph, which ends at the spikes of the noisy layer before.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from . import bits
from .control import FiringRecord, Gate, Memory
from .emitted import Emitted, Packed, SpikeTrain
from .errors import BiasWarning, LossError, RecordingError
from .firing import Firing
from .fused import GIVEN, TYPES, Layer, Past
from .kernels.noise import PhiloxNoise
from .neurons.base import Charge, Current, Lif, NoisyNeuron, Sequence
from .neurons.closed_form import noisy_step
from .neurons.functional import perturb
from .noise import Noise
from .pathwise import Carried, Link, carried, gap, silent_mean, spike_scores, wandering
from .rules import Scores, conditional_scores, scores, sigma_gradient, weighted_score
from .taps import Source, Tap


@dataclass(frozen=True, eq=False)
class Target:
    """A synapse that the score of a draw belongs to.

    Attributes:
        source: The call of the synapse.
        step: Which time slice of its output, if it made several.
        length: How many slices it made.
        gain: The factor of its output in the drift.
    """

    source: Source
    step: int | None
    length: int
    gain: float | Tensor

    def same(self, other: Target) -> bool:
        """Whether both can take the sum of two scores."""
        equal = self.gain is other.gain or (
            not isinstance(self.gain, Tensor)
            and not isinstance(other.gain, Tensor)
            and self.gain == other.gain
        )
        return equal and self.step is None is other.step and self.source is other.source


@dataclass(eq=False)
class Event:
    """One draw of noise, or the sum of several whose drifts depend alike on the parameters.

    What the noise belongs to: outputs of synapses (`targets`), a drift that holds its local graph,
    or both; neither where only the noise level is learned. `link` is there if the drift is
    differentiated in an earlier call's membrane, too: that call, and the derivative. A `sequence`
    is a run of calls at once; `drift` is then what entered it, (T, N, *), with `gain`, and `past`
    is there if its scores are conditioned on the spikes.
    """

    calls: list[int]
    shape: torch.Size
    dtype: torch.dtype
    scores: Scores | None
    targets: tuple[Target, ...]
    drift: Tensor | None
    carried: Carried | None = None
    link: Link | None = None
    sequence: bool = False
    gain: float | Tensor = 1.0
    past: Past | None = None

    def absorbs(self, other: Event) -> bool:
        """Whether the two draws may be summed before they meet the presynaptic activity."""
        return (
            bool(self.targets)
            and self.drift is None is other.drift
            and not (self.sequence or other.sequence)
            and (self.shape, self.dtype) == (other.shape, other.dtype)
            and len(self.targets) == len(other.targets)
            and all(a.same(b) for a, b in zip(self.targets, other.targets, strict=True))
        )

    def absorb(self, other: Event) -> None:
        self.calls += other.calls
        if self.scores is not None and other.scores is not None:
            self.scores += other.scores


@dataclass(eq=False)
class LayerTrace:
    """The noise that one neuron got in a pass, and where it came in."""

    name: str
    number: int
    neuron: NoisyNeuron
    calls: int = 0
    events: list[Event] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    silent: list[Tensor] = field(default_factory=list)
    train: SpikeTrain = field(default_factory=SpikeTrain)
    packed: Packed | None = None
    dimensions: int = 0

    def origin(self, state: Tensor | None) -> int | None:
        """The call that left `state` behind, if one did."""
        if state is None:
            return None
        for call in reversed(range(len(self.states))):
            left = self.states[call]
            if left.data_ptr() == state.data_ptr() and left.shape == state.shape:
                return call
        return None


@dataclass(eq=False)
class Estimate:
    """What a recording hands to `torch.autograd.backward`.

    Attributes:
        drifts: Drifts with a local graph.
        cotangents: Theirs.
        parameters: Finished gradients of parameters of registered synapses, and of noise levels.
        shares: What each row adds to the gradient of each layer's drift, (rows, *), if measured.
    """

    drifts: list[Tensor] = field(default_factory=list)
    cotangents: list[Tensor] = field(default_factory=list)
    parameters: dict[Tensor, Tensor] = field(default_factory=dict)
    shares: list[Tensor] = field(default_factory=list)

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        held = self.parameters.get(parameter)
        if gradient.dtype in (torch.float16, torch.bfloat16):
            gradient = gradient.float()  # many may be added up
        self.parameters[parameter] = gradient if held is None else held + gradient

    def outputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """All tensors and their cotangents."""
        finished = [gradient.to(p.dtype) for p, gradient in self.parameters.items()]
        return [*self.drifts, *self.parameters], [*self.cotangents, *finished]


class Recording:
    """One forward pass: gives the neurons their noise and remembers what it belongs to.

    Args:
        neurons: The noisy neurons by qualified name.
        noise: Where their noise comes from.
        index: Number of the pass.
        rule: "nit" or "nit-s" (see `nit_snn.rules`).
        conditional: Condition the scores on the spikes: False, True or "pathwise".
        controlled: Names of the layers that get a control variate (see `nit_snn.control`).
        follows: Whether its coefficients are followed from layer to layer.
        through_time: Whether they are followed through membranes and their resets, too.
        layerwise: Replica c has noise in layer `c % layers` only.
        causal: Losses will come per time step, so that the noise of each call is kept apart.
        binary: Those neurons whose spikes are the membrane above its threshold, and nothing else.
        store_noise: Keep the scores until they are gathered, instead of drawing the noise again.
    """

    learns = True

    def __init__(
        self,
        neurons: dict[str, NoisyNeuron],
        noise: Noise,
        index: int,
        *,
        rule: str = "nit",
        conditional: bool | str = False,
        controlled: Collection[str] = (),
        follows: bool = False,
        through_time: bool = False,
        layerwise: bool = False,
        causal: bool = False,
        binary: Collection[NoisyNeuron] = (),
        store_noise: bool = True,
    ) -> None:
        self.noise = noise
        self.index = index
        self.rule = rule
        self.conditional = conditional
        self.hides_membranes = bool(conditional)
        self.hides_states = self.pathwise = conditional == "pathwise"
        self.through_time = through_time
        self.layerwise = layerwise
        self.causal = causal
        self.binary = binary
        self.store_noise = store_noise
        self.pending = True
        self.rows: int | None = None
        self.traces = {
            neuron: LayerTrace(name, number, neuron)
            for number, (name, neuron) in enumerate(neurons.items())
        }
        self.held: list[tuple[Tensor, Source]] = []
        self.firing = {
            neuron: FiringRecord(follows, rule == "nit-s")
            for name, neuron in neurons.items()
            if name in controlled
        }
        self.anchor = torch.zeros((), requires_grad=True)

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
                vars(neuron).pop("_fired", None)

    def release(self) -> None:
        """Lets go of all that was remembered; a shielded membrane may outlive it."""
        self.pending = False
        self.traces, self.firing, self.held = {}, {}, []

    def perturb(self, neuron: NoisyNeuron, charge: Charge) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        trace = self.traces[neuron]
        if not neuron.noise:
            raise RecordingError(
                f"A NITLearner learns from the noise, but that of {trace.name} is switched off. "
                "Leave noise_off() before learner.record()."
            )
        found = [Source.of(_whole(c)) for c in charge.currents]
        sources = [source for source, _ in found]
        targets = tuple(
            Target(source, None if static else c.step, _whole(c).shape[0], c.gain)
            for c, (source, static) in zip(charge.currents, found, strict=True)
            if source is not None
        )
        closed = self._closed(charge, sources)
        if closed and self.plain:
            return self._step_by_kernel(trace, charge, charge.lif, targets, None)
        if closed and not (self.conditional or self.firing):
            return self._closed_step(trace, charge, targets)
        # The graph of a drift leads to all but those synapses whose gradient is a function.
        with torch.enable_grad():
            drift = charge.drift(
                *(
                    c.value if source is None else c.value.detach()
                    for c, source in zip(charge.currents, sources, strict=True)
                )
            )
        if self.plain and drift.dtype in TYPES:
            return self._step_by_kernel(trace, charge, None, targets, drift)
        self._admit(trace, drift, targets)
        if charge.jumps and trace.calls and charge.state is not None and charge.state.requires_grad:
            _warn_of_delayed_reset(trace.name)
        call, trace.calls, trace.dimensions = trace.calls, trace.calls + 1, drift.dim()
        noise = self._draw(trace, call, drift.shape, drift.dtype)
        membrane = perturb(drift.detach(), neuron.sigma.detach(), noise)
        learn_sigma = neuron.sigma.requires_grad
        record = self.firing.get(neuron)
        firing = None
        if self.conditional or record is not None:
            firing = _firing(neuron, charge, drift.detach(), membrane, noise.dtype)
        held = drift if drift.requires_grad else None
        event = Event([call], drift.shape, drift.dtype, None, targets, held)
        if firing is not None and self.pathwise and charge.carries:
            event.carried = carried(firing, noise, charge.wiped, learn_sigma)
            event.link = self._link(trace, charge)
        if record is not None and firing is not None:
            self._remember(trace, record, firing, charge, event, drift, noise, sources)
        if self.pathwise and firing is not None:
            trace.states.append(membrane)
            event.scores = spike_scores(firing, learn_sigma)
            trace.events.append(event)
        elif targets or held is not None or learn_sigma:
            if firing is not None and self.conditional:
                event.scores = conditional_scores(noise, firing, learn_sigma)
            elif self.store_noise:
                event.scores = scores(noise, self.rule, learn_sigma)
            self._add(trace, event)
        return membrane

    @property
    def plain(self) -> bool:
        """Whether the kernels make each step's noise and weigh it, and it is never kept."""
        return isinstance(self.noise, PhiloxNoise) and not (self.conditional or self.firing)

    def _closed(self, charge: Charge, sources: list[Source | None]) -> bool:
        """Whether the drift is its closed form alone: all of its graph ends at known synapses."""
        lif, state = charge.lif, charge.state
        return (
            lif is not None
            and state is not None
            and not lif.learns
            and not state.requires_grad
            and (not self.plain or charge.currents[0].value.dtype in TYPES)
            and all(
                source is not None or not c.value.requires_grad
                for c, source in zip(charge.currents, sources, strict=True)
            )
        )

    def _closed_step(
        self, trace: LayerTrace, charge: Charge, targets: tuple[Target, ...]
    ) -> Tensor:
        """One step of a membrane in closed form, by torch."""
        neuron, lif, state = trace.neuron, charge.lif, charge.state
        assert lif is not None and state is not None
        first, *others = (c.value.detach() for c in charge.currents)
        current = sum(others, first)
        self._admit(trace, current, targets)
        call, trace.calls, trace.dimensions = trace.calls, trace.calls + 1, current.dim()
        noise = self._draw(trace, call, current.shape, current.dtype)
        fired = neuron._spikes_of(state) if trace.calls > 1 else None
        membrane, fires = noisy_step(
            current, state, fired, lif, charge.threshold, neuron.sigma, noise
        )
        if neuron in self.binary:
            neuron._remember(membrane, fires.to(membrane.dtype))
        learn_sigma = neuron.sigma.requires_grad
        if targets or learn_sigma:
            kept = scores(noise, self.rule, learn_sigma) if self.store_noise else None
            self._add(trace, Event([call], current.shape, current.dtype, kept, targets, None))
        return membrane

    def _add(self, trace: LayerTrace, event: Event) -> None:
        """Keeps an event, with the one before it if they can be summed."""
        if not self.causal and trace.events and trace.events[-1].absorbs(event):
            trace.events[-1].absorb(event)
        else:
            trace.events.append(event)

    def _admit(self, trace: LayerTrace, like: Tensor, targets: tuple[Target, ...]) -> None:
        """Checks a drift, (N, *), or a current of its shape."""
        self._check_rows(trace.name, like)
        features_last = any(isinstance(t.source.module, nn.Linear) for t in targets)
        trace.neuron._fit_sigma(trace.name, like, features_last)

    def _layer(self, trace: LayerTrace) -> Layer:
        assert isinstance(self.noise, PhiloxNoise)
        sigma, signs = trace.neuron.sigma.detach(), self.rule == "nit-s"
        return Layer(self.noise, trace.number, len(self.traces), sigma, signs)

    def _step_by_kernel(
        self,
        trace: LayerTrace,
        charge: Charge,
        lif: Lif | None,
        targets: tuple[Target, ...],
        drift: Tensor | None,
    ) -> Tensor:
        """One step whose noise is not kept; from the drift, or from what it consists of."""
        neuron = trace.neuron
        like = charge.currents[0].value if drift is None else drift
        self._admit(trace, like, targets)
        if charge.jumps and trace.calls and charge.state is not None and charge.state.requires_grad:
            _warn_of_delayed_reset(trace.name)
        call, trace.calls, trace.dimensions = trace.calls, trace.calls + 1, like.dim()
        current, state = like.detach(), None
        own = GIVEN if charge.lif is None else charge.lif
        if drift is None:
            assert charge.state is not None
            first, *others = (c.value.detach() for c in charge.currents)
            current, state = sum(others, first), charge.state
            # SpikingJelly resets what is left behind by itself.
            resets = own.dynamics.reset if own.dynamics.delayed else "none"
            own = replace(own, dynamics=replace(own.dynamics, reset=resets))
        else:
            own = replace(GIVEN, dynamics=replace(GIVEN.dynamics, or_equal=own.dynamics.or_equal))
        plane, slot = None, 0
        if neuron in self.binary:
            plane, slot = trace.train.room(like.shape, like.device)
            trace.packed = Packed(plane, range(slot, slot + 1), like.shape)
        spikes, membrane = self._layer(trace).run(
            current.unsqueeze(0),
            state,
            own,
            charge.threshold,
            steps=1,
            first_step=call,
            bits=plane,
            slot=slot,
        )
        if neuron in self.binary:
            neuron._remember(membrane, spikes[0])
        held = drift if drift is not None and drift.requires_grad else None
        if targets or held is not None or neuron.sigma.requires_grad:
            self._add(trace, Event([call], like.shape, like.dtype, None, targets, held))
        return membrane

    def run(self, neuron: NoisyNeuron, sequence: Sequence) -> tuple[Tensor, Tensor] | None:
        """See `nit_snn.neurons.base.Recorder`."""
        x, lif = sequence.current, sequence.lif
        if (
            not isinstance(self.noise, PhiloxNoise)
            or self.pathwise
            or self.firing
            or not neuron.noise
            or lif.learns
            or sequence.state.requires_grad
            or x.dtype not in ({torch.float32} if self.conditional else TYPES)
            or neuron not in self.binary
        ):
            return None
        trace, steps = self.traces[neuron], len(x)
        source, static = Source.of(x)
        targets = () if source is None else (Target(source, None, steps, lif.gain),)
        self._admit(trace, x[0], targets)
        call, trace.calls, trace.dimensions = trace.calls, trace.calls + steps, x.dim() - 1
        current = (x[:1] if static else x).detach()
        room = bits.empty(steps, x.shape[1:], x.device)
        spikes, last = self._layer(trace).run(
            current,
            sequence.state,
            lif,
            sequence.threshold,
            steps=steps,
            first_step=call,
            bits=room,
        )
        trace.packed = Packed(room, range(steps), spikes.shape)
        event = Event(list(range(call, call + steps)), x.shape[1:], x.dtype, None, targets, None)
        event.sequence = True
        if source is None and x.requires_grad:
            event.drift, event.gain = x, lif.gain
        if self.conditional:
            event.past = Past(current, sequence.state, lif, sequence.threshold)
        if targets or event.drift is not None or neuron.sigma.requires_grad:
            trace.events.append(event)
        return self.emit(neuron, spikes), last

    def _link(self, trace: LayerTrace, charge: Charge) -> Link | None:
        """To the call that left the membrane that this one starts from."""
        origin = trace.origin(charge.state)
        if origin is None:
            return None
        if not self.through_time or charge.jump is None:
            return Link(origin, charge.carry)
        return Link(origin, charge.carry, charge.jump(trace.silent[origin]))

    def _remember(
        self,
        trace: LayerTrace,
        record: FiringRecord,
        firing: Firing,
        charge: Charge,
        event: Event,
        drift: Tensor,
        noise: Tensor,
        sources: list[Source | None],
    ) -> None:
        """Leaves to a control variate what it needs of a call."""
        sigma = trace.neuron.sigma.detach().to(firing.level.dtype)
        fast = [
            (c.value, c.gain)
            for c, source in zip(charge.currents, sources, strict=True)
            if source is not None and source.followed
        ]
        memory, link = None, None
        if self.through_time and event.carried is not None:
            between = None if charge.wiped else gap(firing) * sigma
            apart = wandering(firing, noise, charge.wiped) * sigma
            memory, link = Memory(event.carried.drift, apart, between), event.link
            # What a spike wipes out is what would be there without it.
            mean = drift.detach()
            trace.silent.append(mean + silent_mean(firing) * sigma if charge.wiped else mean)
        record.add(firing, sigma, drift, self.anchor, fast, memory, link)

    def hold(self, current: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        source, _ = Source.of(current)
        if source is None:
            return current
        if source.followed:  # its graph is a control variate's
            ledger = next(iter(self.firing.values())).ledger
            leaf: Tensor = Gate.apply(current, ledger)  # type: ignore[no-untyped-call]
        else:
            leaf = current.detach().requires_grad_()
        self.held.append((leaf, source))
        return leaf

    def leave(self, neuron: NoisyNeuron, state: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""
        if self.pathwise:
            self.traces[neuron].states[-1] = state

    def emit(self, neuron: NoisyNeuron, spikes: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        firing, trace = self.firing.get(neuron), self.traces[neuron]
        if firing is not None:
            return firing.emit(spikes)
        packed, trace.packed = trace.packed, None
        if packed is not None and packed.shape != spikes.shape:
            packed = None  # a sequence that was made step by step
        if neuron in self.binary:
            Emitted.mark(spikes, trace.train, spikes.dim() > trace.dimensions, packed)
        return spikes

    def check_steps(self, steps: int) -> None:
        """Causal credit needs a loss for each step.

        Raises:
            LossError: A layer was not called once per time step.
        """
        for trace in self.traces.values():
            if trace.events and trace.calls != steps:
                raise LossError(
                    f"The losses are of {steps} time steps, but {trace.name} made "
                    f"{trace.calls} steps. Causal credit needs a loss for each, zero where there "
                    "is none."
                )

    def gather(
        self,
        weight: Tensor,
        control: Mapping[NoisyNeuron, list[Tensor]] | None = None,
        measure: bool = False,
    ) -> Estimate:
        """Turns the noise into gradients and cotangents.

        Args:
            weight: (rows,), what multiplies the score of each row; if `causal`, (T, rows), what
                multiplies that of each call.
            control: For layers with a control variate, its coefficient in each call over the
                number of rows, (rows, *).
            measure: Fill in `Estimate.shares`.
        """
        estimate = Estimate()
        for trace in self.traces.values():
            layer: dict[torch.Size, Tensor] = {}  # a shared neuron may have several sizes
            totals: dict[Source, Tensor] = {}
            sequences: dict[Source, dict[int, Tensor]] = {}
            lengths: dict[Source, int] = {}
            arriving: dict[int, Tensor] = {}  # what later drifts ask of each call's membrane
            for event in reversed(trace.events) if self.pathwise else trace.events:
                if event.sequence:
                    total = self._sequence(trace, event, weight, estimate, measure)
                    if total is not None:
                        held = layer.get(total.shape)
                        layer[total.shape] = total if held is None else held + total
                    continue
                own = self._weight(weight, trace.number, event.calls[0])
                cotangent = self._cotangent(trace, event, own, control or {}, estimate)
                if self.pathwise:
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
            estimate.shares += layer.values()
        return estimate

    def _sequence(
        self, trace: LayerTrace, event: Event, weight: Tensor, estimate: Estimate, measure: bool
    ) -> Tensor | None:
        """Adds what a sequence of steps gives; the sum of its cotangents, (rows, *), if measured.

        Chunk by chunk in time, so that what is unpacked and drawn again at once stays small.
        """
        layer, calls = self._layer(trace), range(event.calls[0], event.calls[-1] + 1)
        if self.causal:
            weight = torch.stack([self._weight(weight, trace.number, call) for call in calls])
        else:
            weight = self._weight(weight, trace.number, calls[0])
        sigma = trace.neuron.sigma
        if sigma.requires_grad:
            moved = layer.sigma_total(weight, event.shape, event.calls, event.past)
            estimate.add(sigma, moved.sum_to_size(sigma.shape) / sigma.detach())
        target = next(iter(event.targets), None)
        source, gain = (None, 1.0) if target is None else (target.source, target.gain)
        total: Tensor | None = None
        if source is None and event.drift is None and not measure:
            return total
        if source is not None and not (measure or self.causal or event.past):
            found = source.from_bits(
                lambda spikes, outputs: layer.of_linear(weight, spikes, calls, outputs, gain)
            )
            if found is not None:
                for pair in found:
                    estimate.add(*pair)
                return total
        static = source is not None and source.static
        for steps, cotangent in layer.cotangents(
            weight,
            event.shape,
            calls,
            gain=event.gain if target is None else gain,
            summed=static,
            # Whether an input counts as spikes is told from all of it.
            whole=event.drift is not None or (layer.signs and not _is_packed(source)),
            dtype=event.dtype,
            past=event.past,
        ):
            if event.drift is not None:
                if layer.signs:  # the graph that a direction is sent through has the gain in it
                    cotangent = cotangent * event.gain
                estimate.drifts.append(event.drift)
                estimate.cotangents.append(cotangent.to(event.drift.dtype))
            elif source is not None:
                self._through(source, cotangent, estimate, None if static else steps)
            if measure:
                share = cotangent if static else cotangent.sum(0)
                total = share if total is None else total + share
        return total

    def _weight(self, weight: Tensor, layer: int, call: int) -> Tensor:
        """(rows,): what multiplies one call's score."""
        if self.causal:
            weight = weight[call]
        if not self.layerwise:
            return weight
        # Only every so many replicas had noise here: the mean is over these.
        layers = len(self.traces)
        by_replica = torch.zeros_like(weight).view(self.noise.replicas, -1)
        by_replica[layer::layers] = layers * weight.view_as(by_replica)[layer::layers]
        return by_replica.flatten()

    def follow(self, estimate: Estimate, mean: Tensor) -> None:
        """Adds what reaches synapses through currents that neurons remember.

        Args:
            estimate: What `gather` returned.
            mean: The mean loss; it may read such a memory itself.
        """
        outputs = [*estimate.drifts, *([mean] if mean.requires_grad else [])]
        if not self.held or not outputs:
            return
        cotangents = [*estimate.cotangents, torch.ones_like(mean)][: len(outputs)]
        leaves = [leaf for leaf, _ in self.held]
        found = torch.autograd.grad(
            outputs, leaves, cotangents, retain_graph=True, allow_unused=True
        )
        totals: dict[Source, Tensor] = {}
        for (_, source), share in zip(self.held, found, strict=True):
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
        for pair in source.parameter_gradients(cotangent, self.rule == "nit-s", steps):
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
        if self.plain and event.scores is None:
            layer = self._layer(trace)
            if learns_sigma:
                moved = layer.sigma_total(weight, event.shape, event.calls)
                estimate.add(neuron.sigma, moved.sum_to_size(sigma.shape) / sigma)
            return layer.cotangent(weight, event.shape, event.calls)
        total = self._scores_of(trace, event)
        if learns_sigma and total.sigma is not None:
            estimate.add(neuron.sigma, sigma_gradient(total.sigma, weight, sigma))
        cotangent = weighted_score(total.drift, weight, sigma, self.rule)
        record, factors = self.firing.get(neuron), control.get(neuron)
        if record is not None and factors is not None:
            for call in event.calls:
                cotangent = torch.addcmul(cotangent, factors[call], record.covariances[call])
                if learns_sigma:
                    moved = factors[call] * record.ledger.densities[call] * record.levels[call]
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
        if self.rule == "nit-s":
            return cotangent * (gain != 0) if isinstance(gain, Tensor) else cotangent
        return cotangent if isinstance(gain, float) and gain == 1.0 else cotangent * gain

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


def _is_packed(source: Source | None) -> bool:
    return source is not None and isinstance(source.activity, Packed)


def _whole(current: Current) -> Tensor:
    """The tensor that a synapse may have made and marked."""
    return current.value if current.whole is None else current.whole


def _firing(
    neuron: NoisyNeuron, charge: Charge, drift: Tensor, membrane: Tensor, dtype: torch.dtype
) -> Firing:
    assert charge.fires is not None
    level = (charge.threshold - drift.to(dtype)) / neuron.sigma.detach().to(dtype)
    return Firing(charge.fires(membrane), level)


def _warn_of_delayed_reset(name: str) -> None:
    warnings.warn(
        f"{name} was given a membrane that depends on trainable parameters. snnTorch decides on "
        "its reset from that membrane, and the jump that this makes is not in the estimate, which "
        "is biased for these parameters. Use reset_mechanism='none', or detach the membrane.",
        BiasWarning,
        stacklevel=2,
    )
