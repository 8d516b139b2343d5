"""Spiking networks under attack: a noisy network as a module that attack libraries take.

`NoisyClassifier` makes an ordinary `nn.Module` of a snnTorch or SpikingJelly network, from images
to logits: states are reset in each call, noise is averaged over draws, and the gradient with
respect to the images is that of a surrogate or the unbiased likelihood ratio. torchattacks,
foolbox, ART and autoattack attack it unchanged; the first of them comes with
`pip install "nit-snn[robustness]"`. Two attacks that it lacks are here: `NAttack`, which asks for
nothing but logits, and `EOTPGD`, with averaged gradients and restarts. `certify_noise` and
`certify_smoothing` tell radii within which nothing changes a decision.
"""

from .certify import Certificate, Sensitivity, certify_noise, certify_smoothing, sensitivity
from .classifier import NoisyClassifier, reset_states
from .eot import EOTPGD
from .nattack import NAttack

__all__ = [
    "EOTPGD",
    "Certificate",
    "NAttack",
    "NoisyClassifier",
    "Sensitivity",
    "certify_noise",
    "certify_smoothing",
    "reset_states",
    "sensitivity",
]
