"""Noisy spiking neurons for snnTorch and SpikingJelly.

A family is imported when one of its neurons is first asked for, so that neither framework is needed
to use the other:

    from nit_snn.neurons import NoisyLeaky                  # snnTorch
    from nit_snn.neurons import NoisyIFNode, NoisyLIFNode   # SpikingJelly
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import NoisyNeuron, noise_off, noisy_neurons

if TYPE_CHECKING:
    from .snntorch import NoisyLeaky
    from .spikingjelly import NoisyIFNode, NoisyLIFNode

__all__ = [
    "NoisyIFNode",
    "NoisyLIFNode",
    "NoisyLeaky",
    "NoisyNeuron",
    "noise_off",
    "noisy_neurons",
]

_FAMILIES = {
    "NoisyLeaky": "snntorch",
    "NoisyIFNode": "spikingjelly",
    "NoisyLIFNode": "spikingjelly",
}


def __getattr__(name: str) -> Any:
    if name not in _FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FAMILIES[name]}", __name__), name)
