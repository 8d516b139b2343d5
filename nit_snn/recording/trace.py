"""What one forward pass leaves behind: for each layer, its steps and where their drifts came from.

A `PassTrace` has a `LayerTrace` for each noisy neuron, and that has one `Segment` for each call: a
step, or several at once. A `Timeline` lays the segments of a layer end to end, (T, N, *), so that
estimators work on whole layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..dynamics.executor import Executor
from ..neurons.base import NoisyNeuron
from ..noise.layer_noise import LayerNoise
from ..noise.streams import Noise
from .census import Census
from .memory_budget import MemoryBudget
from .orders import Order
from .packed_spikes import SpikeTrain
from .places import Places
from .row_probe import RowProbe
from .segment import Segment, drawn_again
from .spike_node import Ledger
from .surrogates import Surrogates
from .synapse_call import SynapseCall
from .timeline import Timeline


@dataclass(eq=False)
class LayerTrace:
    """What one noisy neuron did in a pass.

    Attributes:
        name: Its qualified name.
        number: Its number among the noisy neurons.
        neuron: The neuron.
        noise: Where its noise comes from.
        calls: How many steps it has made.
        segments: What was recorded of them.
        left: The membranes that its segments left.
        train: Its spikes as bits.
        executor: Who takes its steps.
        admitted: Shape and type of the last drift that was looked at.
        learns_sigma: Whether its noise level is learned.
        threshold: Its own, if that is learned.
        order: How its rows lie; None for C * B rows as `expand` makes them.
        surrogates: The surrogate derivatives of its spikes, if they are asked for.
        reached: Whether the losses were found to depend on its spikes or membranes.
        read: Whether they were on its membranes, apart from its spikes.
    """

    name: str
    number: int
    neuron: NoisyNeuron
    noise: LayerNoise
    calls: int = 0
    segments: list[Segment] = field(default_factory=list)
    left: Places = field(default_factory=Places)
    train: SpikeTrain = field(default_factory=SpikeTrain)
    executor: Executor | None = None
    admitted: tuple[torch.Size, torch.dtype] | None = None
    learns_sigma: bool = False
    threshold: Tensor | None = None
    order: Order | None = None
    surrogates: Surrogates | None = None
    reached: bool = False
    read: bool = False
    _timelines: list[Timeline] | None = None

    @property
    def rows(self) -> int:
        """N, of its last step."""
        return self.segments[-1].shape[0] if self.segments else 0

    @property
    def timelines(self) -> list[Timeline]:
        """The layer's segments by shape; one, unless a neuron is shared by layers of two sizes."""
        if self._timelines is None:
            by_shape: dict[torch.Size, list[Segment]] = {}
            for segment in self.segments:
                by_shape.setdefault(segment.shape, []).append(segment)
            self._timelines = [Timeline(self, found) for found in by_shape.values()]
        return self._timelines

    def drawn_again(self, segment: Segment) -> Tensor:
        """eps of a segment that was not kept, in its own shape."""
        assert self.executor is not None
        return drawn_again(segment, self.executor)


@dataclass(eq=False)
class PassTrace:
    """What one forward pass leaves behind.

    Attributes:
        layers: What each noisy neuron did, in order of registration.
        noise: Where their noise comes from.
        rows: Those of the first layer, once it has run: C * B, or k times as many.
        held: Currents that neurons remember: a leaf of their graphs, and the synapse's call.
        ledger: What a backward pass through the spikes collects; None where nothing reads them.
        budget: Bytes that may be kept.
        carried: Layers that started from what the last pass left.
        probe: What was asked of its rows; None in most passes.
        expanded: The numbers of rows that `expand` had made for it.
        couples: Whether a loss depends on the noise of other samples.
        step: What has made a part of the losses that has no derivative, if that was seen.
        mixed: Whether their derivative is taken for none at all, for that reason.
        coupled: BatchNorms whose statistics let rows depend on each other's noise.
        outputs: What the network has returned, tensor by tensor, if that is asked for.
        census: Whether the layers fire, in the passes in which somebody looks.
    """

    layers: Mapping[NoisyNeuron, LayerTrace]
    noise: Noise
    rows: int | None = None
    held: list[tuple[Tensor, SynapseCall]] = field(default_factory=list)
    ledger: Ledger | None = None
    budget: MemoryBudget = field(default_factory=MemoryBudget)
    carried: list[str] = field(default_factory=list)
    probe: RowProbe | None = None
    expanded: Collection[int] = ()
    couples: bool = False
    step: str | None = None
    mixed: bool = False
    coupled: list[str] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    census: Census | None = None

    @property
    def replicas(self) -> int:
        return self.noise.replicas

    @property
    def begun(self) -> bool:
        """Whether a noisy neuron has run."""
        return any(layer.calls for layer in self.layers.values())

    @property
    def active(self) -> Iterable[LayerTrace]:
        """The layers of which something was recorded."""
        return [layer for layer in self.layers.values() if layer.segments]

    def release(self) -> None:
        """Lets go of all that was recorded; a guarded membrane may outlive it."""
        self.layers, self.held, self.ledger, self.outputs = {}, [], None, []
        self.probe = None
