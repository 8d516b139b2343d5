"""Which noisy class stands for which neuron: the frameworks' own, and those that users add."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import nn

from ..compat import loaded_neuron_families
from ..errors import SwapError
from .base import NoisyNeuron

Noisy = TypeVar("Noisy", bound=NoisyNeuron)

#: What goes with a drift of one's own: a class states it, or inherits what would be wrong.
STATED = {
    "_lif": "the closed form of the drift, or None",
    "_gain": "the derivative of the drift in the current",
    "why_not_pathwise": "a reason, or None if _carry is the derivative in the old membrane",
}

#: What users registered: noisy class -> plain class.
_REGISTERED: dict[type[NoisyNeuron], type[nn.Module]] = {}


def register_neuron(plain: type[nn.Module]) -> Callable[[type[Noisy]], type[Noisy]]:
    """Registers the noisy counterpart of a neuron of your own, for `swap_neurons`.

    A swap exchanges the class of a neuron and calls no `__init__`: all that the noisy class has
    beyond the plain one is `sigma`, and with the noise off it must compute what the plain one
    computes (tutorial 10 shows how to check that). Only this exact class is looked up: a
    subclass may compute something else. A class of the same name, as when a notebook's cell is run
    again, takes the earlier one's place.

    Args:
        plain: Your class: a subclass of a neuron of snnTorch or SpikingJelly, or any other module
            that fires. From then on `swap_neurons` knows that it does.

    Returns:
        A decorator for the noisy class, a subclass of `plain` and of `NoisyNeuron`, of a noisy
        neuron of the same framework say. For a class of neither framework it has a forward pass of
        its own; docs/neurons.md has an example.

    Raises:
        SwapError: `plain` has a noisy counterpart already; or the noisy class is no
            `NoisyNeuron`, no subclass of `plain`, another's counterpart, or leaves out an equation
            that `plain` has changed, what goes with one of its own, or the forward pass.

    Example:
        >>> import snntorch, torch
        >>> from nit_snn import restore_neurons, swap_neurons
        >>> from nit_snn.neurons import NoisyLeaky, register_neuron
        >>> class Slow(snntorch.Leaky):
        ...     def __init__(self):
        ...         super().__init__(beta=0.99)
        >>> @register_neuron(Slow)
        ... class NoisySlow(NoisyLeaky, Slow):
        ...     pass
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), Slow())
        >>> type(swap_neurons(net, sigma=0.5)[1]).__name__
        'NoisySlow'
        >>> type(restore_neurons(net)[1]).__name__
        'Slow'
    """
    if not (isinstance(plain, type) and issubclass(plain, nn.Module)):
        raise SwapError(
            f"register_neuron takes the plain class, got {plain!r}. Use it as "
            "@register_neuron(Plain) over the noisy class."
        )

    def register(noisy: type[Noisy]) -> type[Noisy]:
        if not (isinstance(noisy, type) and issubclass(noisy, NoisyNeuron)):
            raise SwapError(
                f"{_name(noisy)} is no NoisyNeuron. Derive it from the noisy neuron of the same "
                "framework and then from the plain class, "
                f"as in: class Noisy{plain.__name__}(NoisyLeaky, {plain.__name__})."
            )
        if not issubclass(noisy, plain) or noisy is plain:
            raise SwapError(
                f"{noisy.__name__} is no subclass of {plain.__name__}, as it has to be: a swap "
                "exchanges the class of a neuron, not the neuron."
            )
        known = noisy_classes().get(plain)
        if known is not None and _name(known) != _name(noisy):
            raise SwapError(f"{plain.__name__} has a counterpart already: {_name(known)}.")
        other = plain_classes().get(noisy, plain)
        if other is not plain:
            raise SwapError(f"{noisy.__name__} is already the counterpart of {other.__name__}.")
        _check_forward(plain, noisy)
        _check_equations(plain, noisy)
        _REGISTERED[noisy] = plain
        return noisy

    return register


def _check_forward(plain: type[nn.Module], noisy: type[NoisyNeuron]) -> None:
    """A neuron of neither framework has no noise but what the forward pass of its own adds."""
    foreign = not any(family.is_spiking(plain) for family in loaded_neuron_families())
    if foreign and noisy.forward is plain.forward:
        raise SwapError(
            f"{noisy.__name__} has the forward pass of {plain.__name__}, to which no noise is "
            "added. Write one that hands its membrane update to _step, as in docs/neurons.md."
        )


def _check_equations(plain: type[nn.Module], noisy: type[NoisyNeuron]) -> None:
    """A neuron that charges its membrane differently does so with noise, too, and says how.

    What it inherits of the framework's neuron would be silently wrong: a closed form is used in
    place of the drift, a factor of the current in every gradient.
    """
    for family in loaded_neuron_families():
        theirs, ours = family.REPLACED
        framework = next((kind for kind in plain.__mro__ if kind in family.NOISY), None)
        if framework is None:
            continue
        changed = _differing(theirs, plain, framework)
        own = _differing((ours, *STATED), noisy, family.NOISY[framework])
        if changed and ours not in own:
            raise SwapError(
                f"{plain.__name__} changes {', '.join(changed)}, which a noisy neuron does not "
                f"call: override {ours} in {noisy.__name__} to the same effect (tutorial 10)."
            )
        inherited = [f"{name} ({what})" for name, what in STATED.items() if name not in own]
        if ours in own and inherited:
            raise SwapError(
                f"{noisy.__name__} overrides {ours}, but inherits what describes the framework's "
                f"own equation. State, too: {'; '.join(inherited)}. See tutorial 10."
            )


def _differing(names: Iterable[str], one: type, other: type) -> list[str]:
    return [name for name in names if getattr(one, name, None) is not getattr(other, name, None)]


def noisy_classes() -> dict[type[nn.Module], type[NoisyNeuron]]:
    """The noisy class of each plain one, of the frameworks that are imported."""
    return {plain: noisy for noisy, plain in plain_classes().items()}


def plain_classes() -> dict[type[NoisyNeuron], type[nn.Module]]:
    """The plain class of each noisy one, of the frameworks that are imported."""
    own = {
        noisy: plain for family in loaded_neuron_families() for plain, noisy in family.NOISY.items()
    }
    return own | _REGISTERED


def _name(kind: object) -> str:
    if not isinstance(kind, type):
        return repr(kind)
    return f"{kind.__module__}.{kind.__qualname__}"
