"""The recorder of one forward pass: gives neurons their noise, and remembers what it belongs to.

A noisy neuron's drift depends on its parameters in one of two ways. If its current came straight
from a registered synapse (see `synapse_taps`), only that is remembered. Any other current is kept
with its local graph, which ends at the spikes of the noisy layer before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn
from weakref import ref

import torch
from torch import Tensor, nn

from ..dynamics.choose import executor_for
from ..dynamics.executor import Executor, Moved
from ..dynamics.lif import MembraneUpdate
from ..dynamics.needs import Needs
from ..errors import RecordingError
from ..neurons.base import FLEETING, NoisyNeuron
from ..noise.layer_noise import LayerNoise
from ..noise.streams import Noise
from ..validation.passes import check_current, check_noisy, check_rows
from .drifts import drift_of, one_by_one
from .memory_budget import MemoryBudget
from .packed_spikes import BinarySpikes
from .partial_reset import after_reset, partly_reset
from .places import Left
from .provenance import Seen, find, mark
from .row_probe import RowProbe
from .segment import Input, Segment
from .spike_node import Ledger, NodeState, SpikeNode, collected_through
from .stale_state import StaleState
from .surrogates import Surrogates
from .synapse_call import SynapseCall
from .synapse_taps import SynapseTap, refuse_copy
from .thresholds import handed_out, lift_of
from .trace import LayerTrace, PassTrace


class Recorder:
    """Records one forward pass into a `PassTrace`.

    Args:
        neurons: The noisy neurons by qualified name.
        noise: Where their noise comes from.
        index: Number of the pass.
        needs: What has to be kept.
        binary: Those neurons whose spikes are the membrane above its threshold, and nothing else.
        budget: Bytes that may be kept.
        expanded: How many rows there should be, if the learner has expanded something.
        stale: The membranes that the last pass left.
        probe: Names the rows whose noise is followed in this pass (see `RowProbe`), if any is.
    """

    learns = True

    def __init__(
        self,
        neurons: dict[str, NoisyNeuron],
        noise: Noise,
        index: int,
        needs: Needs,
        *,
        binary: Collection[NoisyNeuron] = (),
        budget: MemoryBudget | None = None,
        expanded: Collection[int] = (),
        stale: StaleState | None = None,
        probe: int | None = None,
    ) -> None:
        self.needs = needs
        self.binary = binary
        self.expanded = expanded
        self.stale = StaleState() if stale is None else stale
        self.pending = True
        layers = {
            neuron: LayerTrace(
                name,
                number,
                neuron,
                LayerNoise(noise, index, number, len(neurons), neuron.sigma.device),
            )
            for number, (name, neuron) in enumerate(neurons.items())
        }
        ledger = None if needs.reach is None else Ledger(needs.reach)
        self.trace = PassTrace(layers, noise, ledger=ledger, budget=budget or MemoryBudget())
        if probe is not None:
            self.trace.probe = RowProbe(ledger, probe, noise.replicas, expanded)
        self.guards = needs.guarded  # membranes may be read by nobody while the pass is pending
        self._summed = needs.plain and not needs.apart
        self._watches = needs.firing or needs.blocks
        self._handles: dict[Segment, Tensor] = {}

    def __reduce__(self) -> NoReturn:
        refuse_copy()

    @contextmanager
    def running(self, taps: list[SynapseTap]) -> Iterator[None]:
        """The neurons ask this recorder for noise, and the taps stand in for the synapses."""
        layers = self.trace.layers
        busy = [layer.name for neuron, layer in layers.items() if neuron._recorder is not None]
        if busy:
            raise RecordingError(f"Something else is recording or probing {', '.join(busy)}.")
        try:
            for neuron in layers:
                neuron._recorder = self
            for tap in taps:
                tap.install(self.trace.budget, followed=self.trace.ledger is not None)
            yield
        finally:
            for tap in taps:
                tap.remove()
            for neuron, layer in layers.items():
                for name in FLEETING:
                    vars(neuron).pop(name, None)
                layer.left.clear()
            self._handles = {}

    def release(self) -> None:
        """Lets go of all that was recorded; a guarded membrane may outlive it."""
        self.pending = False
        self.trace.release()

    def step(self, neuron: NoisyNeuron, update: MembraneUpdate) -> Moved:
        """One step of a neuron, or several at once; see `nit_snn.neurons.base.Recorder`."""
        layer, rule = self.trace.layers[neuron], update.rule
        state = update.state
        left = layer.left.found(state) or partly_reset(layer, state)
        if not layer.calls:
            self._begin(layer, state, left)
        if left is not None and state is not None and state.requires_grad:
            state = state.detach()  # it is known here how it came about
        inputs = self._inputs(update)
        closed = rule.lif is not None and not rule.lif.learns and neuron in self.binary
        closed = closed and state is not None and not state.requires_grad
        lift, drift = None if left is None else left.lift, None
        if closed or update.several:
            current = update.currents[0].value.detach()
            for other in update.currents[1:]:
                current = current + other.value.detach()
            if update.several and len(inputs) == 1 and inputs[0].static:
                current = current[:1]
        else:
            values = [c.value for c in update.currents]
            drift = drift_of(layer, update, values, inputs, state, lift)
            current = drift.detach()
        steps = len(update.currents[0].value) if update.several else 1
        shape = current.shape[1:] if update.several else current.shape
        if (shape, current.dtype) != layer.admitted:
            self._admit(layer, shape, current.dtype, inputs)
        if self.trace.probe is not None:
            self.trace.probe.look(layer.name, layer.calls, update, drift)
        executor = layer.executor
        assert executor is not None
        segment = Segment(
            list(range(layer.calls, layer.calls + steps)),
            shape,
            current.dtype,
            update.several,
            rule,
            inputs=inputs,
            drift=drift,
            origin=None if left is None else left.segment,
            kept=None if left is None else left.kept,
        )
        layer.calls += steps
        if closed or not update.several:
            fired = None if left is None or not rule.delayed else left.fired
            if fired is not None:  # zeros and ones, unless somebody wrote to them
                fired = None if find(fired, BinarySpikes) is None else fired.detach()
            moved = executor.advance(segment, current, state if closed else None, fired)
        else:
            moved = one_by_one(layer, segment, update, state, lift)
        if not closed:
            segment.drift = segment.drift if segment.drift.requires_grad else None  # type: ignore[union-attr]
            for each in inputs:  # a drift's own graph leads to all but the synapses that are known
                each.graph = None if each.source is None else each.graph
        if self.trace.census is not None:
            self.trace.census.take(layer.name, segment, moved)
        self._keep(layer, segment, executor)
        return self._emit(layer, segment, moved)

    def _begin(self, layer: LayerTrace, state: Tensor | None, left: Left | None) -> None:
        """Looks at a layer before its first step."""
        check_noisy(layer.name, layer.neuron.noise)
        layer.threshold = layer.neuron.learned_threshold
        if left is None and self.stale.holds(layer.neuron, state):
            self.trace.carried.append(layer.name)

    def _inputs(self, update: MembraneUpdate) -> tuple[Input, ...]:
        """Where the currents came from.

        Those that are followed to the spikes before have a graph: of the general route all, of a
        known synapse those whose input leads there.
        """
        inputs = []
        for current in update.currents:
            value = current.value
            whole, step = current.whole, None if current.whole is None else current.step
            source, static = SynapseCall.of(value if whole is None else whole, again=bool(step))
            followed = value.requires_grad if source is None else source.followed
            graph = value if followed else None
            inputs.append(Input(source, graph, current.gain, static, None if static else step))
        return tuple(inputs)

    def _admit(
        self, layer: LayerTrace, shape: torch.Size, dtype: torch.dtype, inputs: Sequence[Input]
    ) -> None:
        """Checks drifts of a new shape, (N, *), and gives a learned noise level its own.

        At the first one, who takes the layer's steps is chosen.
        """
        trace, neuron = self.trace, layer.neuron
        check_current(layer.name, shape, dtype)
        trace.rows = check_rows(layer.name, shape, trace.replicas, trace.rows, self.expanded)
        layer.learns_sigma = neuron.sigma.requires_grad
        if neuron.sigma.dim() or layer.learns_sigma:
            sources = [each.source for each in inputs if each.source is not None]
            linear = any(isinstance(source.module, nn.Linear) for source in sources)
            neuron._fit_sigma(layer.name, shape, linear)
        if layer.executor is None:
            binary, budget = neuron in self.binary, trace.budget
            make, parts = neuron._own_executor, (layer.noise, neuron.sigma, self.needs, budget)
            layer.executor = make(*parts) if make else executor_for(*parts, binary, dtype)
            made = layer.name, neuron, layer.executor, self.needs, budget
            layer.surrogates = Surrogates(*made) if self.needs.blocks else None
        layer.admitted = shape, dtype

    def _keep(self, layer: LayerTrace, segment: Segment, executor: Executor) -> None:
        """Remembers a segment, with the one before if their scores can be summed."""
        last = layer.segments[-1] if layer.segments else None
        if self._summed and last is not None and not layer.learns_sigma and last.absorbs(segment):
            executor.absorb(last, segment)
            last.calls += segment.calls
        elif self._watches or layer.learns_sigma or segment.teaches:
            layer.segments.append(segment)

    def _emit(self, layer: LayerTrace, segment: Segment, moved: Moved) -> Moved:
        """Marks the spikes, and puts what stands for them into the graph of what reads them."""
        if moved.spikes is not None and self.trace.ledger is not None:
            moved = self._in_graph(segment, moved, moved.spikes, self.trace.ledger)
        if self.trace.probe is not None:
            moved = self.trace.probe.emit(layer.name, segment, moved)
        if moved.spikes is not None:
            binary = BinarySpikes(layer.train, segment.several, moved.packed)
            mark(moved.spikes, binary, kept=2 if segment.several else 1)
        lift = token = None
        if layer.threshold is not None and moved.spikes is not None:
            last = moved.spikes[-1] if segment.several else moved.spikes
            lift, token = lift_of(segment.rule, last), object()
            if not self.guards:
                moved = handed_out(moved, layer.threshold, lift, token)
        state = Seen(moved.state.detach())  # the same memory, without its graph
        left = Left(state, segment, moved.spikes, None, lift, token)
        layer.left.newest.append((left, ref(moved.state)))
        if self._watches and moved.membrane is not None:
            same = moved.membrane is moved.state
            segment.membrane = state if same else Seen(moved.membrane.detach())
            if layer.surrogates is not None:
                layer.surrogates.add(segment, layer.left)
        return moved

    def _in_graph(self, segment: Segment, moved: Moved, spikes: Tensor, ledger: Ledger) -> Moved:
        graphs: list[Tensor] = []
        gains: list[float | Tensor] = []
        for each in segment.inputs:
            if each.graph is not None and ledger.reach != "last":
                graphs.append(each.graph)
                gains.append(each.gain)
            each.graph = (
                each.graph if each.source is None else None
            )  # what reads spikes leads there
        if segment.drift is not None and ledger.reach != "last":
            graphs.append(segment.drift)
            gains.append(1.0)
        segment.node = NodeState(ledger, segment.several, tuple(gains), segment.kept)
        handle = None
        if segment.origin is not None and segment.rule.carries:
            handle = self._handles.get(segment.origin)
        read = None if self.needs.guarded else moved.state
        with torch.enable_grad():
            found = SpikeNode.apply(spikes, read, segment.node, ledger.anchor, handle, *graphs)  # type: ignore[no-untyped-call]
        self._handles[segment] = found[-1]
        if read is None:
            return Moved(moved.membrane, found[0], moved.state, moved.packed)
        membrane = found[1] if moved.membrane is moved.state else moved.membrane
        return Moved(membrane, found[0], found[1], moved.packed)

    def leave(self, neuron: NoisyNeuron, state: Tensor) -> None:
        """The framework's neuron has left another membrane than the last step did."""
        left = self.trace.layers[neuron].left
        left.newest.append((Left(Seen(state), next(iter(left)).segment, None), ref(state)))

    def partly_reset(self, neuron: NoisyNeuron, old: Tensor, new: Tensor, kept: Tensor) -> None:
        """Some of the membrane that a neuron left was reset."""
        layer = self.trace.layers.get(neuron)
        left = None if layer is None else layer.left.found(old)
        if layer is not None and left is not None:
            layer.left.newest.append((after_reset(left, new, kept), ref(new)))

    def fired(self, neuron: NoisyNeuron, membrane: Tensor) -> Tensor | None:
        """Where a membrane that `neuron` left in this pass fired, if that is known."""
        left = self.trace.layers[neuron].left.found(membrane)
        return None if left is None else left.spikes

    def hold(self, current: Tensor) -> Tensor:
        """A current that a neuron keeps beyond its step, with a graph that leads to its synapse."""
        source, _ = SynapseCall.of(current)
        if source is None:
            return current
        if source.followed and self.trace.ledger is not None:
            leaf = collected_through(current, self.trace.ledger)
        else:
            leaf = current.detach().requires_grad_()
        self.trace.held.append((leaf, source))
        return leaf

    def emit(self, neuron: NoisyNeuron, spikes: Tensor) -> Tensor:
        """Spikes that the framework's neuron has decided on: nothing is known of them."""
        return spikes
