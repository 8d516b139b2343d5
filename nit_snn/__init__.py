"""Trains spiking networks from their noise, without backpropagation through time.

Swap the neurons of an snnTorch or SpikingJelly network for noisy ones, attach a `NITLearner`, and
train with any torch optimizer and any loss.
"""

from importlib.metadata import version as _version

from .dynamics.backend import backends
from .estimators.schedule import NITSPlus
from .inspect.audit import AuditReport, audit
from .learner import NITLearner
from .neurons import noise_off
from .swap import calibrate, restore_neurons, swap_neurons
from .training.allocator import keep_freed_memory
from .training.cuda_graph import cuda_graph

__version__ = _version("nit-snn")
__all__ = [
    "AuditReport",
    "NITLearner",
    "NITSPlus",
    "audit",
    "backends",
    "calibrate",
    "cuda_graph",
    "keep_freed_memory",
    "noise_off",
    "restore_neurons",
    "swap_neurons",
]
