"""Which options of a classifier's gradient a network refuses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import AttachError, ClassifierError
from ..estimators.credit import KINDS
from ..inspect.audit.surrogates import Surrogate, with_surrogate
from ..neurons.base import noisy_neurons
from ..swap import spiking_modules
from ..validation import network
from .pullback import lr_estimator


def check_lr(
    net: nn.Module,
    draws: int,
    noise: bool,
    surrogate: object,
    conditional: bool,
    credit: str,
) -> None:
    if surrogate is not None:
        raise ClassifierError("gradient='lr' goes through no spike; leave surrogate out.")
    if not noise:
        raise ClassifierError("gradient='lr' is made of the noise; it cannot go with noise=False.")
    if draws < 2:
        raise ClassifierError(
            "gradient='lr' subtracts from each draw the mean of the others, and needs draws of at "
            f"least 2, got {draws}. About 20 make a usable gradient."
        )
    if not isinstance(conditional, bool):
        raise ClassifierError(f"conditional must be True or False, got {conditional!r}.")
    if credit not in KINDS:
        raise ClassifierError(f"credit must be one of {tuple(KINDS)}, got {credit!r}.")
    neurons = noisy_neurons(net)
    try:
        network.check_neurons(net, neurons)
        network.check_unbiased(neurons)
        network.check_levels(neurons)
        network.check_kinds(neurons, lr_estimator(conditional, credit))
    except AttachError as error:
        raise ClassifierError(f"gradient='lr' is not for this network: {error}") from error


def check_surrogate(net: nn.Module, surrogate: Surrogate | Mapping[str, Surrogate]) -> None:
    names = set(neurons_with_surrogate(net))
    if not names:
        raise ClassifierError("The network has no neuron with a surrogate to replace.")
    if isinstance(surrogate, Mapping) and set(surrogate) != names:
        raise ClassifierError(
            f"surrogate names {', '.join(sorted(surrogate)) or 'nothing'}; the neurons that have "
            f"one are {', '.join(sorted(names))}."
        )


def neurons_with_surrogate(net: nn.Module) -> dict[str, nn.Module]:
    found = spiking_modules(net)
    having = with_surrogate(found.values())
    return {name: neuron for name, neuron in found.items() if neuron in having}
