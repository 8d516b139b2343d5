"""What a learner refuses of its options, each by itself and together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import AttachError
from ..estimators import baselines, control
from ..recording.memory import MODES
from ..training.saved_state import is_seed
from .to_python_scalar import is_number, is_whole, plain

#: Options that cannot be changed later; `rule` and those of `CHANGEABLE` can.
FIXED = {
    "antithetic",
    "baseline",
    "causal",
    "conditional",
    "control",
    "layerwise",
    "learn_sigma",
    "memory",
    "noise",
    "replica_bounds",
    "sobol",
    "target_snr",
}

#: What becomes of a bad batch. "write" is for `torch.amp.GradScaler`, which looks by itself.
POLICIES = ("raise", "skip", "write")


def check_all(options: Mapping[str, Any], layers: int) -> None:
    """Every option of a learner.

    Args:
        options: By name, as `NITLearner` takes them.
        layers: How many noisy neurons there are.

    Raises:
        AttachError: The first that cannot be, or does not go with another.
    """
    given = dict(options)
    replicas, bounds = given["replicas"], given["replica_bounds"]
    baseline, antithetic, sobol = (given[name] for name in ("baseline", "antithetic", "sobol"))
    control_name, conditional = given["control"], given["conditional"]
    layerwise, causal = given["layerwise"], given["causal"]
    check_types(antithetic=antithetic, sobol=sobol, layerwise=layerwise, causal=causal)
    check_seed(given["seed"])
    auto = isinstance(replicas, str) and replicas == "auto"
    if auto:
        check_replica_bounds(bounds, given["target_snr"])
    fewest = bounds[0] if auto else replicas
    check_options(fewest, baseline, antithetic, given["route"])
    check_sampling(fewest, baseline, antithetic, sobol, layerwise, causal, control_name, layers)
    if layerwise and replicas == "auto":
        raise AttachError("layerwise=True shares out a fixed number of replicas, not 'auto'.")
    check_noise(given["noise"], sobol)
    check_nonfinite(given["nonfinite"])
    check_distributed(given["distributed"], replicas, control_name, sobol)
    check_conditional(conditional)
    check_memory(given["memory"], given["memory_limit"], conditional, control_name, replicas)
    check_control(control_name, baseline, conditional)
    check_learned_levels(given["learn_sigma"], given["sigma_bounds"])
    check_weight_bounds(given["weight_bounds"])


def check_options(replicas: int, baseline: str, antithetic: bool, route: str) -> None:
    if not is_whole(replicas) or replicas < 1:
        raise AttachError(f"replicas must be a positive integer, got {replicas!r}.")
    for option, value, allowed in (
        ("baseline", baseline, baselines.NAMES),
        ("route", route, ("auto", "general")),
    ):
        if not _is_one_of(value, allowed):
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
    if seed is not None and not is_seed(plain(seed)):
        raise AttachError(f"seed must be an integer of 64 bits, or None, got {seed!r}.")


def check_nonfinite(policy: str) -> None:
    if not _is_one_of(policy, POLICIES):
        raise AttachError(f"nonfinite must be one of {POLICIES}, got {policy!r}.")


def check_conditional(conditional: bool | str) -> None:
    if not _is_one_of(conditional, (False, True, "pathwise")):
        raise AttachError(f"conditional must be False, True or 'pathwise', got {conditional!r}.")


def check_memory(
    mode: str, limit: int | None, conditional: bool | str, control_name: str, replicas: int | str
) -> None:
    if not _is_one_of(mode, MODES):
        raise AttachError(f"memory must be one of {MODES}, got {mode!r}.")
    if limit is not None and not (is_number(limit) and limit > 0):
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
    if not _is_one_of(name, control.NAMES):
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
    if not _is_one_of(noise, ("fresh", "table")):
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
    whole = _is_pair(bounds) and all(is_whole(bound) for bound in bounds)
    if not whole or not 2 <= bounds[0] <= bounds[1] or any(b & (b - 1) for b in bounds):
        raise AttachError(
            f"replica_bounds must be powers of two with 2 <= fewest <= most, got {bounds}."
        )
    if not (is_number(target) and 0 < target < float("inf")):
        raise AttachError(f"target_snr must be positive and finite, got {target!r}.")


def check_weight_bounds(bounds: tuple[float, float] | None) -> None:
    if bounds is not None and not (_is_pair(bounds) and bounds[0] < bounds[1]):
        raise AttachError(f"weight_bounds must be smallest < largest, got {bounds}.")


def check_learned_levels(learn_sigma: bool | str, bounds: tuple[float, float]) -> None:
    if not _is_one_of(learn_sigma, (True, False, "shared")):
        raise AttachError(f"learn_sigma must be True, False or 'shared', got {learn_sigma!r}.")
    if not (_is_pair(bounds) and 0 < bounds[0] <= bounds[1] < float("inf")):
        raise AttachError(f"sigma_bounds must be 0 < smallest <= largest, got {bounds}.")


def _is_one_of(value: Any, allowed: Sequence[bool | str]) -> bool:
    """Also of what cannot be compared, such as a tensor."""
    return isinstance(value, (bool, str)) and value in allowed


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(is_number(v) for v in value)


#: Options that can be, and what they have to be then.
CHANGEABLE: dict[str, Callable[[Any], None]] = {
    "nonfinite": check_nonfinite,
    "sigma_bounds": lambda bounds: check_learned_levels(True, bounds),
    "weight_bounds": check_weight_bounds,
}
