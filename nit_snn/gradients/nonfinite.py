"""NaN and infinity: found before they reach a weight, and traced back to where they came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import NonFiniteGradientError, NonFiniteWeightError
from ..neurons.base import NoisyNeuron
from ..validation.capture import being_captured
from .atomic_update import all_or_nothing


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether there is neither NaN nor infinity; each device is waited for once."""
    numbers = [t._values() if t.is_sparse else t for t in tensors]
    # A finite sum has finite summands; only where it is not, they have to be looked at.
    return _sums_are_finite(numbers) or all(bool(torch.isfinite(t).all()) for t in numbers)


def _sums_are_finite(tensors: Sequence[Tensor]) -> bool:
    elsewhere: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.device.type != "cpu":
            elsewhere.setdefault(tensor.device, []).append(tensor.sum().float())
        elif not math.isfinite(tensor.sum().item()):
            return False
    return all(bool(torch.isfinite(torch.stack(sums)).all()) for sums in elsewhere.values())


def names_of_bad(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which of them hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not all_finite([tensor])]


@contextmanager
def kept_out(
    net: nn.Module,
    neurons: Mapping[str, NoisyNeuron],
    policy: str,
    gradients: Mapping[Tensor, Tensor] | None = None,
) -> Iterator[None]:
    """What is added to `.grad` inside is finite, or else nothing is; the weights are, too.

    Args:
        net: The network.
        neurons: Its noisy neurons, by name.
        policy: One of `nit_snn.validation.options.POLICIES`.
        gradients: What will be added, by parameter, if all of it is known before. Otherwise it is
            looked at afterwards, for which what was there before is put aside meanwhile.

    Raises:
        NonFiniteWeightError: A parameter is not finite.
        NonFiniteGradientError: A gradient is not finite. `.grad` is as it was.
    """
    if policy == "write" or being_captured():
        yield
        return
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if gradients is not None:
        known = {name: gradients[p] for name, p in trained.items() if p in gradients}
        _check(net, neurons, trained, known)
        yield
        return
    with all_or_nothing(list(trained.values())):
        yield
        found = {name: p.grad for name, p in trained.items() if p.grad is not None}
        _check(net, neurons, trained, found)


def _check(
    net: nn.Module,
    neurons: Mapping[str, NoisyNeuron],
    trained: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> None:
    if all_finite([*gradients.values(), *trained.values()]):
        return
    check_weights(net)
    raise NonFiniteGradientError(
        f"The gradient is NaN or infinite in: {', '.join(names_of_bad(gradients))}, though no "
        f"loss is. {suspects(neurons)}No gradient was written."
    )


def check_weights(net: nn.Module) -> None:
    """No parameter is beyond repair.

    Raises:
        NonFiniteWeightError: One is.
    """
    bad = names_of_bad(dict(net.named_parameters()))
    if bad:
        raise NonFiniteWeightError(
            f"There is NaN or infinity in the parameters {', '.join(bad)} themselves. Load an "
            "earlier checkpoint, and lower the learning rate if an update has done it."
        )


def suspects(neurons: Mapping[str, NoisyNeuron]) -> str:
    """Which neurons were given bad numbers, as a sentence; where there are none, what else."""
    bad = [name for name, neuron in neurons.items() if broken(neuron)]
    if bad:
        return (
            f"Membranes of {', '.join(bad)} hold NaN or infinity: look at the input of the first "
            "of them, and at what the batch holds. "
        )
    return "All membranes are finite: look at the input, and at how the losses are computed. "


def broken(neuron: NoisyNeuron) -> bool:
    """Whether a neuron carries a membrane on that is not finite, from which it never recovers."""
    membrane = neuron.membrane
    return membrane is not None and not bool(torch.isfinite(membrane.detach()).all())


def recover(neurons: Iterable[NoisyNeuron]) -> None:
    """After a bad batch: no neuron carries on its graph, or a membrane that is not finite."""
    for neuron in neurons:
        neuron.detach_state()
        if broken(neuron):
            neuron.reset_state()
