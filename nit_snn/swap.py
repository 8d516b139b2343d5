"""Turns the neurons of a network into noisy ones, in place, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .compat import loaded_neuron_families
from .errors import SwapError
from .neurons.base import NoisyNeuron, checked_sigma, noisy_neurons


def swap_neurons(
    net: nn.Module, sigma: float | Tensor | Mapping[str, float | Tensor] = 1.0
) -> nn.Module:
    """Makes every spiking neuron of `net` a noisy one, in place.

    A neuron's class is exchanged, not the neuron: parameters, buffers, `state_dict` keys, hooks,
    device, dtype, training mode and every reference to it stay as they are, also where one
    neuron is shared by several places, or where `net` itself is the neuron.

    Args:
        net: A network with neurons of snnTorch (`Leaky`) or SpikingJelly (`IFNode`, `LIFNode`).
        sigma: Standard deviation of the noise that each neuron gets at each step, in units
            of its membrane. A scalar, a tensor that broadcasts to the current without its
            batch, or one of these for each neuron by its qualified name.

    Returns:
        `net` itself.

    Raises:
        SwapError: There is no neuron to swap, or one that fires and has no noisy counterpart
            (left in the network it would bring its surrogate gradient back), or sigma is
            negative, not finite, or names other neurons. The network is then unchanged.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import swap_neurons
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), snntorch.Leaky(beta=0.9))
        >>> type(swap_neurons(net, sigma=0.5)[1]).__name__
        'NoisyLeaky'
    """
    noisy = {
        plain: new for family in loaded_neuron_families() for plain, new in family.NOISY.items()
    }
    found = spiking_modules(net)
    swappable = {name: m for name, m in found.items() if type(m) in noisy}
    foreign = {
        name: m
        for name, m in found.items()
        if type(m) not in noisy and not isinstance(m, NoisyNeuron)
    }
    if foreign or not swappable:
        raise SwapError(_explain(found, foreign, [plain.__name__ for plain in noisy]))
    levels = _levels(sigma, list(swappable))
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    for name, module in swappable.items():
        module.__class__ = noisy[type(module)]
        assert isinstance(module, NoisyNeuron)
        module._init_noise(levels[name], like)
    return net


def restore_neurons(net: nn.Module) -> nn.Module:
    """Makes every noisy neuron of `net` the framework's own again, in place.

    Args:
        net: A network that `swap_neurons` was called on.

    Returns:
        `net` itself.

    Raises:
        SwapError: There is no noisy neuron, or a NITLearner is still attached.
    """
    from .learner import attached_learner

    neurons = noisy_neurons(net)
    if not neurons:
        raise SwapError(_explain(spiking_modules(net), {}, []))
    attached = [name for name, neuron in neurons.items() if attached_learner(neuron) is not None]
    if attached:
        raise SwapError(
            f"A NITLearner is attached to {', '.join(attached)}. Call learner.close() first."
        )
    plain = {new: old for family in loaded_neuron_families() for old, new in family.NOISY.items()}
    for neuron in neurons.values():
        del neuron.sigma
        neuron.__dict__.pop("noise", None)
        neuron.__class__ = plain[type(neuron)]
    return net


def spiking_modules(net: nn.Module) -> dict[str, nn.Module]:
    """All neurons of `net` that fire, noisy or not, of any imported framework, by name."""
    families = loaded_neuron_families()
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in net.named_modules():
        if name.startswith(inside) or not any(family.is_spiking(module) for family in families):
            continue  # a neuron's own surrogate function is no neuron
        found[name or "(root)"] = module
        inside += (f"{name}." if name else "",)
    return found


def _levels(
    sigma: float | Tensor | Mapping[str, float | Tensor], names: list[str]
) -> dict[str, Tensor]:
    if not isinstance(sigma, Mapping):
        level = checked_sigma(sigma)
        return dict.fromkeys(names, level)
    if set(sigma) != set(names):
        raise SwapError(
            f"sigma names {', '.join(sorted(sigma)) or 'nothing'}; "
            f"the neurons to swap are {', '.join(sorted(names))}."
        )
    return {name: checked_sigma(sigma[name]) for name in names}


def _explain(
    found: dict[str, nn.Module], foreign: dict[str, nn.Module], supported: list[str]
) -> str:
    listed = ", ".join(f"{name} ({type(m).__name__})" for name, m in (foreign or found).items())
    if foreign:
        return (
            f"No noisy counterpart for: {listed}. Supported: {', '.join(supported)}. Nothing was "
            "changed: a noise-free spiking neuron would bring its surrogate gradient back."
        )
    if found:
        return f"Nothing to do. Spiking neurons found: {listed}."
    return (
        "Nothing to do: no spiking neuron of snnTorch or SpikingJelly was found in "
        "the network. Are the neurons registered as submodules?"
    )
