"""What a recorded pass remembers of each draw of noise, and what it makes of it in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..dynamics.conditioned import Conditioned
from ..dynamics.cuda_executor import Past
from ..dynamics.pathwise import Carried, Link
from ..dynamics.torch_executor import TorchLayer
from ..estimators.scores import Scores
from ..neurons.base import NoisyNeuron
from ..noise.layer_noise import LayerNoise
from .memory import LayerSize
from .packed_spikes import Packed, SpikeTrain
from .synapse_taps import Source


@dataclass(frozen=True, eq=False, slots=True)
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


@dataclass(eq=False, slots=True)
class Event:
    """One draw of noise, or the sum of several whose drifts depend alike on the parameters.

    What the noise belongs to: outputs of synapses (`targets`), a drift that holds its local graph,
    or both; neither where only the noise level is learned. `link` is there if the drift is
    differentiated in an earlier call's membrane, too: that call, and the derivative. A `sequence`
    is a run of calls at once, `static` if one and the same current enters them; `drift` is then
    what entered it, (T, N, *), with `gain`, and `past` is there if its scores are conditioned on
    the spikes; `steps` and `carry`, a drift's derivative in the membrane before it, if pathwise.
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
    static: bool = False
    gain: float | Tensor = 1.0
    past: Past | None = None
    steps: Conditioned | None = None
    carry: float | Tensor = 0.0

    @property
    def is_sum(self) -> bool:
        """Whether draws have been summed in it, as later ones may well be."""
        return not self.sequence and len(self.calls) > 1

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
    noise: LayerNoise
    calls: int = 0
    events: list[Event] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    silent: list[Tensor] = field(default_factory=list)
    train: SpikeTrain = field(default_factory=SpikeTrain)
    packed: Packed | None = None
    layer: TorchLayer | None = None
    dimensions: int = 0
    size: LayerSize = field(default_factory=LayerSize)

    def take(self, everything: bool) -> list[Event]:
        """Hands over the events, or those that no later one will be summed with."""
        still = [] if everything else [e for e in self.events[-1:] if e.is_sum]
        taken = self.events[: len(self.events) - len(still)]
        self.events = still
        return taken

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
        shares: What each row adds to the gradient of a layer's drift, (rows, *), by the layer's
            name, if measured; one for each size that its neuron is given.
    """

    drifts: list[Tensor] = field(default_factory=list)
    cotangents: list[Tensor] = field(default_factory=list)
    parameters: dict[Tensor, Tensor] = field(default_factory=dict)
    shares: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        held = self.parameters.get(parameter)
        if gradient.dtype in (torch.float16, torch.bfloat16):
            gradient = gradient.float()  # many may be added up
        self.parameters[parameter] = gradient if held is None else held + gradient

    def outputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """All tensors and their cotangents."""
        finished = [gradient.to(p.dtype) for p, gradient in self.parameters.items()]
        return [*self.drifts, *self.parameters], [*self.cotangents, *finished]
