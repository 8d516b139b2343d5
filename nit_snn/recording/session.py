"""The passes of one learner: each is recorded, expanded, turned into gradients, and let go of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..dynamics.needs import Needs
from ..errors import RecordingError
from ..neurons.base import NoisyNeuron
from ..noise.source import NoiseSource
from ..validation.capture import being_captured
from ..validation.foreign_functions import outputs_by_module
from ..validation.hints import of_written_batch_size
from ..validation.network import Watch, coupled_batch_norms
from ..validation.passes import check_devices
from ..validation.rows import RowWatch
from ..validation.warn_once import WarnOnce
from .eager import eager
from .expansion import Expansion, check_batch
from .expansion_tree import batch_dims, rebuilt, tensors_of
from .memory_budget import MemoryBudget
from .parts import Parts
from .recorder import Recorder
from .row_probe import WithoutGraph
from .stale_state import StaleState
from .synapse_taps import SynapseTap
from .trace import PassTrace


@dataclass(eq=False)
class Session:
    """What a learner's passes share.

    Attributes:
        net: The network.
        neurons: Its noisy neurons, by name.
        source: Where their noise comes from.
        taps: What stands in for its synapses.
        watch: Whether the network is still what the learner was attached to.
        warn: What was warned of already.
        recorder: What was recorded and not yet turned into gradients.
        rows: What is known of their rows.
        running: Whether a pass runs.
    """

    net: nn.Module
    neurons: dict[str, NoisyNeuron]
    source: NoiseSource
    taps: list[SynapseTap]
    watch: Watch
    warn: WarnOnce
    rows: RowWatch = field(default_factory=RowWatch)
    recorder: Recorder | None = None
    running: bool = False
    _expanded: set[int] = field(default_factory=set)
    _expansions_used: bool = False
    _stale: StaleState = field(default_factory=StaleState)
    _looked_at: list[nn.Module] | None = None

    @property
    def device(self) -> torch.device:
        """That of the first noisy neuron, whose memory counts."""
        return next(iter(self.neurons.values())).sigma.device

    @contextmanager
    def record(self, needs: Needs, replicas: int, budget: MemoryBudget) -> Iterator[None]:
        """Records the pass that runs inside; if it raises, nothing is kept.

        Args:
            needs: What has to be kept.
            replicas: C.
            budget: Bytes that may be kept.
        """
        for neuron in self.neurons.values():
            neuron.detach_state()  # what an unrecorded pass left may hold a surrogate's graph
        noise, index = self.source.next(replicas, [check_devices(self.neurons)])
        recorder = Recorder(
            self.neurons,
            noise,
            index,
            needs,
            binary=self.watch.binary,
            budget=budget,
            expanded=self._expanded,
            stale=self._stale,
            probe=self.rows.probe(self.net, needs, index, replicas),
        )
        recorder.trace.census = self.warn.census()
        looks = self.watch.modules is not self._looked_at
        listening: AbstractContextManager[dict[Any, str]] = (
            outputs_by_module(self.net) if looks else nullcontext({})
        )
        self.running = True
        try:
            with (
                eager(),
                coupled_batch_norms(self.net, lambda: recorder.trace.begun) as coupled,
                recorder.running(self.taps),
                self._looking(recorder.trace),
                _outputs_of(self.net, recorder.trace) if needs.outputs else nullcontext(),
                listening as made,
            ):
                yield
        except BaseException as error:
            of_written_batch_size(error, self._expanded, replicas)
            recorder.release()
            self.left_behind()
            raise
        finally:
            self.running, self._expansions_used = False, True
        recorder.trace.coupled = coupled
        recorder.trace.expanded = frozenset(self._expanded)
        self.recorder = recorder
        if looks:
            self._looked_at = self.watch.modules
            self.warn.of_foreign(recorder.trace, made)
        self.warn.after_pass(recorder.trace, self._expanded)

    def _looking(self, trace: PassTrace) -> AbstractContextManager[object]:
        """What a probed pass is run in."""
        if trace.ledger is None:
            return nullcontext() if trace.probe is None else WithoutGraph()
        return Parts(self.net) if self.rows.looks and not being_captured() else nullcontext()

    def expand(self, tensors: Sequence[Any], dim: int, replicas: int) -> tuple[Any, ...]:
        """Repeats each sample; see `NITLearner.expand`."""
        found = tensors_of(tensors)
        dims = batch_dims(found, dim)
        check_batch(found, dims)
        if self._expansions_used:
            self._expanded.clear()  # the running pass holds this one
            self._expansions_used = False
        self._expanded.add(replicas * found[0].shape[dims[0]])
        pairs = zip(found, dims, strict=True)
        made = iter([Expansion(replicas, own).make(x) for x, own in pairs])
        return rebuilt(tuple(tensors), lambda: next(made))  # type: ignore[no-any-return]

    def pending(self) -> Recorder:
        """What was recorded last.

        Raises:
            RecordingError: Nothing was, or the pass still runs.
        """
        if self.running:
            raise RecordingError("Call backward() after the record() block, not inside it.")
        if self.recorder is None or self.recorder.trace.rows is None:
            raise RecordingError(
                "Nothing was recorded. Run the network once inside `with learner.record():` "
                "before each learner.backward(losses)."
            )
        return self.recorder

    @contextmanager
    def using_up(self, recorder: Recorder) -> Iterator[None]:
        """Inside, a recording becomes gradients; afterwards nothing is left of it."""
        self.recorder, recorder.pending = None, False
        try:
            yield
        finally:
            recorder.release()
            self.left_behind()

    def left_behind(self) -> None:
        """Remembers the membranes that the next pass should not start from."""
        for neuron in self.neurons.values():
            neuron.detach_state()  # what it carries on may hold the pass's graph
        self._stale = StaleState(self.neurons.values())

    def drop(self) -> None:
        """Lets go of what was recorded."""
        if self.recorder is not None:
            self.recorder.release()
        self.recorder = None

    def end(self) -> None:
        """Lets go of everything, for good."""
        self.drop()
        self.warn.end()

    def check_not_running(self, name: str) -> None:
        """Some calls would take away what a pass records.

        Raises:
            RecordingError: It is one of them, and a pass runs.
        """
        if self.running:
            raise RecordingError(
                f"{name}() inside a recorded pass would take what it records away. Call it before "
                "the pass, or after it."
            )


@contextmanager
def _outputs_of(net: nn.Module, trace: PassTrace) -> Iterator[None]:
    """Inside, what the network returns is put down in the trace."""

    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        found = output if isinstance(output, (tuple, list)) else (output,)
        trace.outputs += [x for x in found if isinstance(x, Tensor)]

    handle = net.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
