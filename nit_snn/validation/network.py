"""What a learner refuses of a network, and why; each with what to do instead."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AttachError
from ..estimators.estimator import Estimator
from ..neurons.base import NoisyNeuron
from ..recording.attachment import check_free
from ..swap.keeping import is_kept
from ..swap.neurons import spiking_modules
from ..training.distributed import check_wrapper
from .capture import being_captured
from .diagnosis import check_materialised, raise_all


def check_neurons(net: nn.Module, neurons: Mapping[str, NoisyNeuron]) -> None:
    """Nothing fires in the network but the noisy neurons that the learner knows."""
    if not neurons:
        raise AttachError("The network has no noisy neuron. Call nit_snn.swap_neurons(net) first.")
    known = set(neurons.values())
    strange = [
        f"{name} ({type(module).__name__})"
        for name, module in spiking_modules(net).items()
        if module not in known and not is_kept(module)
    ]
    if strange:
        raise AttachError(
            "These spiking neurons are not noisy, or came after the learner, so their "
            f"surrogate gradients would enter the estimate: {', '.join(strange)}. "
            "Swap them with nit_snn.swap_neurons(net), or name those behind the last noisy neuron "
            "in its keep=, and attach the learner then."
        )


def check_attachable(
    net: nn.Module, neurons: Mapping[str, NoisyNeuron], given: Mapping[str, Any]
) -> None:
    """A learner with these options can be attached to the network.

    Raises:
        AttachError: One error that lists all that is wrong.
    """
    levels = given["sigma_bounds"] if given["learn_sigma"] else None
    raise_all(
        lambda: check_wrapper(net),
        lambda: check_materialised(net),
        lambda: check_neurons(net, neurons),
        lambda: check_unbiased(neurons),
        lambda: check_levels(neurons, levels),
        lambda: check_free(neurons),
    )


class Watch:
    """Looks at a network before each pass: is it still what the learner was attached to?

    Args:
        neurons: Its noisy neurons, by name.
        estimator: What the learner makes of its passes.

    Attributes:
        binary: Neurons whose spikes are the membrane above its threshold, and nothing else.

    Raises:
        AttachError: A neuron is of a kind that the estimate cannot be made for.
    """

    def __init__(self, neurons: Mapping[str, NoisyNeuron], estimator: Estimator) -> None:
        self.neurons = neurons
        self._decisive: list[object] = []
        self._modules: list[nn.Module] = []
        self._levels: list[tuple[int, int]] = []
        self.binary: set[NoisyNeuron] = set()
        self._look(estimator)

    @property
    def modules(self) -> list[nn.Module]:
        """All modules of the network; the same list as long as they are the same."""
        return self._modules

    def check(self, net: nn.Module, estimator: Estimator) -> None:
        """Raises AttachError, if it is not."""
        modules = list(net.modules())
        if modules != self._modules:
            check_neurons(net, self.neurons)
            check_still_there(net, self.neurons)
            self._modules = modules
        levels = [(id(n.sigma), n.sigma._version) for n in self.neurons.values()]
        if levels != self._levels:
            check_levels(self.neurons)
            self._levels = levels
        now = decisive(self.neurons)
        if len(now) == len(self._decisive) and all(map(operator.is_, now, self._decisive)):
            return  # the same objects; equal ones are looked at anew, which costs little
        check_unbiased(self.neurons)
        self._look(estimator)

    def _look(self, estimator: Estimator) -> None:
        check_kinds(self.neurons, estimator)
        known = (n for n in self.neurons.values() if n.why_no_firing_probability() is None)
        self.binary = set(known)
        self._decisive = decisive(self.neurons)


def check_still_there(net: nn.Module, neurons: Mapping[str, NoisyNeuron]) -> None:
    """No noisy neuron has left the network since the learner was attached."""
    there = set(net.modules())
    gone = [f"{name} ({type(m).__name__})" for name, m in neurons.items() if m not in there]
    if gone:
        raise AttachError(
            f"These noisy neurons have left the network since the learner was attached: "
            f"{', '.join(gone)}. Call learner.close(), and attach a new one."
        )


#: What decides whether a neuron's estimate can be unbiased, and may be changed at any time.
_DECISIVE = (
    "reset_mechanism",
    "reset_delay",
    "inhibition",
    "state_quant",
    "spike_grad",
    "v_reset",
    "surrogate_function",
)


def decisive(neurons: Mapping[str, NoisyNeuron]) -> list[object]:
    """What the other checks of kinds look at; if it is as it was, they would find the same."""
    return [getattr(neuron, name, None) for neuron in neurons.values() for name in _DECISIVE]


def check_unbiased(neurons: Mapping[str, NoisyNeuron]) -> None:
    """No neuron does anything that the estimate cannot see."""
    refused = _reasons({name: neuron.why_biased() for name, neuron in neurons.items()})
    if refused:
        raise AttachError(f"The estimate would be biased in: {refused}.")


def check_levels(
    neurons: Mapping[str, NoisyNeuron], bounds: tuple[float, float] | None = None
) -> None:
    """Every noise level is positive, and within `bounds` if it is to be learned."""
    if being_captured():
        return
    levels = {name: m.sigma.detach() for name, m in neurons.items() if not m.sigma.is_meta}
    silent = _not_all({name: (x > 0) & (x < float("inf")) for name, x in levels.items()})
    if silent:
        raise AttachError(
            "The noise level sigma must be finite and positive in: "
            f"{', '.join(silent)}. Without noise there is nothing to learn from: swap_neurons(net, "
            "sigma=0.25)."
        )
    if bounds is not None:
        low, high = bounds
        outside = _not_all({name: (x >= low) & (x <= high) for name, x in levels.items()})
        if outside:
            raise AttachError(
                f"sigma starts outside of sigma_bounds={bounds} in: {', '.join(outside)}."
            )


def check_kinds(neurons: Mapping[str, NoisyNeuron], estimator: Estimator) -> None:
    """Every neuron is of a kind that the estimate can be made for."""
    refused = _reasons({name: estimator.why_not(n) for name, n in neurons.items()})
    if refused:
        raise AttachError(
            f"credit={estimator.credit.name!r} and conditional={estimator.score.conditioned} need "
            "neurons that fire where the membrane crosses the threshold, and carry it on "
            f"smoothly. They would be biased in: {refused}."
        )


def training_batch_norms(net: nn.Module) -> dict[str, nn.Module]:
    """BatchNorms that use, and follow, the statistics of each batch, by qualified name."""
    norms = nn.modules.batchnorm._BatchNorm
    return {n: m for n, m in net.named_modules() if isinstance(m, norms) and m.training}


@contextmanager
def coupled_batch_norms(net: nn.Module, noisy: Callable[[], bool]) -> Iterator[list[str]]:
    """BatchNorms that use batch statistics of something noisy, by the order in which they run.

    Args:
        net: The network, which runs inside.
        noisy: Whether a noisy neuron has run by now.

    Yields:
        Their qualified names, filled as the network runs: those in training mode whose first call
        comes after a noisy neuron's.
    """
    found: dict[str, bool] = {}
    coupled: list[str] = []

    def look(name: str) -> None:
        if name not in found:
            found[name] = noisy()
            if found[name]:
                coupled.append(name)

    norms = training_batch_norms(net).items()
    handles = [m.register_forward_pre_hook(lambda *_, n=name: look(n)) for name, m in norms]
    try:
        yield coupled
    finally:
        for handle in handles:
            handle.remove()


def unreached_parameters(net: nn.Module) -> list[str]:
    """Parameters that ask for a gradient and have none."""
    return [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]


def unreachable_parameters(neurons: Mapping[str, NoisyNeuron]) -> dict[str, str]:
    """Parameters of neurons that no noise can teach anything, by qualified name, and why."""
    return {
        f"{name}.{parameter}" if name else parameter: reason
        for name, neuron in neurons.items()
        for parameter, reason in neuron.unreachable().items()
    }


def _not_all(true: Mapping[str, Tensor]) -> list[str]:
    """The names of those tensors that are not true everywhere; a GPU is waited for once."""
    if not true:
        return []
    every = [x.all() for x in true.values()]
    found = torch.stack([x.to(every[0].device) for x in every]).tolist()
    return [name for name, yes in zip(true, found, strict=True) if not yes]


def _reasons(reasons: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in reasons.items() if reason)
