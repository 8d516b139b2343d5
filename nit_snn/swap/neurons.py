"""Turns the neurons of a network into noisy ones, in place, and back."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import Tensor, nn

from ..compat import loaded_neuron_families
from ..errors import SwapError
from ..neurons.ann import NoisyActivation
from ..neurons.base import NoisyNeuron, check_module, noisy_neurons
from ..neurons.checks import checked_sigma
from ..neurons.registry import noisy_classes, plain_classes
from . import activations as around
from .activations import ELEMENTWISE, unwrap, wrap, wrapped
from .keeping import Keep, chosen, is_kept, mark_kept, never_fires
from .refusals import refusal


def swap_neurons(
    net: nn.Module,
    sigma: float | Tensor | Mapping[str, float | Tensor] | None = None,
    keep: Keep = (),
    activations: bool | None = None,
) -> nn.Module:
    """Makes every spiking neuron of `net` a noisy one, in place, or else every activation.

    A neuron's class is exchanged, not the neuron: parameters, buffers, `state_dict` keys, hooks,
    device, dtype, training mode and every reference to it stay as they are, also where one
    neuron is shared by several places, or where `net` itself is the neuron.

    Neurons behind the last noisy one can be left alone, and are then trained by autograd, as an
    integrator whose membrane is read for a regression. `keep` names them. A module made from a
    neuron that never fires is left alone as it is; see `nit_snn.swap.keeping`.

    In a network without any spiking neuron, a `NoisyActivation` is put around each elementwise
    activation of torch.nn, in the module that holds it; an activation that stands in several places
    gets noise, and a noise level, of its own in each. The `state_dict` keys stay as
    they are. Functions (`F.relu`) are no modules and are left alone, and so are all activations of
    a network that spikes: they are part of what lies between two noisy layers. Which activations
    got noise is printed, unless `activations=True` asks for it.

    In a network that is noisy already, a swap with a `sigma` sets the noise level anew.

    Args:
        net: A network with neurons of snnTorch or SpikingJelly (those listed in
            `nit_snn.neurons`, and your own that `register_neuron` adds), or an ordinary one with
            activations of torch.nn.
        sigma: Standard deviation of the noise that each neuron gets at each step, in units
            of its membrane (of an activation, its input). A scalar, a tensor that broadcasts to the
            current without its batch, or one of these for each neuron by its qualified name. By
            default a quarter of the way from each neuron's rest to its threshold, and 1 for an
            activation.
        keep: Neurons to leave without noise, by qualified name (also of a module that holds them),
            by class, or themselves. In front of a noisy neuron their surrogate gradient would enter
            the estimate; the learner warns of it.
        activations: True for a network without spiking neurons, whose activations get noise; False
            to refuse such a network; None prints what was done.

    Returns:
        `net` itself.

    Raises:
        SwapError: There is no neuron or activation to swap, or a neuron that fires and has no
            noisy counterpart (left in the network it would bring its surrogate gradient back), or
            `net` is itself an activation, which nothing holds, or sigma is
            negative, not finite, or names other neurons, or `keep` names none. The network is then
            unchanged.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import swap_neurons
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), snntorch.Leaky(beta=0.9))
        >>> type(swap_neurons(net, sigma=0.5)[1]).__name__
        'NoisyLeaky'
        >>> ann = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())
        >>> swap_neurons(ann, activations=True)[1]
        NoisyActivation(
          sigma=1
          (activation): Tanh()
        )
    """
    noisy = noisy_classes()
    found = spiking_modules(net)
    left = chosen(net, keep, found)
    already = [name for name, module in left.items() if isinstance(module, NoisyNeuron)]
    if already:
        raise SwapError(
            f"keep names {', '.join(already)}, with noise already. Call restore_neurons(net) first."
        )
    left |= {name: m for name, m in found.items() if is_kept(m)}
    fires = {n: m for n, m in found.items() if n not in left and not isinstance(m, NoisyNeuron)}
    if fires and activations:
        raise SwapError(f"activations=True, but the network has neurons: {_listed(fires)}.")
    foreign = {name: m for name, m in fires.items() if type(m) not in noisy}
    if foreign:
        raise SwapError(refusal(foreign))
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    levelled = {n or "(root)": m for n, m in noisy_neurons(net).items()}
    if not fires and levelled and sigma is not None:
        _set_levels(levelled, _levels(sigma, list(levelled), some=True))
    elif not found:
        _around_activations(net, sigma, activations, like)
    elif not fires:
        raise SwapError(_nothing(found))
    else:
        levels = _levels(sigma, list(fires))
        for name, module in fires.items():
            module.__class__ = noisy[type(module)]
            assert isinstance(module, NoisyNeuron)
            module._init_noise(levels[name], like)
    mark_kept(left.values(), True)
    return net


def _around_activations(
    net: nn.Module,
    sigma: float | Tensor | Mapping[str, float | Tensor] | None,
    asked: bool | None,
    like: Tensor | None,
) -> None:
    places = around.activations(net)
    if not places or asked is False:
        raise SwapError(_explain_activations(net))
    wrap(places, _levels(sigma, list(places)), like)
    if asked is None:
        listed = _listed({name: _inner(place.module) for name, place in places.items()})
        print(
            "nit_snn: no spiking neuron of snnTorch or SpikingJelly was found, so these "
            f"activations got noise: {listed}. activations=True says that this is meant.",
            file=sys.stderr,
        )


def _inner(module: nn.Module) -> nn.Module:
    assert isinstance(module, NoisyActivation)
    return module.activation


def _set_levels(neurons: Mapping[str, NoisyNeuron], levels: dict[str, Tensor | None]) -> None:
    """Gives noisy neurons another noise level; a learnable one stays the same parameter."""
    busy = [name for name, neuron in neurons.items() if neuron._recorder is not None]
    if busy:
        raise SwapError(f"A pass is being recorded in {', '.join(busy)}. Swap before it, or after.")
    for name, level in levels.items():
        neuron = neurons[name]
        assert level is not None
        value = level.to(neuron.sigma.device, neuron.sigma.dtype)
        if isinstance(neuron.sigma, nn.Parameter):
            neuron.sigma.data = value.expand(neuron.sigma.shape).clone()
        else:
            neuron.sigma = value


def restore_neurons(net: nn.Module) -> nn.Module:
    """Makes every noisy neuron of `net` the framework's own again, in place.

    Around an activation the noise is taken off, also where it was put by hand.

    Args:
        net: A network that `swap_neurons` was called on.

    Returns:
        `net` itself.

    Raises:
        SwapError: There is no noisy neuron, or one without a plain counterpart (see
            `nit_snn.neurons.register_neuron`), a NITLearner is still attached, or `net` is itself
            a NoisyActivation. The network is then unchanged.
    """
    from ..recording.attachment import attached_learner

    neurons = noisy_neurons(net)
    if not neurons:
        found = spiking_modules(net)
        raise SwapError(_nothing(found) if found else _explain_activations(net))
    if isinstance(net, NoisyActivation):
        raise SwapError("The network is itself a NoisyActivation; take its `activation` instead.")
    attached = [name for name, neuron in neurons.items() if attached_learner(neuron) is not None]
    if attached:
        raise SwapError(
            f"A NITLearner is attached to {', '.join(attached)}. Call learner.close() first."
        )
    plain = plain_classes()
    spiking = {n: m for n, m in neurons.items() if not isinstance(m, NoisyActivation)}
    unknown = {n: m for n, m in spiking.items() if type(m) not in plain}
    if unknown:
        raise SwapError(
            f"No plain counterpart for: {_listed(unknown)}. Nothing was changed. "
            "nit_snn.neurons.register_neuron says what a noisy neuron of your own stands for."
        )
    unwrap(wrapped(net))
    mark_kept(net.modules(), False)
    for neuron in spiking.values():
        del neuron.sigma
        neuron.__dict__.pop("noise", None)
        neuron.__class__ = plain[type(neuron)]  # type: ignore[assignment]
    return net


def spiking_modules(net: nn.Module) -> dict[str, nn.Module]:
    """All neurons of `net` that fire, noisy or not, of any imported framework, by name."""
    check_module(net)
    families, known = loaded_neuron_families(), noisy_classes()
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in net.named_modules():
        noisy = isinstance(module, NoisyNeuron) and not isinstance(module, NoisyActivation)
        fires = noisy or type(module) in known
        fires = fires or any(family.is_spiking(type(module)) for family in families)
        if name.startswith(inside) or not fires:
            continue  # a neuron's own surrogate function is no neuron
        inside += (f"{name}." if name else "",)
        if type(module) in known or isinstance(module, NoisyNeuron) or not never_fires(module):
            found[name or "(root)"] = module
    return found


def _levels(
    sigma: float | Tensor | Mapping[str, float | Tensor] | None,
    names: list[str],
    some: bool = False,
) -> dict[str, Tensor | None]:
    """The noise level of each neuron, or of `some`, by name."""
    if sigma is None:
        return dict.fromkeys(names)
    if not isinstance(sigma, Mapping):
        level = checked_sigma(sigma)
        return dict.fromkeys(names, level)
    if (set(sigma) - set(names)) if some else (set(sigma) != set(names)):
        raise SwapError(
            f"sigma names {', '.join(sorted(sigma)) or 'nothing'}; "
            f"the neurons to swap are {', '.join(sorted(names))}."
        )
    return {name: checked_sigma(sigma[name]) for name in names if name in sigma}


def _nothing(found: dict[str, nn.Module]) -> str:
    return f"Nothing to do. Spiking neurons found: {_listed(found)}."


def _listed(modules: Mapping[str, nn.Module]) -> str:
    return ", ".join(f"{name} ({type(module).__name__})" for name, module in modules.items())


def _explain_activations(net: nn.Module) -> str:
    if isinstance(net, ELEMENTWISE):
        return (
            f"The network is itself an activation ({type(net).__name__}), which nothing holds, so "
            "that it cannot be replaced in place. Use nit_snn.neurons.NoisyActivation(net)."
        )
    noisy = wrapped(net)
    if noisy:
        return f"Nothing to do. Noisy activations found: {', '.join(noisy)}."
    return (
        "Nothing to do: no spiking neuron of snnTorch or SpikingJelly was found in the network, "
        "and no activation of torch.nn that could be made noisy. Are they registered as "
        "submodules? Around anything else, put nit_snn.neurons.NoisyActivation yourself."
    )
