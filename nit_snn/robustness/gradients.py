"""Ways to differentiate a network in its images: what an adaptive attacker tries."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import AttachError, ClassifierError
from ..inspect.audit.surrogates import atan, noise_density, rectangle, with_surrogate
from ..neurons.base import NoisyNeuron, noisy_neurons
from ..swap import spiking_modules
from .defender import Defender

#: What is tried of the likelihood ratio, the sharpest first.
_LR: tuple[dict[str, Any], ...] = (
    {"conditional": True, "credit": "time"},
    {"credit": "time"},
    {},
)


def gradients(defender: Defender) -> dict[str, dict[str, Any]]:
    """Options of `Defender.classifier` for each gradient that the network has, by name.

    Of a network without spikes its own; else those of its own surrogates, of a rectangle, a
    narrow and a wide atan, the density of a normal of half, once and twice the neuron's noise (of
    0.5 in a network without noise), and of a noisy one the likelihood ratio's, in the sharpest
    form that it allows.
    """
    spiking = spiking_modules(defender.net)
    names = {n: m for n, m in spiking.items() if m in with_surrogate(spiking.values())}
    if not names:
        return {"own": {"gradient": "surrogate"}}
    found: dict[str, dict[str, Any]] = {
        "own": {},
        "rectangle": {"surrogate": rectangle(1.0)},
        "atan 2": {"surrogate": atan(2.0)},
        "atan 8": {"surrogate": atan(8.0)},
    }
    for factor in (0.5, 1.0, 2.0):
        found[f"density {factor:g}"] = {
            "surrogate": {n: noise_density(_level(m) * factor) for n, m in names.items()}
        }
    if defender.noise and noisy_neurons(defender.net):
        for options in _LR:
            try:
                defender.classifier(draws=2, gradient="lr", **options)
            except (ClassifierError, AttachError):
                continue
            found["LR"] = {"gradient": "lr", **options}
            break
    return found


def _level(neuron: torch.nn.Module) -> torch.Tensor | float:
    return neuron.sigma.detach() if isinstance(neuron, NoisyNeuron) else 0.5
