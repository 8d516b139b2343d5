"""Noisy neurons: spiking ones for snnTorch and SpikingJelly, and activations of plain torch.

A family is imported when one of its neurons is first asked for, so that neither framework is needed
to use the other:

    from nit_snn.neurons import NoisyLeaky, NoisySynaptic   # snnTorch
    from nit_snn.neurons import NoisyIFNode, NoisyLIFNode   # SpikingJelly
    from nit_snn.neurons import NoisyQIFNode                # SpikingJelly 2.0 or newer
    from nit_snn.neurons import NoisyActivation             # torch alone
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import NoisyNeuron, noise_off, noisy_neurons
from .registry import register_neuron

if TYPE_CHECKING:
    from .ann import NoisyActivation
    from .snntorch import (
        NoisyAlpha,
        NoisyLapicque,
        NoisyLeaky,
        NoisyRLeaky,
        NoisyRSynaptic,
        NoisySLSTM,
        NoisySynaptic,
    )
    from .spikingjelly import NoisyIFNode, NoisyLIFNode, NoisyParametricLIFNode
    from .spikingjelly_more import (
        NoisyCUBALIFNode,
        NoisyEIFNode,
        NoisyHalfThresholdIFNode,
        NoisyQIFNode,
        NoisySimpleIFNode,
        NoisySimpleLIFNode,
    )

__all__ = [
    "NoisyActivation",
    "NoisyAlpha",
    "NoisyCUBALIFNode",
    "NoisyEIFNode",
    "NoisyHalfThresholdIFNode",
    "NoisyIFNode",
    "NoisyLIFNode",
    "NoisyLapicque",
    "NoisyLeaky",
    "NoisyNeuron",
    "NoisyParametricLIFNode",
    "NoisyQIFNode",
    "NoisyRLeaky",
    "NoisyRSynaptic",
    "NoisySLSTM",
    "NoisySimpleIFNode",
    "NoisySimpleLIFNode",
    "NoisySynaptic",
    "noise_off",
    "noisy_neurons",
    "register_neuron",
]

_FAMILIES = {
    "NoisyActivation": "ann",
    "NoisyAlpha": "snntorch",
    "NoisyLapicque": "snntorch",
    "NoisyLeaky": "snntorch",
    "NoisyRLeaky": "snntorch",
    "NoisyRSynaptic": "snntorch",
    "NoisySLSTM": "snntorch",
    "NoisySynaptic": "snntorch",
    "NoisyIFNode": "spikingjelly",
    "NoisyLIFNode": "spikingjelly",
    "NoisyParametricLIFNode": "spikingjelly",
    "NoisyCUBALIFNode": "spikingjelly_more",
    "NoisyEIFNode": "spikingjelly_more",
    "NoisyHalfThresholdIFNode": "spikingjelly_more",
    "NoisyQIFNode": "spikingjelly_more",
    "NoisySimpleIFNode": "spikingjelly_more",
    "NoisySimpleLIFNode": "spikingjelly_more",
}


def __getattr__(name: str) -> Any:
    if name not in _FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FAMILIES[name]}", __name__), name)
