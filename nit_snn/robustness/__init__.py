"""Spiking networks under attack: honest evaluation, certificates, and training that withstands it.

`NoisyClassifier` makes an ordinary `nn.Module` of a snnTorch or SpikingJelly network, from images
to logits: states are reset in each call, noise is averaged over draws, and the gradient with
respect to the images is that of a surrogate or the unbiased likelihood ratio. torchattacks,
foolbox, ART and autoattack attack it unchanged; the first of them comes with
`pip install "nit-snn[robustness]"`. Two attacks that it lacks are here: `NAttack`, which asks for
nothing but logits, and `EOTPGD`, with averaged gradients and restarts.

A `Defender` is judged by two protocols: `paper`, as in the paper that this package implements,
and `adaptive`, the worst of many attacks image by image; `check` looks whether either is to be
believed, and `mcnemar` whether two networks differ. `AdversarialExpand` trains against attacks.
`certify_noise` and `certify_smoothing` give radii within which nothing changes a decision.
"""

from .adversarial import AdversarialExpand, loss_of_mean, trades
from .attacks import paper_attacks
from .certify import Certificate, certify_noise, certify_smoothing
from .chance import worst_by_chance
from .classifier import NoisyClassifier
from .defender import Defender
from .eot import EOTPGD
from .gradients import gradients
from .nattack import NAttack
from .neuron_states import reset_states
from .noise_sensitivity import Sensitivity, sensitivity
from .paired import Paired, mcnemar
from .protocols import adaptive, paper
from .sanity import check, compare
from .verdict import Verdict

__all__ = [
    "EOTPGD",
    "AdversarialExpand",
    "Certificate",
    "Defender",
    "NAttack",
    "NoisyClassifier",
    "Paired",
    "Sensitivity",
    "Verdict",
    "adaptive",
    "certify_noise",
    "certify_smoothing",
    "check",
    "compare",
    "gradients",
    "loss_of_mean",
    "mcnemar",
    "paper",
    "paper_attacks",
    "reset_states",
    "sensitivity",
    "trades",
    "worst_by_chance",
]
