"""What a learner warns of: parameters that no gradient reaches, and estimates that are biased."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from torch import nn

from . import checks
from .errors import BiasWarning, UnreachedParameterWarning
from .neurons.base import NoisyNeuron


def of_coupling(net: nn.Module) -> None:
    """BatchNorm that lets the noise of one row reach the loss of another."""
    coupled = checks.coupled_batch_norms(net)
    if coupled:
        warnings.warn(
            f"BatchNorm in training mode behind a noisy layer: {', '.join(coupled)}. Its batch "
            "statistics let the noise of one row reach the loss of another, which the "
            "estimate leaves out: it is biased for the layers before. Put it in eval mode "
            "for an unbiased gradient.",
            BiasWarning,
            stacklevel=5,
        )


def of_unreached(net: nn.Module, known: Collection[str]) -> None:
    """Parameters that got no gradient from an estimate, but for those that are `known`."""
    missing = [name for name in checks.unreached_parameters(net) if name not in known]
    if missing:
        warnings.warn(
            f"No gradient reaches: {', '.join(missing)}. The noise reaches what enters the "
            "drift of a noisy neuron; what lies behind the last one needs a loss with a graph. "
            "Freeze them with requires_grad_(False).",
            UnreachedParameterWarning,
            stacklevel=4,
        )


def of_unreachable(neurons: Mapping[str, NoisyNeuron]) -> set[str]:
    """What the noise cannot teach anything, whatever the loss; their names."""
    found = checks.unreachable_parameters(neurons)
    if found:
        listed = "; ".join(f"{name} ({reason})" for name, reason in found.items())
        warnings.warn(
            f"No gradient will reach: {listed}. Freeze them with requires_grad_(False).",
            UnreachedParameterWarning,
            stacklevel=4,
        )
    return set(found)
