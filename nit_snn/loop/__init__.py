"""In-the-loop training: gradients for networks that torch does not run.

A simulator, a chip, or code in another language runs the network. It hands over the noise that went
in, what each synapse carried, and the loss; `Loop` makes the gradient of these, with the estimator
that `nit_snn.NITLearner` has.
"""

from .arrays import last_spikes
from .layer import Layer, LayerGradient, Observed
from .loop import Loop

__all__ = ["Layer", "LayerGradient", "Loop", "Observed", "last_spikes"]
