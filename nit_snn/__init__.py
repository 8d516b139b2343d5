"""Trains spiking networks from their noise: no surrogate gradient, no backpropagation in time.

Swap the neurons of an snnTorch or SpikingJelly network for noisy ones, attach a `NITLearner`, and
train with any torch optimizer and any loss.
"""

from importlib.metadata import version as _version

from .allocator import keep_freed_memory
from .auditing import AuditReport, audit
from .backend import backends
from .learner import NITLearner
from .neurons import noise_off
from .rules import NITSPlus
from .swap import restore_neurons, swap_neurons

__version__ = _version("nit-snn")
__all__ = [
    "AuditReport",
    "NITLearner",
    "NITSPlus",
    "audit",
    "backends",
    "keep_freed_memory",
    "noise_off",
    "restore_neurons",
    "swap_neurons",
]
