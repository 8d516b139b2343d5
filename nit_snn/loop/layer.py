"""What the user says of a layer, hands over of a pass, and gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..dynamics.lif import Dynamics, Lif

#: A NumPy array or a torch tensor.
Array = Any


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of noisy neurons with its synapses, as the network is meant to be.

        I_t = current_decay * I_{t-1} + sum_k W_k x_{k,t} + b
        u_t = decay * (v_{t-1} - rest) + rest + gain * I_t + sigma * eps_t, and its reset

    Attributes:
        inputs: How many presynaptic neurons there are; a sequence for several groups of them, each
            with weights of its own. Recurrent weights have the layer's own last spikes as one.
        neurons: How many neurons it has.
        lif: How the membrane is charged and reset.
        threshold: Where the neurons fire; a number or (neurons,).
        sigma: The noise level in units of the membrane; a number or (neurons,).
        current_decay: What is left of the synaptic current after a step; 0 for no memory.
        bias: Whether the current has a bias.
        exact: Whether the network does what is said here. If not, as on a chip with mismatch, its
            spikes are believed, and a membrane that contradicts one is moved to the threshold.
    """

    inputs: int | Sequence[int]
    neurons: int
    lif: Lif = field(default_factory=lambda: Lif(Dynamics()))
    threshold: float | Array = 1.0
    sigma: float | Array = 0.25
    current_decay: float = 0.0
    bias: bool = True
    exact: bool = True

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of presynaptic neurons of each group."""
        return (self.inputs,) if isinstance(self.inputs, int) else tuple(self.inputs)


@dataclass(frozen=True, eq=False)
class Observed:
    """What one layer did in a pass of T steps and N rows.

    Spikes and presynaptic activity are arrays, or event lists: whole numbers of shape (events, 3),
    each the step, the row and the index of one spike.

    Attributes:
        inputs: Presynaptic activity, (T, N, inputs) or events; one for each group of inputs.
        spikes: What the layer fired, (T, N, neurons) or events. Asked for by credit="feedback", by
            conditional=True, and by a reset that wipes the current, too.
        noise: eps, standard normal, (T, N, neurons); None for that of `Loop.noise`.
        weights: What the network ran with, (neurons, inputs), one for each group. Asked for where
            membranes are needed: by credit="feedback" and conditional=True. If weights and spikes
            are there, it is checked that the spikes follow from them and from the noise.
        bias: Likewise, (neurons,).
        sigma: The noise level of this pass; None for that of the layer.
    """

    inputs: Array | Sequence[Array]
    spikes: Array | None = None
    noise: Array | None = None
    weights: Array | Sequence[Array] | None = None
    bias: Array | None = None
    sigma: float | Array | None = None


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """The gradient of the mean loss in what a layer learns.

    Attributes:
        weights: (neurons, inputs), or a tuple with one for each group of inputs.
        bias: (neurons,); None without one.
        sigma: In the shape of the noise level; None if that is not learned.
    """

    weights: Array | tuple[Array, ...]
    bias: Array | None
    sigma: Array | None
