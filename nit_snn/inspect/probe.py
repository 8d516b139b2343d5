"""Looks at what goes on inside noisy neurons: drifts, noise, membranes and spikes over time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..dynamics.executor import Moved
from ..dynamics.lif import MembraneUpdate, perturb
from ..errors import RecordingError
from ..neurons.base import FLEETING, NoisyNeuron, noisy_neurons


@dataclass
class Activity:
    """What one noisy neuron layer did, call by call; each entry is of shape (N, *).

    Attributes:
        drifts: m_t, the membranes before the noise.
        noises: sigma * eps_t, what was added.
        membranes: u_t = m_t + sigma * eps_t, before they fire.
        spikes: s_t, before a graded factor.
    """

    drifts: list[Tensor] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)
    membranes: list[Tensor] = field(default_factory=list)
    spikes: list[Tensor] = field(default_factory=list)


class _Probe:
    """A recorder that learns nothing and keeps everything."""

    learns = False
    guards = False
    pending = False
    binary: Collection[NoisyNeuron] = ()

    def __init__(self) -> None:
        self.activities: dict[NoisyNeuron, Activity] = {}

    def step(self, neuron: NoisyNeuron, update: MembraneUpdate) -> Moved:
        """See `nit_snn.neurons.base.Recorder`."""
        drift = update.drift(*(current.value for current in update.currents), update.state)
        noise = torch.randn_like(drift) if neuron.noise else torch.zeros_like(drift)
        membrane = perturb(drift, neuron.sigma, noise)
        activity = self.activities[neuron]
        activity.drifts.append(drift.detach())
        activity.noises.append((membrane - drift).detach())
        activity.membranes.append(membrane.detach())
        return Moved(membrane, None, membrane)

    def leave(self, neuron: NoisyNeuron, state: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""

    def partly_reset(self, neuron: NoisyNeuron, old: Tensor, new: Tensor, kept: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""

    def fired(self, neuron: NoisyNeuron, membrane: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""

    def hold(self, current: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        return current

    def emit(self, neuron: NoisyNeuron, spikes: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        self.activities[neuron].spikes.append(spikes.detach())
        return spikes


@contextmanager
def probe(net: nn.Module) -> Iterator[dict[str, Activity]]:
    """Keeps everything that the noisy neurons of `net` do inside the block.

    Args:
        net: A network with noisy neurons.

    Yields:
        The activity of each noisy neuron by its qualified name, filled as the network runs.

    Raises:
        RecordingError: A learner is recording the network.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import swap_neurons
        >>> net = swap_neurons(torch.nn.Sequential(snntorch.Leaky(beta=0.5)), sigma=0.1)
        >>> with probe(net) as layers:
        ...     spikes, membrane = net(torch.ones(4, 3))
        >>> torch.equal(layers["0"].membranes[0], membrane), len(layers["0"].spikes)
        (True, 1)
    """
    neurons = noisy_neurons(net)
    if any(neuron._recorder is not None for neuron in neurons.values()):
        raise RecordingError("A network cannot be probed while a learner records it.")
    seen = _Probe()
    try:
        for neuron in neurons.values():
            seen.activities[neuron] = Activity()
            neuron._recorder = seen
        yield {name: seen.activities[neuron] for name, neuron in neurons.items()}
    finally:
        for neuron in neurons.values():
            for name in FLEETING:
                vars(neuron).pop(name, None)
