"""What a learner refuses of a network, and why; each with what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import AttachError
from ..neurons.base import NoisyNeuron
from ..swap import spiking_modules


def check_neurons(net: nn.Module, neurons: Mapping[str, NoisyNeuron]) -> None:
    """Nothing fires in the network but the noisy neurons that the learner knows."""
    if not neurons:
        raise AttachError("The network has no noisy neuron. Call nit_snn.swap_neurons(net) first.")
    known = set(neurons.values())
    strange = [
        f"{name} ({type(module).__name__})"
        for name, module in spiking_modules(net).items()
        if module not in known
    ]
    if strange:
        raise AttachError(
            "These spiking neurons are not noisy, or came after the learner, so their "
            f"surrogate gradients would enter the estimate: {', '.join(strange)}. "
            "Swap them with nit_snn.swap_neurons(net), and attach the learner then."
        )


def check_still_there(net: nn.Module, neurons: Mapping[str, NoisyNeuron]) -> None:
    """No noisy neuron has left the network since the learner was attached."""
    there = set(net.modules())
    gone = [f"{name} ({type(m).__name__})" for name, m in neurons.items() if m not in there]
    if gone:
        raise AttachError(
            f"These noisy neurons have left the network since the learner was attached: "
            f"{', '.join(gone)}. Call learner.close(), and attach a new one."
        )


def check_kinds(
    neurons: Mapping[str, NoisyNeuron], conditional: bool | str, control_name: str
) -> None:
    """Every neuron is of a kind that the options have an unbiased estimate for."""
    if conditional == "pathwise":
        check_all_pathwise(neurons)
    elif conditional:
        check_all_conditional(neurons)
    if control_name != "none":
        check_firing_probabilities(neurons)


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
    silent = [n for n, m in neurons.items() if not (m.sigma.is_meta or _within(m.sigma, 0))]
    if silent:
        raise AttachError(
            "The noise level sigma must be finite and positive in: "
            f"{', '.join(silent)}. Without noise there is nothing to learn from: swap_neurons(net, "
            "sigma=1.0)."
        )
    if bounds is not None:
        outside = [name for name, m in neurons.items() if not _between(m.sigma, *bounds)]
        if outside:
            raise AttachError(
                f"sigma starts outside of sigma_bounds={bounds} in: {', '.join(outside)}."
            )


def check_all_conditional(neurons: Mapping[str, NoisyNeuron]) -> None:
    """A spike wipes out the membrane of every neuron."""
    refused = _reasons({name: n.why_not_conditional() for name, n in neurons.items()})
    if refused:
        raise AttachError(
            "conditional=True needs neurons that a spike resets to a constant. "
            f"It would be biased in: {refused}."
        )


def check_all_pathwise(neurons: Mapping[str, NoisyNeuron]) -> None:
    """Given its spike, what a neuron carries on is a smooth function of its membrane."""
    refused = _reasons({name: n.why_not_pathwise() for name, n in neurons.items()})
    if refused:
        raise AttachError(
            "conditional='pathwise' needs neurons that fire where the membrane crosses the "
            f"threshold, and carry it on smoothly. It would be biased in: {refused}."
        )


def check_firing_probabilities(neurons: Mapping[str, NoisyNeuron]) -> None:
    """Every neuron fires where its membrane crosses the threshold, and nowhere else."""
    refused = _reasons({name: n.why_no_firing_probability() for name, n in neurons.items()})
    if refused:
        raise AttachError(
            "A control variate needs neurons that fire where the membrane crosses the "
            f"threshold. It would be biased in: {refused}."
        )


def being_captured() -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be waited for."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def training_batch_norms(net: nn.Module) -> dict[str, nn.Module]:
    """BatchNorms that use, and follow, the statistics of each batch, by qualified name."""
    norms = nn.modules.batchnorm._BatchNorm
    return {n: m for n, m in net.named_modules() if isinstance(m, norms) and m.training}


@contextmanager
def resting(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these modules are in eval mode."""
    held = list(modules)
    try:
        for module in held:
            module.eval()
        yield
    finally:
        for module in held:
            module.train()


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


def _between(sigma: Tensor, low: float, high: float) -> bool:
    return bool(((sigma >= low) & (sigma <= high)).all())


def _within(sigma: Tensor, low: float) -> bool:
    return bool(((sigma > low) & (sigma < float("inf"))).all())


def _reasons(reasons: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in reasons.items() if reason)
