"""The states of a network's neurons, which no call of a classifier leaves behind."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import RecordingError
from ..neurons.base import NoisyNeuron
from ..swap import spiking_modules


def check_idle(neurons: Mapping[str, NoisyNeuron]) -> None:
    """Nobody records or probes the neurons, given by name.

    Raises:
        RecordingError: Somebody does.
    """
    busy = [name for name, neuron in neurons.items() if neuron._recorder is not None]
    if busy:
        raise RecordingError(
            f"Something is recording or probing {', '.join(busy)}. Call a NoisyClassifier "
            "before learner.record() or after it, not inside."
        )


def reset_states(net: nn.Module) -> None:
    """Sets every neuron of either framework, noisy or plain, to its initial state.

    Whatever else remembers in SpikingJelly's way is reset as well. Unlike the frameworks' own
    functions it walks the whole network, and only this one.

    Example:
        >>> import torch, snntorch
        >>> net = torch.nn.Sequential(torch.nn.Sequential(snntorch.Leaky(beta=0.5)))
        >>> _ = net(torch.ones(1, 2))
        >>> reset_states(net)
        >>> net[0][0].mem
        tensor([[0., 0.]])
    """
    for module in spiking_modules(net).values():
        noisy = isinstance(module, NoisyNeuron)
        reset = module.reset_state if noisy else getattr(module, "reset_mem", None)
        if callable(reset):
            reset()
    for module in net.modules():
        reset = getattr(module, "reset", None)
        if "_memories" in vars(module) and callable(reset):
            reset()
