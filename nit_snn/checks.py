"""What a learner refuses, and why: options, networks and losses, each with what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import baselines, control
from .errors import AttachError, LossError, NonFiniteLossError
from .memory import MODES
from .neurons.base import NoisyNeuron
from .swap import spiking_modules

#: What becomes of a bad batch. "write" is for `torch.amp.GradScaler`, which looks by itself.
POLICIES = ("raise", "skip", "write")


def check_options(replicas: int, baseline: str, antithetic: bool, route: str) -> None:
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise AttachError(f"replicas must be a positive integer, got {replicas!r}.")
    for option, value, allowed in (
        ("baseline", baseline, baselines.NAMES),
        ("route", route, ("auto", "general")),
    ):
        if value not in allowed:
            raise AttachError(f"{option} must be one of {allowed}, got {value!r}.")
    if antithetic and replicas % 2:
        raise AttachError(f"antithetic pairs need an even number of replicas, got {replicas}.")
    fewest = baselines.minimal_replicas(baseline, antithetic)
    if replicas < fewest:
        raise AttachError(
            f"baseline {baseline!r} with antithetic={antithetic} needs at least {fewest} replicas, "
            f"got {replicas}."
        )


def check_types(**flags: Any) -> None:
    for option, value in flags.items():
        if not isinstance(value, bool):
            raise AttachError(f"{option} must be True or False, got {value!r}.")


def check_seed(seed: Any) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise AttachError(f"seed must be an integer or None, got {seed!r}.")


def check_nonfinite(policy: str) -> None:
    if policy not in POLICIES:
        raise AttachError(f"nonfinite must be one of {POLICIES}, got {policy!r}.")


def check_conditional(conditional: bool | str) -> None:
    if conditional not in (False, True, "pathwise"):
        raise AttachError(f"conditional must be False, True or 'pathwise', got {conditional!r}.")


def check_memory(
    mode: str, limit: int | None, conditional: bool | str, control_name: str, replicas: int | str
) -> None:
    if mode not in MODES:
        raise AttachError(f"memory must be one of {MODES}, got {mode!r}.")
    if limit is not None and not (_is_number(limit) and limit > 0):
        raise AttachError(f"memory_limit must be a positive number of bytes, got {limit!r}.")
    if mode == "bits" and conditional:
        raise AttachError(
            f"conditional={conditional!r} needs memory='scores': its scores depend on the spikes, "
            "which a second draw of the noise does not give."
        )
    if mode == "replay" and (
        conditional == "pathwise" or control_name != "none" or replicas == "auto"
    ):
        raise AttachError(
            "memory='replay' weighs each step's noise while the pass is replayed; "
            "conditional='pathwise', control=... and replicas='auto' need all steps together."
        )


def check_control(name: str, baseline: str, conditional: bool | str) -> None:
    if name not in control.NAMES:
        raise AttachError(f"control must be one of {control.NAMES}, got {name!r}.")
    if name != "none" and baseline != "leave-one-out":
        raise AttachError(
            f"control={name!r} belongs to the leave-one-out baseline, not to {baseline!r}."
        )
    if name == "time" and conditional != "pathwise":
        raise AttachError(
            "control='time' needs conditional='pathwise': with other scores, what it says of the "
            f"membranes' noise would be biased. Got conditional={conditional!r}."
        )


def check_sampling(
    replicas: int,
    baseline: str,
    antithetic: bool,
    sobol: bool,
    layerwise: bool,
    causal: bool,
    control_name: str,
    layers: int,
) -> None:
    """Whose noise is shared with whom, and what goes with it."""
    if sobol and (antithetic or layerwise):
        raise AttachError("sobol=True goes with neither antithetic=True nor layerwise=True.")
    if sobol:
        fewest = 4 if baseline == "leave-one-out" else 2
        if replicas < fewest or replicas & (replicas - 1):
            raise AttachError(
                f"sobol=True with baseline {baseline!r} needs a power of two of at least {fewest} "
                f"replicas, got {replicas}."
            )
    if layerwise and control_name != "none":
        raise AttachError(
            f"layerwise=True leaves most neurons without noise, so that control={control_name!r} "
            "has no firing probabilities to work with. Choose one of the two."
        )
    if layerwise and layers:
        fewest = baselines.minimal_replicas(baseline, antithetic)
        if replicas % ((2 if antithetic else 1) * layers) or replicas // layers < fewest:
            raise AttachError(
                f"layerwise=True shares {replicas} replicas out over {layers} noisy layers; it "
                f"needs a multiple of {(2 if antithetic else 1) * layers}, and at least "
                f"{fewest} for each."
            )
    if causal and control_name != "none":
        raise AttachError(f"causal=True goes with control='none' only, not {control_name!r}.")


def check_noise(noise: str, sobol: bool) -> None:
    if noise not in ("fresh", "table"):
        raise AttachError(f"noise must be 'fresh' or 'table', got {noise!r}.")
    if noise == "table" and sobol:
        raise AttachError("sobol=True makes points of its own; it goes with noise='fresh' only.")


def check_distributed(
    distributed: str | None, replicas: int | str, control_name: str, sobol: bool
) -> None:
    if distributed is not None and replicas == "auto":
        raise AttachError("replicas='auto' would choose differently in each process: set a number.")
    if distributed == "replicas" and (control_name != "none" or sobol):
        raise AttachError(
            "control=... and sobol=True need all replicas of a sample in one process: share out "
            "samples instead (distributed='samples')."
        )


def check_replica_bounds(bounds: tuple[int, int], target: float) -> None:
    whole = _is_pair(bounds) and all(isinstance(bound, int) for bound in bounds)
    if not whole or not 2 <= bounds[0] <= bounds[1] or any(b & (b - 1) for b in bounds):
        raise AttachError(
            f"replica_bounds must be powers of two with 2 <= fewest <= most, got {bounds}."
        )
    if not (_is_number(target) and 0 < target < float("inf")):
        raise AttachError(f"target_snr must be positive and finite, got {target!r}.")


def check_weight_bounds(bounds: tuple[float, float] | None) -> None:
    if bounds is not None and not (_is_pair(bounds) and bounds[0] < bounds[1]):
        raise AttachError(f"weight_bounds must be smallest < largest, got {bounds}.")


def check_learned_levels(learn_sigma: bool | str, bounds: tuple[float, float]) -> None:
    if learn_sigma not in (True, False, "shared"):
        raise AttachError(f"learn_sigma must be True, False or 'shared', got {learn_sigma!r}.")
    if not (_is_pair(bounds) and 0 < bounds[0] <= bounds[1] < float("inf")):
        raise AttachError(f"sigma_bounds must be 0 < smallest <= largest, got {bounds}.")


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


def checked_losses(losses: Any, rows: int, replicas: int, causal: bool = False) -> Tensor:
    try:
        values = losses if isinstance(losses, Tensor) else torch.as_tensor(losses)
    except (RuntimeError, TypeError, ValueError) as error:
        raise LossError(f"losses must be numbers, got {type(losses).__name__}: {error}") from error
    if values.is_complex():
        raise LossError(f"losses must be real, got {values.dtype}.")
    if causal and (values.dim() != 2 or values.shape[1] != rows):
        raise LossError(
            f"causal=True takes losses of shape (T, {rows}) = (steps, replicas * batch), "
            f"got {tuple(values.shape)}."
        )
    if not causal and values.shape != (rows,):
        raise LossError(
            f"losses must have one number per row, shape ({rows},) = (replicas * batch,) with "
            f"{replicas} replicas, got {tuple(values.shape)}. Did you forget reduction='none'?"
        )
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()  # a mean over many rows is too much for half precision
    return values


def finite_losses(values: Tensor, suspects: Callable[[], str]) -> Tensor:
    """The losses, if they are finite.

    Args:
        values: (C * B,), or (T, C * B).
        suspects: Where else to look, as a sentence, if they are not.

    Raises:
        NonFiniteLossError: They are not.
    """
    finite = torch.isfinite(values.detach())
    if being_captured():
        # Nothing can be raised from within a graph: a bad batch teaches nothing.
        return torch.where(finite.all(), values, torch.zeros_like(values))
    if not finite.all():
        bad = (~finite).nonzero()[:, -1]
        raise NonFiniteLossError(
            f"{len(bad)} of {values.numel()} losses are NaN or infinite, first in row "
            f"{int(bad[0])}. {suspects()}No gradient was written.",
            values.detach().sum() / values.shape[-1],
        )
    return values


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


def coupled_batch_norms(net: nn.Module) -> list[str]:
    """BatchNorms that use batch statistics of something noisy, by order of registration."""
    behind, coupled = False, []
    for name, module in net.named_modules():
        behind = behind or isinstance(module, NoisyNeuron)
        if behind and isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            coupled.append(name)
    return coupled


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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_number(v) for v in value)
    )


def _reasons(reasons: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in reasons.items() if reason)
