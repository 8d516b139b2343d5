"""Which parameters feed which noisy layer, found by running the network once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..dynamics.executor import Moved
from ..dynamics.lif import MembraneUpdate, perturb
from ..errors import CalibrationError
from ..neurons.base import FLEETING, NoisyNeuron

Key = TypeVar("Key")
#: What its own weight and bias scale.
SCALABLE = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


@dataclass
class Feeding:
    """What feeds the noisy layers of a network.

    Attributes:
        order: The layers' names, in the order in which they first run.
        modules: By layer the names of the modules whose output reaches it through no other.
        parameters: Their trainable parameters; none for a layer that is to be left alone.
    """

    order: list[str]
    modules: dict[str, list[str]]
    parameters: dict[str, list[nn.Parameter]]


class Scaled:
    """Parameters, multiplied by one number.

    Args:
        parameters: As they are now.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self._plain = [p.detach().clone() for p in parameters]

    def by(self, gain: float) -> None:
        """Each is `gain` times what it was at first."""
        for parameter, plain in zip(self.parameters, self._plain, strict=True):
            parameter.detach().copy_(plain * gain)


@dataclass(eq=False)
class _Spectator:
    """A recorder that learns nothing: it counts spikes, and cuts graphs at neurons.

    Attributes:
        follows: Whether drifts and spikes are kept, drifts with their graphs.
        drifts: What entered each neuron.
        spikes: What each handed on.
        counts: How many spikes there were, and how many there could have been.
    """

    follows: bool
    learns: bool = False
    guards: bool = False
    pending: bool = False
    binary: Collection[NoisyNeuron] = ()
    drifts: dict[NoisyNeuron, list[Tensor]] = field(default_factory=dict)
    spikes: dict[NoisyNeuron, list[Tensor]] = field(default_factory=dict)
    counts: dict[NoisyNeuron, tuple[Tensor, int]] = field(default_factory=dict)

    def step(self, neuron: NoisyNeuron, update: MembraneUpdate) -> Moved:
        """See `nit_snn.neurons.base.Recorder`."""
        state = None if update.state is None else update.state.detach()
        drift = update.drift(*(current.value for current in update.currents), state)
        held = self.drifts.setdefault(neuron, [])
        if self.follows and drift.requires_grad:
            held.append(drift)
        count, possible = self._count(neuron, drift)
        self.counts[neuron] = count + 0 * drift.detach().sum(dtype=torch.float32), possible
        noise = torch.randn_like(drift) if neuron.noise else torch.zeros_like(drift)
        membrane = perturb(drift.detach(), neuron.sigma.detach(), noise)
        return Moved(membrane, None, membrane)

    def leave(self, neuron: NoisyNeuron, state: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""

    def partly_reset(self, neuron: Any, old: Tensor, new: Tensor, kept: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""

    def fired(self, neuron: NoisyNeuron, membrane: Tensor) -> None:
        """See `nit_snn.neurons.base.Recorder`."""

    def hold(self, current: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        return current

    def emit(self, neuron: NoisyNeuron, spikes: Tensor) -> Tensor:
        """See `nit_snn.neurons.base.Recorder`."""
        spikes = spikes.detach()
        count, possible = self._count(neuron, spikes)
        self.counts[neuron] = count + spikes.sum(dtype=torch.float32), possible + spikes.numel()
        if not self.follows:
            return spikes
        self.spikes.setdefault(neuron, []).append(spikes.requires_grad_())
        return spikes.clone()  # nobody may write to a leaf

    def _count(self, neuron: NoisyNeuron, like: Tensor) -> tuple[Tensor, int]:
        """So far; NaN once a drift was not finite."""
        return self.counts.get(neuron, (like.new_zeros((), dtype=torch.float32), 0))


@contextmanager
def _watching(neurons: Mapping[str, NoisyNeuron], spectator: _Spectator) -> Iterator[None]:
    busy = [name for name, neuron in neurons.items() if neuron._recorder is not None]
    if busy:
        raise CalibrationError(f"Something else is recording or probing {', '.join(busy)}.")
    try:
        for neuron in neurons.values():
            neuron._recorder = spectator
        yield
    finally:
        for neuron in neurons.values():
            for name in FLEETING:
                vars(neuron).pop(name, None)


def rates(neurons: Mapping[str, NoisyNeuron], run: Callable[[], Any]) -> dict[str, float]:
    """The firing rate of each layer in one run, in spikes per neuron and step."""
    spectator = _Spectator(follows=False)
    with _watching(neurons, spectator), torch.no_grad():
        run()
    return _rates(neurons, spectator)


def _rates(neurons: Mapping[str, NoisyNeuron], spectator: _Spectator) -> dict[str, float]:
    found = {}
    for name, neuron in neurons.items():
        count, possible = spectator.counts.get(neuron, (0.0, 0))
        found[name] = float(count) / possible if possible else 0.0
    return found


def feeding(
    net: nn.Module, neurons: Mapping[str, NoisyNeuron], run: Callable[[], Any]
) -> tuple[Feeding, dict[str, float]]:
    """Finds what feeds each layer; also the firing rates of that run.

    The outputs of all scalable modules become leaves, and so do spikes: what a drift's graph leads
    to is then what reaches it directly.

    Raises:
        CalibrationError: No neuron ran, or nothing that can be scaled feeds one that has to be.
    """
    spectator = _Spectator(follows=True)
    leaves: list[tuple[nn.Module, Tensor]] = []
    inputs: list[Tensor] = []

    def cut(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs.extend(x for x in given if isinstance(x, Tensor) and x.requires_grad)
        leaf = output.detach().requires_grad_()
        leaves.append((module, leaf))
        return leaf.clone()

    names = {module: name for name, module in net.named_modules()}
    scalable = [m for m in names if isinstance(m, SCALABLE) and _weights(m)]
    handles = [module.register_forward_hook(cut) for module in scalable]
    try:
        with _watching(neurons, spectator), torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    ran = {n: name for name, n in neurons.items() if n in spectator.drifts}
    if not ran:
        raise CalibrationError("No noisy neuron ran: x has to run the network that is calibrated.")
    drifts = spectator.drifts
    emitted = [(neuron, s) for neuron, some in spectator.spikes.items() for s in some]
    read = _reached([*inputs, *(d for some in drifts.values() for d in some)], emitted)
    found, taken, unfed = Feeding([], {}, {}), set[nn.Parameter](), []
    for neuron, name in ((n, ran[n]) for n in drifts):
        modules = _reached(drifts[neuron], leaves)
        found.order.append(name)
        found.modules[name] = [names[m] for m in modules]
        found.parameters[name] = own = []
        if neuron not in read:
            continue
        for parameter in (p for m in modules for p in _weights(m)):
            if parameter.requires_grad and parameter not in taken:
                taken.add(parameter)
                own.append(parameter)
        if drifts[neuron] and not modules and not _reached(drifts[neuron], emitted):
            unfed.append(name)
    if unfed:
        raise CalibrationError(
            "No Linear, convolution or normalisation with a weight of its own feeds: "
            f"{', '.join(unfed)}. Scale what does by hand."
        )
    return found, _rates(neurons, spectator)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Its weight and bias; none if the weight is computed from other parameters."""
    if module._parameters.get("weight") is None:
        return []
    return [p for n in ("weight", "bias") if (p := module._parameters.get(n)) is not None]


def _reached(tensors: list[Tensor], leaves: list[tuple[Key, Tensor]]) -> dict[Key, None]:
    """Those whose leaves the graphs of some tensors lead to, each once and in order."""
    if not tensors or not leaves:
        return {}
    found = torch.autograd.grad(
        tensors,
        [leaf for _, leaf in leaves],
        [torch.ones_like(x) for x in tensors],
        retain_graph=True,
        allow_unused=True,
    )
    pairs = zip(leaves, found, strict=True)
    return dict.fromkeys(key for (key, _), gradient in pairs if gradient is not None)
