"""What NIR cannot express, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..compat import loaded_neuron_families
from ..errors import ExchangeError
from ..neurons.snntorch_base import spikes_at_threshold


def refuse(obstacles: dict[str, str]) -> None:
    if obstacles:
        listed = "; ".join(f"{name}: {why}" for name, why in obstacles.items())
        raise ExchangeError(f"This cannot be exchanged through NIR: {listed}.")


def obstacle(module: nn.Module) -> str | None:
    """Why NIR cannot express a layer; None if it can."""
    kind = type(module).__name__
    if any(family.is_spiking(type(module)) for family in loaded_neuron_families()):
        snntorch = type(module).__module__.startswith("snntorch")
        return _snntorch_obstacle(module) if snntorch else _spikingjelly_obstacle(module)
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return "its groups, which readers of NIR disagree about"
        if len(set(module.kernel_size)) > 1:
            return "its kernel is not square, and nir computes the shape behind it wrongly"
        return None if module.padding_mode == "zeros" else f"it pads with {module.padding_mode}"
    if isinstance(module, nn.AvgPool2d):
        padded = bool(np.any(module.padding)) and not module.count_include_pad
        odd = module.ceil_mode or padded or module.divisor_override is not None
        return "what it divides by, or how it rounds its shape" if odd else None
    if isinstance(module, nn.Linear | nn.Flatten):
        return None
    return f"NIR has no {kind}"


def _snntorch_obstacle(neuron: Any) -> str | None:
    kind = type(neuron).__name__
    if kind not in ("Leaky", "Synaptic"):
        return f"NIR has no neuron like {kind}"
    if neuron.reset_mechanism != "zero":
        return f"its reset mechanism is {neuron.reset_mechanism!r}; NIR resets to a constant"
    if kind == "Synaptic" and neuron.reset_delay:
        return "its delayed reset takes the next current with it; take reset_delay=False"
    if not neuron.init_hidden:
        return "its state comes from outside; take init_hidden=True"
    if neuron.inhibition or neuron.state_quant or (neuron.graded_spikes_factor != 1).any():
        return "inhibition, a quantised state or graded spikes, which NIR does not know"
    if not spikes_at_threshold(neuron.spike_grad):
        return "its spike_grad does not fire at the threshold"
    decays = [neuron.beta, *([neuron.alpha] if kind == "Synaptic" else [])]
    integrates = kind == "Leaky" and bool((neuron.beta >= 1).all())
    if not integrates and any(bool((decay >= 1).any()) for decay in decays):
        return "a decay of 1, which is an infinite time constant"
    return None


def _spikingjelly_obstacle(neuron: Any) -> str | None:
    kind = type(neuron).__name__
    if kind not in ("IFNode", "LIFNode", "ParametricLIFNode"):
        return f"NIR has no neuron like {kind}"
    if neuron.v_reset is None:
        return "its reset is soft (v_reset=None); NIR resets to a constant"
    if not getattr(neuron.surrogate_function, "spiking", True):
        return "its surrogate function is not in spiking mode"
    return None
