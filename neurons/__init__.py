"""Noisy spiking neurons for snnTorch and SpikingJelly.

The two families are imported only when they are asked for, so that neither framework is needed to
use the other::

    from nit_snn.neurons.snntorch import NoisyLeaky
    from nit_snn.neurons.spikingjelly import NoisyIFNode, NoisyLIFNode
"""

from .base import NoisyNeuron, noise_off, noisy_neurons

__all__ = ["NoisyNeuron", "noise_off", "noisy_neurons"]
