"""What a learner refuses of its options, each by itself and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ..errors import AttachError
from ..estimators import baselines
from ..estimators.credit import KINDS
from ..training.saved_state import is_seed
from .to_python_scalar import is_number, is_whole, to_python_scalar

RULES = ("nit", "nit-s")
#: What becomes of a bad batch. "write" is for `torch.amp.GradScaler`, which looks by itself.
POLICIES = ("raise", "skip", "write")
#: Options that may be changed later.
CHANGEABLE = ("rule", "on_nonfinite", "sigma_bounds", "weight_bounds")
#: Options that a saved state holds, for a resumed run has to have the same.
SAVED = (
    "rule",
    "replicas",
    "credit",
    "residual",
    "forward_only",
    "baseline",
    "antithetic",
    "conditional",
    "per_step_losses",
    "learn_sigma",
    "noise_reuse",
)


#: Options that had another name once.
RENAMED = {
    "control": "credit='readout', 'layers' or 'time', each with residual=1",
    "causal": "per_step_losses",
    "noise": "noise_reuse=True for 'table'",
    "distributed": "shard",
    "memory": "recompute",
    "memory_limit": "memory_budget",
    "nonfinite": "on_nonfinite",
    "sigma": "sigma of swap_neurons(net, sigma=...)",
}


def named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a learner by name, from all arguments that it was given.

    Raises:
        TypeError: One of them is unknown.
    """
    given = {k: to_python_scalar(v) for k, v in arguments.items() if k not in ("self", "net")}
    for name in given.pop("unknown"):
        close = get_close_matches(name, list(given), 1)
        today = RENAMED.get(name, *close) if close else RENAMED.get(name)
        hint = f"Today it is {today}." if name in RENAMED else f"Did you mean {today}?"
        known = hint if today else f"There are: {', '.join(given)}."
        raise TypeError(f"NITLearner has no option {name!r}. {known}")
    return given


def check_all(given: Mapping[str, Any]) -> None:
    """Every option of a learner.

    Args:
        given: By name, as `NITLearner` takes them.

    Raises:
        AttachError: The first that cannot be, or does not go with another.
    """
    for option in ("antithetic", "forward_only", "per_step_losses", "noise_reuse"):
        if not isinstance(given[option], bool):
            raise AttachError(f"{option} must be True or False, got {given[option]!r}.")
    for option, allowed in (
        ("rule", RULES),
        ("baseline", baselines.NAMES),
        ("credit", ("auto", *KINDS)),
        ("conditional", ("auto", False, True)),
        ("learn_sigma", (False, True, "shared")),
        ("recompute", ("auto", False, True)),
        ("route", ("auto", "general")),
        ("on_nonfinite", POLICIES),
    ):
        _check_one_of(option, given[option], allowed)
    if given["seed"] is not None and not is_seed(to_python_scalar(given["seed"])):
        raise AttachError(f"seed must be an integer of 64 bits, or None, got {given['seed']!r}.")
    budget = given["memory_budget"]
    if budget is not None and not (is_number(budget) and budget > 0):
        raise AttachError(f"memory_budget must be a positive number of bytes, got {budget!r}.")
    check_residual(given["residual"])
    check_bounds("sigma_bounds", given["sigma_bounds"])
    if given["weight_bounds"] is not None:
        check_bounds("weight_bounds", given["weight_bounds"])
    check_replicas(given)
    check_together(given)


def check_residual(residual: Any) -> None:
    """The weight of the residual, between 0 and 1, or "auto"."""
    if isinstance(residual, str) and residual == "auto":
        return
    if not (is_number(residual) and 0 <= residual <= 1):
        raise AttachError(f"residual must be between 0 and 1, or 'auto', got {residual!r}.")


def check_replicas(given: Mapping[str, Any]) -> None:
    """As many as the baseline needs."""
    replicas, baseline, antithetic = (given[n] for n in ("replicas", "baseline", "antithetic"))
    if isinstance(replicas, str) and replicas == "auto":
        return
    if not is_whole(replicas) or replicas < 1:
        raise AttachError(f"replicas must be a positive integer, or 'auto', got {replicas!r}.")
    if antithetic and replicas % 2:
        raise AttachError(f"antithetic pairs need an even number of replicas, got {replicas}.")
    ratio = given["credit"] == "none" or _is_positive(given["residual"])
    fewest = baselines.minimal_replicas(baseline, antithetic) if ratio else 1
    if replicas < fewest:
        raise AttachError(
            f"baseline {baseline!r} with antithetic={antithetic} needs at least {fewest} replicas, "
            f"got {replicas}."
        )


def check_together(given: Mapping[str, Any]) -> None:
    """Options that do not go with each other."""
    credit, residual = given["credit"], given["residual"]
    follows = credit not in ("auto", "none")
    if credit == "none" and not isinstance(residual, str) and residual != 1:
        raise AttachError(
            f"credit='none' leaves nothing but the residual, so residual={residual!r} would scale "
            "the gradient. Leave it out."
        )
    if follows and credit != "feedback" and given["forward_only"]:
        raise AttachError(f"credit={credit!r} needs a backward pass; forward_only=True has none.")
    exact = follows and _is_positive(residual)
    if exact and given["baseline"] != "leave-one-out":
        raise AttachError(
            f"credit={credit!r} with a residual belongs to the leave-one-out baseline, not to "
            f"{given['baseline']!r}."
        )
    if exact and given["per_step_losses"]:
        raise AttachError(
            f"per_step_losses=True goes with credit={credit!r} only if residual=0, or with "
            "credit='none'."
        )
    if exact and given["shard"] == "replicas":
        raise AttachError(
            "A residual beside a credit needs all replicas of a sample in one process: share out "
            "samples instead (shard='samples')."
        )
    if follows and given["rule"] == "nit-s" and not isinstance(residual, str) and residual != 1:
        raise AttachError("rule='nit-s' is a direction of the noise: it needs residual=1.")
    if given["recompute"] is True and given["conditional"] is True:
        raise AttachError("conditional=True keeps the membranes; recompute=True keeps nothing.")
    if given["shard"] is not None and credit == "auto":
        raise AttachError(
            "credit='auto' could choose differently in each process: say which, such as 'layers' "
            "or 'none'."
        )


def check_bounds(option: str, bounds: Any) -> None:
    """(smallest, largest); of noise levels, positive and finite."""
    pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(is_number, bounds))
    if option == "weight_bounds":
        if not (pair and bounds[0] < bounds[1]):
            raise AttachError(f"weight_bounds must be smallest < largest, got {bounds}.")
    elif not (pair and 0 < bounds[0] <= bounds[1] < float("inf")):
        raise AttachError(f"sigma_bounds must be 0 < smallest <= largest, got {bounds}.")


def check_change(name: str, value: Any, boxed: bool) -> None:
    """An option may be set to this after the learner was attached.

    Args:
        name: Of the option.
        value: What it is set to.
        boxed: Whether anything is put back between bounds after an optimizer's step.

    Raises:
        AttributeError: It was checked against the network, and stays as it is.
        AttachError: It cannot be that.
    """
    if name not in CHANGEABLE or (name == "weight_bounds" and not boxed):
        raise AttributeError(
            f"{name} was checked against the network when the learner was attached. Close it, "
            f"and attach another with {name}={value!r}."
        )
    if name in ("rule", "on_nonfinite"):
        _check_one_of(name, value, RULES if name == "rule" else POLICIES)
    elif value is not None or name == "sigma_bounds":
        check_bounds(name, value)


def _check_one_of(option: str, value: Any, allowed: Sequence[bool | str]) -> None:
    """Also of what cannot be compared, such as a tensor."""
    if not isinstance(value, (bool, str)) or value not in allowed:
        today = " Today it is True." if (option, str(value)) == ("conditional", "pathwise") else ""
        raise AttachError(f"{option} must be one of {tuple(allowed)}, got {value!r}.{today}")


def _is_positive(residual: Any) -> bool:
    return is_number(residual) and residual > 0
