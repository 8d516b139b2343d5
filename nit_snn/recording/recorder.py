"""What one forward pass records: the noise of each neuron, and where its drift came from.

A noisy neuron's drift depends on its parameters in one of two ways. If its current came straight
from a registered synapse (see `synapse_taps`), only that is remembered. Any other drift is kept
with its local graph, which ends at the spikes of the noisy layer before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor, nn

from ..dynamics.backend import is_native
from ..dynamics.closed_form import noisy_step, number, spikes_of
from ..dynamics.compiled import conditioned as native
from ..dynamics.compiled.arguments import fits
from ..dynamics.compiled.layer import NativeLayer, told
from ..dynamics.compiled.steps import run_steps
from ..dynamics.conditioned import condition, jump
from ..dynamics.cuda_executor import GIVEN, TYPES, Layer, Past
from ..dynamics.firing import Firing
from ..dynamics.lif import perturb
from ..dynamics.pathwise import Carried, Link, carried, gap, silent_mean, spike_scores, wandering
from ..dynamics.torch_executor import TorchLayer
from ..errors import RecordingError
from ..estimators.control import FiringRecord, Gate, Known, Memory, Watched
from ..estimators.scores import Scores, conditional_scores, scores
from ..neurons.base import Charge, Current, Lif, NoisyNeuron, Sequence
from ..noise.layer_noise import LayerNoise
from ..noise.philox_noise import PhiloxNoise
from ..noise.streams import Noise
from ..validation.passes import check_current, check_noisy, check_rows, warn_of_delayed_reset
from . import bits
from .memory import Room, forgetting
from .packed_spikes import Emitted, Packed
from .stale_state import Leftovers
from .synapse_taps import Source, Tap, refuse_copy
from .trace import Event, LayerTrace, Target


class Recording:
    """One forward pass: gives the neurons their noise and remembers what it belongs to.

    Args:
        neurons: The noisy neurons by qualified name.
        noise: Where their noise comes from.
        index: Number of the pass.
        rule: "nit" or "nit-s" (see `nit_snn.estimators.scores`).
        conditional: Condition the scores on the spikes: False, True or "pathwise".
        controlled: Names of the layers with a control variate (see `nit_snn.estimators.control`).
        follows: Whether its coefficients are followed from layer to layer.
        independent: Whether the replicas of a sample share no noise.
        through_time: Whether they are followed through membranes and their resets, too.
        layerwise: Replica c has noise in layer `c % layers` only.
        causal: Losses will come per time step, so that the noise of each call is kept apart.
        binary: Those neurons whose spikes are the membrane above its threshold, and nothing else.
        room: How many bytes of scores are kept until they are gathered; for what goes beyond, the
            noise is drawn again.
        frugal: Keep spikes as bits wherever that can be, if there is room for numbers, too.
        rehearsal: Keep nothing: the same spikes, and nothing can be learned from them.
        expanded: How many rows there should be, if the learner has expanded something.
        left: The membranes that the last pass left (see `nit_snn.recording.stale_state`).
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
        independent: bool = True,
        through_time: bool = False,
        layerwise: bool = False,
        causal: bool = False,
        binary: Collection[NoisyNeuron] = (),
        room: float = math.inf,
        frugal: bool = False,
        rehearsal: bool = False,
        expanded: Collection[int] = (),
        left: Leftovers | None = None,
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
        self.room = Room(0.0 if rehearsal else room, frugal)
        self.rehearsal = rehearsal
        self.pending = True
        self.when_kept: Callable[[], None] | None = None
        self.rows: int | None = None
        self.expanded = expanded
        self.left = Leftovers() if left is None else left
        self.carried: list[str] = []
        self.coupled: list[str] = []
        self.traces = {
            neuron: LayerTrace(
                name, number, neuron, LayerNoise(noise, index, number, len(neurons), neuron)
            )
            for number, (name, neuron) in enumerate(neurons.items())
        }
        self.held: list[tuple[Tensor, Source]] = []
        self.firing = {
            neuron: FiringRecord(follows, rule == "nit-s", noise.replicas if independent else None)
            for name, neuron in neurons.items()
            if name in controlled
        }
        self.anchor = torch.zeros((), requires_grad=True)

    def __reduce__(self) -> NoReturn:
        refuse_copy()

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
                tap.install(self.room, self.rehearsal)
            with forgetting() if self.rehearsal else nullcontext():
                yield
        finally:
            for tap in taps:
                tap.remove()
            for neuron in self.traces:
                vars(neuron).pop("_recorder", None)
                vars(neuron).pop("_fired", None)

    @property
    def begun(self) -> bool:
        """Whether a noisy neuron has run."""
        return any(trace.calls for trace in self.traces.values())

    def release(self) -> None:
        """Lets go of all that was remembered; a shielded membrane may outlive it."""
        self.pending = False
        self.when_kept = None  # it holds this recording
        self.traces, self.firing, self.held = {}, {}, []

    def perturb(self, neuron: NoisyNeuron, charge: Charge) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        trace = self.traces[neuron]
        self._begin(trace, charge.state)
        check_noisy(trace.name, neuron.noise)
        found = [Source.of(_whole(c)) for c in charge.currents]
        sources = [source for source, _ in found]
        targets = tuple(
            Target(source, None if static else c.step, _whole(c).shape[0], c.gain)
            for c, (source, static) in zip(charge.currents, found, strict=True)
            if source is not None
        )
        closed = neuron in self.binary and self._closed(charge, sources)
        if closed and self.plain:
            return self._step_by_kernel(trace, charge, charge.lif, targets, None)
        if closed and not self.conditional and self._settled(charge, neuron):
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
            warn_of_delayed_reset(trace.name)
        call, trace.calls, trace.dimensions = trace.calls, trace.calls + 1, drift.dim()
        noise = trace.noise.draw(call, drift.shape, drift.dtype)
        learn_sigma = neuron.sigma.requires_grad
        held = drift if drift.requires_grad else None
        event = Event([call], drift.shape, drift.dtype, None, targets, held)
        mean = drift.detach()
        compiled = self.pathwise and not self.rehearsal and is_native() and fits(mean, noise)
        if compiled and _same_in_all_rows(mean, charge.threshold):
            return self._pathwise_call(trace, charge, event, drift, noise, sources)
        membrane = perturb(mean, neuron.sigma.detach(), noise)
        if self.rehearsal:
            self._add(trace, event)
            return membrane
        record = self.firing.get(neuron)
        firing = None
        if self.conditional or record is not None:
            firing = _firing(neuron, charge, drift.detach(), membrane, noise.dtype)
        if firing is not None and self.pathwise and charge.carries:
            event.carried = carried(firing, noise, charge.wiped, learn_sigma)
            event.link = self._link(trace, charge)
        if record is not None and firing is not None:
            self._remember(trace, record, firing, charge, event, drift, noise, sources)
        if self.pathwise and firing is not None:
            trace.states.append(membrane)
            event.scores = spike_scores(firing, learn_sigma)
            self._append(trace, event)
        elif firing is not None and self.conditional:
            event.scores = conditional_scores(noise, firing, learn_sigma)
            self._add(trace, event)
        else:
            self._add(trace, event, noise)
        return membrane

    def _pathwise_call(
        self,
        trace: LayerTrace,
        charge: Charge,
        event: Event,
        drift: Tensor,
        noise: Tensor,
        sources: list[Source | None],
    ) -> Tensor:
        """A call conditioned pathwise, by a compiled loop."""
        neuron, record = trace.neuron, self.firing.get(trace.neuron)
        membrane, spikes, told, silent = native.condition_call(
            drift.detach(),
            noise,
            neuron.sigma.detach(),
            charge.threshold,
            or_equal=charge.or_equal,
            wiped=charge.wiped,
            carries=charge.carries,
            learns_sigma=neuron.sigma.requires_grad,
            controlled=record is not None,
            through_time=self.through_time,
        )
        if neuron in self.binary:
            neuron._remember(membrane, spikes)
        memory = None
        if told.decay is not None:
            event.carried = Carried(told.decay, told.level_decay)
            event.link = self._link(trace, charge)
        if silent is not None and told.decay is not None and told.wandering is not None:
            memory = Memory(told.decay, told.wandering, told.gap)
            trace.silent.append(silent)
        if record is not None:
            link = None if memory is None else event.link
            fast = _fast(charge, sources)
            record.add(Known.of_steps(told), drift, self.anchor, fast, memory, link)
        trace.states.append(membrane)
        event.scores = Scores(told.score, told.level_score)
        self._append(trace, event)
        return membrane

    def _begin(self, trace: LayerTrace, state: Tensor | None) -> None:
        """Before a layer's first call: whether it starts from what the last pass left."""
        if not trace.calls and self.left.holds(trace.neuron, state):
            self.carried.append(trace.name)

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

    def _settled(self, charge: Charge, neuron: NoisyNeuron) -> bool:
        """Whether a control variate, if there is one, needs to know of no graph."""
        record = self.firing.get(neuron)
        if record is None:
            return not self.firing
        dtype = charge.currents[0].value.dtype
        return not record.follows and dtype in (torch.float32, torch.float64)

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
        noise = trace.noise.draw(call, current.shape, current.dtype)
        record = self.firing.get(neuron)
        sigma, levels = neuron.sigma.detach(), neuron.sigma.requires_grad
        seen = None
        if record is not None:
            seen = Watched(current[None], sigma.to(current.dtype), charge.threshold, levels)
        own = (lif.decay, lif.gain, charge.threshold)
        if is_native() and fits(current, state, noise) and _same_in_all_rows(current, *own):
            membrane, spikes = torch.empty_like(current), torch.empty_like(current)
            into = {"membranes": membrane, "spikes": spikes, **(told(seen) or {})}
            given = (lif, charge.threshold, sigma, into)
            run_steps(current[None], state, [noise], [1.0], *given)
        else:
            fired = neuron._spikes_of(state) if trace.calls > 1 else None
            membrane = noisy_step(current, state, fired, lif, charge.threshold, sigma, noise)
            spikes = spikes_of(membrane, charge.threshold, charge.or_equal)
            if seen is not None:
                seen(0, noise, membrane, spikes)
        if record is not None and seen is not None:
            record.step(seen, spikes, self.anchor)
        if neuron in self.binary:
            neuron._remember(membrane, spikes)
        self._add(trace, Event([call], current.shape, current.dtype, None, targets, None), noise)
        return membrane

    def _add(self, trace: LayerTrace, event: Event, noise: Tensor | None = None) -> None:
        """Keeps what can be learned from, with the event before it if they can be summed.

        Args:
            trace: That of the layer.
            event: The event.
            noise: Where its scores come from, if it has none yet: kept if there is room.
        """
        learn_sigma = trace.neuron.sigma.requires_grad
        if not (event.targets or event.drift is not None or learn_sigma):
            return
        last = trace.events[-1] if trace.events and not self.causal else None
        summed = last is not None and last.absorbs(event)
        if noise is not None:
            size = noise.nbytes * (2 if learn_sigma else 1)
            kept = last.scores is not None if last is not None and summed else self.room.take(size)
            event.scores = scores(noise, self.rule, learn_sigma) if kept else None
        if last is not None and summed:
            last.absorb(event)
        else:
            self._append(trace, event)

    def _append(self, trace: LayerTrace, event: Event, draws: int = 1) -> None:
        trace.size.count(event, draws)
        if self.rehearsal:
            trace.events.clear()  # there has to be the last alone, for others to be summed with
        trace.events.append(event)
        if self.when_kept is not None:
            self.when_kept()

    def _admit(self, trace: LayerTrace, like: Tensor, targets: tuple[Target, ...]) -> None:
        """Checks a drift, (N, *), or a current of its shape."""
        check_current(trace.name, like)
        self.rows = check_rows(
            trace.name, like.shape, self.noise.replicas, self.rows, self.expanded
        )
        trace.size.see(like)
        features_last = any(isinstance(t.source.module, nn.Linear) for t in targets)
        trace.neuron._fit_sigma(trace.name, like, features_last)

    def layer_of(self, trace: LayerTrace) -> Layer | TorchLayer:
        """Who makes a layer's sequences of steps, and weighs them."""
        sigma, signs = trace.neuron.sigma.detach(), self.rule == "nit-s"
        if isinstance(self.noise, PhiloxNoise):
            return Layer(self.noise, trace.number, len(self.traces), sigma, signs)
        if trace.layer is None:
            common = (
                trace.noise.draw,
                sigma,
                self.rule,
                trace.neuron.sigma.requires_grad,
                self.room.take,
            )
            trace.layer = (
                NativeLayer(*common, read=trace.noise.read) if is_native() else TorchLayer(*common)
            )
        return trace.layer

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
            warn_of_delayed_reset(trace.name)
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
        layer = self.layer_of(trace)
        assert isinstance(layer, Layer)
        spikes, membrane = layer.run(
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
        self._add(trace, Event([call], like.shape, like.dtype, None, targets, held))
        return membrane

    def run(self, neuron: NoisyNeuron, sequence: Sequence) -> tuple[Tensor, Tensor] | None:
        """See `nit_snn.neurons.base.Recorder`."""
        x, lif = sequence.current, sequence.lif
        kernels = isinstance(self.noise, PhiloxNoise)
        types = {torch.float32} if self.conditional else TYPES
        record = self.firing.get(neuron)
        if self.pathwise:
            return self._run_conditioned(neuron, sequence, record)
        if (
            (self.firing and (kernels or x.dtype not in (torch.float32, torch.float64)))
            or (record is not None and record.follows)
            or not neuron.noise
            or lif.learns
            or sequence.state.requires_grad
            or neuron not in self.binary
            or (x.dtype not in types if kernels else self.conditional)
        ):
            return None
        trace, steps = self.traces[neuron], len(x)
        event = self._begin_sequence(trace, sequence)
        current = (x[:1] if event.static else x).detach()
        layer = self.layer_of(trace)
        run = partial(
            layer.run,
            current,
            sequence.state,
            lif,
            sequence.threshold,
            steps=steps,
            first_step=event.calls[0],
            summed=event.static and not self.causal,
        )
        if record is None:
            frugal = kernels or self.room.frugal or self.room.left < x.nbytes
            planes = bits.empty(steps, x.shape[1:], x.device) if frugal else None
            spikes, last = run(bits=planes)
            if planes is not None:
                trace.packed = Packed(planes, range(steps), spikes.shape)
            spikes = self.emit(neuron, spikes)
        else:  # spikes with a graph are kept as numbers
            like, sigma = current.expand(x.shape), neuron.sigma.detach().to(x.dtype)
            seen = Watched(like, sigma, sequence.threshold, neuron.sigma.requires_grad)
            spikes, last = run(bits=None, watch=seen)
            spikes = record.sequence(seen, spikes, self.anchor)
        if self.conditional:
            event.past = Past(current, sequence.state, lif, sequence.threshold)
        if event.targets or event.drift is not None or neuron.sigma.requires_grad:
            self._append(trace, event, 1 if event.static and not self.causal else steps)
        return spikes, last

    def _run_conditioned(
        self, neuron: NoisyNeuron, sequence: Sequence, record: FiringRecord | None
    ) -> tuple[Tensor, Tensor] | None:
        """A sequence conditioned pathwise; None where that has to go step by step."""
        x, lif, state = sequence.current, sequence.lif, sequence.state
        if (
            isinstance(self.noise, PhiloxNoise)
            or not neuron.noise
            or lif.learns
            or lif.dynamics.delayed
            or lif.dynamics.reset not in ("hard", "soft")
            or state.requires_grad
            or neuron not in self.binary
            or x.dtype not in (torch.float32, torch.float64)
        ):
            return None
        trace, steps = self.traces[neuron], len(x)
        event = self._begin_sequence(trace, sequence)
        current = (x[:1] if event.static else x).detach()
        learns_sigma = neuron.sigma.requires_grad
        compiled = is_native() and fits(current, state.contiguous())
        noise, signs = trace.noise.read(event.calls, x)
        spikes, last, found, silent = (native.condition if compiled else condition)(
            current,
            state.contiguous() if compiled else state,
            noise,
            signs,
            lif,
            sequence.threshold,
            neuron.sigma.detach(),
            learns_sigma=learns_sigma,
            controlled=record is not None,
            through_time=self.through_time,
        )
        event.steps, event.carry = found, lif.decay
        origin = trace.origin(state) if found.decay is not None else None
        if origin is not None:
            event.link = Link(origin, lif.decay)
            if record is not None and self.through_time:
                fall = jump(lif, sequence.threshold, trace.silent[origin])
                event.link = Link(origin, lif.decay, fall)
        between = [x.new_empty(0)] * (steps - 1)
        trace.states += [*between, last]
        if silent is not None:
            trace.silent += [*between, silent]
        if record is None:
            spikes = self.emit(neuron, spikes)
        else:
            leads_on = x.requires_grad and all(t.source.followed for t in event.targets)
            followed = x if record.follows and leads_on else None
            link = event.link if self.through_time else None
            spikes = record.follow(found, spikes, followed, self.anchor, lif, link)
        if event.targets or event.drift is not None or learns_sigma:
            self._append(trace, event, steps)
        return spikes, last

    def _begin_sequence(self, trace: LayerTrace, sequence: Sequence) -> Event:
        """Checks and counts a sequence of steps; what will be remembered of it."""
        self._begin(trace, sequence.state)
        x, lif = sequence.current, sequence.lif
        steps = len(x)
        source, static = Source.of(x)
        targets = () if source is None else (Target(source, None, steps, lif.gain),)
        self._admit(trace, x[0], targets)
        trace.size.see(x[0], steps)
        call, trace.calls, trace.dimensions = trace.calls, trace.calls + steps, x.dim() - 1
        event = Event(list(range(call, call + steps)), x.shape[1:], x.dtype, None, targets, None)
        event.sequence, event.static = True, static
        if source is None and x.requires_grad:
            event.drift, event.gain = x, lif.gain
        return event

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
        fast = _fast(charge, sources)
        memory, link = None, None
        if self.through_time and event.carried is not None:
            between = None if charge.wiped else gap(firing) * sigma
            apart = wandering(firing, noise, charge.wiped) * sigma
            memory, link = Memory(event.carried.drift, apart, between), event.link
            # What a spike wipes out is what would be there without it.
            mean = drift.detach()
            trace.silent.append(mean + silent_mean(firing) * sigma if charge.wiped else mean)
        known = Known.of_firing(firing, sigma, record.signed)
        record.add(known, drift, self.anchor, fast, memory, link)

    def hold(self, current: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        source, _ = Source.of(current)
        if source is None:
            return current
        if self.rehearsal:
            return current.detach().requires_grad_()
        if source.followed:  # its graph is a control variate's
            ledger = next(iter(self.firing.values())).ledger
            leaf: Tensor = Gate.apply(current, ledger)  # type: ignore[no-untyped-call]
        else:
            leaf = current.detach().requires_grad_()
        self.held.append((leaf, source))
        return leaf

    def leave(self, neuron: NoisyNeuron, state: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""
        if self.pathwise and not self.rehearsal:
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


def _same_in_all_rows(like: Tensor, *values: float | Tensor) -> bool:
    """Whether parameters are those of the neurons of `like`, (N, *), which compiled loops ask for.

    A threshold that goes with the rows is torch's alone.
    """
    return all(not isinstance(x, Tensor) or x.dim() < like.dim() or x.shape[0] == 1 for x in values)


def _whole(current: Current) -> Tensor:
    """The tensor that a synapse may have made and marked."""
    return current.value if current.whole is None else current.whole


def _fast(charge: Charge, sources: list[Source | None]) -> list[tuple[Tensor, float | Tensor]]:
    """Currents that the drift has no graph of, but a control variate follows, and their factors."""
    return [
        (c.value, c.gain)
        for c, source in zip(charge.currents, sources, strict=True)
        if source is not None and source.followed
    ]


def _firing(
    neuron: NoisyNeuron, charge: Charge, drift: Tensor, membrane: Tensor, dtype: torch.dtype
) -> Firing:
    threshold = number(charge.threshold)
    level = (threshold - drift.to(dtype)).div_(number(neuron.sigma))
    return Firing(spikes_of(membrane, charge.threshold, charge.or_equal).to(dtype), level)
