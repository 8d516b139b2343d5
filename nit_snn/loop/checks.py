"""What a loop refuses of descriptions and of what was observed, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..dynamics.lif import RESETS
from ..errors import LoopError
from .arrays import activity, tensor
from .layer import Layer, Observed
from .network import ReplayLayer
from .replay import Replay

#: What a loop takes of the learner's options.
OPTIONS = (
    "replicas",
    "credit",
    "residual",
    "rule",
    "baseline",
    "antithetic",
    "conditional",
    "per_step_losses",
    "learn_sigma",
    "seed",
)
CREDITS = ("none", "feedback")
#: From so many samples on, a mean square of the noise outside of these bounds is no accident.
_MANY, _SQUARES = 1000, (0.5, 2.0)


def check_layers(layers: Mapping[str, Layer]) -> None:
    """Every description is one of a layer that can be replayed.

    Raises:
        LoopError: The first that is not.
    """
    if not layers:
        raise LoopError("There is no layer. Give a dict of name to nit_snn.loop.Layer.")
    for name, layer in layers.items():
        taken = hasattr(nn.Module, name) or name in ("training", "replayed")
        if not name.isidentifier() or taken:
            raise LoopError(f"{name!r} cannot be the name of a layer. Take another.")
        if min(*layer.groups, layer.neurons) < 1 or not layer.groups:
            raise LoopError(f"{name} has inputs={layer.inputs!r} and neurons={layer.neurons}.")
        dynamics = layer.lif.dynamics
        if dynamics.reset not in RESETS or (dynamics.reset == "whole" and not dynamics.delayed):
            raise LoopError(
                f"{name} has reset={dynamics.reset!r}, delayed={dynamics.delayed}. It must be one "
                f"of {RESETS}, and 'whole' is delayed always."
            )
        if not 0 <= layer.current_decay < 1:
            raise LoopError(
                f"current_decay of {name} must be at least 0 and below 1, got "
                f"{layer.current_decay!r}."
            )
        for what in ("threshold", "sigma"):
            value = tensor(getattr(layer, what), f"{what} of {name}")
            if value.dim() and tuple(value.shape) != (layer.neurons,):
                raise LoopError(
                    f"{what} of {name} must be a number or have shape ({layer.neurons},), got "
                    f"{tuple(value.shape)}."
                )


def check_options(options: Mapping[str, Any], layers: Mapping[str, Layer]) -> None:
    """The options are among those that make sense without a network to run.

    Raises:
        LoopError: One is not.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise LoopError(f"Loop has no option {unknown[0]!r}. There are: {', '.join(OPTIONS)}.")
    credit = options["credit"]
    if credit not in CREDITS:
        raise LoopError(
            f"credit must be one of {CREDITS} in the loop, got {credit!r}: the others carry a "
            "derivative back through a network that torch does not run."
        )
    loose = [name for name, layer in layers.items() if not layer.exact]
    probable = credit == "feedback" and options.get("residual", "auto") != 0
    probable = probable and options.get("replicas", "auto") not in ("auto", 1)
    if loose and (probable or options.get("conditional") is True):
        raise LoopError(
            f"{', '.join(loose)} deviate from their descriptions (exact=False), so nobody knows "
            "how likely their spikes were. Take credit='none', or credit='feedback' with "
            "residual=0, and conditional=False."
        )


def shape_of_pass(
    observed: Mapping[str, Observed], drawn: tuple[int, int] | None, rows: int
) -> tuple[int, int, torch.dtype]:
    """T, N, and the type that everything is computed in: that of the noise.

    Args:
        observed: What each layer did.
        drawn: The steps and rows of the noise that the loop has given out, if it has.
        rows: The number of losses.

    Raises:
        LoopError: There is no noise, or the losses are of another number of rows.
    """
    given = {n: o.noise for n, o in observed.items() if o.noise is not None}
    if len(given) < len(observed) and drawn is None:
        missing = [name for name in observed if name not in given]
        raise LoopError(
            f"There is no noise of {', '.join(missing)}. Hand over Observed(noise=...), or run the "
            "network with that of loop.noise(steps, samples)."
        )
    dtype, found = torch.float32, drawn
    for name, noise in given.items():
        eps = tensor(noise, f"noise of {name}")
        if eps.dim() != 3 or not eps.is_floating_point():
            raise LoopError(
                f"noise of {name} must be floating-point of shape (steps, rows, neurons), got "
                f"{tuple(eps.shape)} of {eps.dtype}."
            )
        dtype = torch.float64 if eps.dtype == torch.float64 else dtype
        if found is not None and tuple(eps.shape[:2]) != found:
            raise LoopError(
                f"noise of {name} has {tuple(eps.shape[:2])} (steps, rows), that of another layer "
                f"{found}."
            )
        found = (eps.shape[0], eps.shape[1])
    assert found is not None
    if found[1] != rows:
        raise LoopError(
            f"There are {rows} losses for {found[1]} rows of noise. Give one loss for each row, "
            "replica-major: row c * B + b is replica c of sample b."
        )
    return *found, dtype


def replay_of(
    module: ReplayLayer,
    seen: Observed,
    noise: Tensor | None,
    shape: tuple[int, int, torch.dtype],
    needs_membranes: bool,
    antithetic: bool,
) -> Replay:
    """What a layer did, as tensors.

    Args:
        module: The layer.
        seen: What was handed over.
        noise: eps that the loop has given out, if it has.
        shape: T, N, and the type.
        needs_membranes: Whether the estimate asks for membranes.
        antithetic: Whether the second half of the rows has minus the noise of the first.

    Raises:
        LoopError: Something does not fit.
    """
    name, layer, (steps, rows, dtype) = module.label, module.layer, shape
    groups = _each(seen.inputs, layer, f"inputs of {name}")
    inputs = [
        activity(x, (steps, rows, count), dtype, _nth(f"inputs of {name}", k, len(groups)))
        for k, (x, count) in enumerate(zip(groups, layer.groups, strict=True))
    ]
    own = (steps, rows, layer.neurons)
    spikes = None
    if seen.spikes is not None:
        spikes = activity(seen.spikes, own, dtype, f"spikes of {name}")
        if not bool(((spikes == 0) | (spikes == 1)).all()):
            raise LoopError(f"spikes of {name} must be zeros and ones, or events named once.")
    elif needs_membranes or module.wipes_current:
        raise LoopError(f"There are no spikes of {name}. Hand over Observed(spikes=...).")
    if needs_membranes and seen.weights is None:
        raise LoopError(
            f"There are no weights of {name}, from which its membranes follow. Hand over "
            "Observed(weights=..., bias=...), those that the network ran with."
        )
    eps = noise if seen.noise is None else tensor(seen.noise, f"noise of {name}")
    assert eps is not None
    if tuple(eps.shape) != own:
        raise LoopError(f"noise of {name} must have shape {own}, got {tuple(eps.shape)}.")
    _check_noise(eps, name, antithetic and seen.noise is not None)
    return Replay(inputs, eps.to(dtype), spikes, seen.weights is not None)


def parameters_of(
    module: ReplayLayer, seen: Observed
) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Weights and bias of a pass, empty or None if not handed over, and its noise level.

    Raises:
        LoopError: They do not fit.
    """
    name, layer = module.label, module.layer
    weights: list[Tensor] = []
    if seen.weights is not None:
        groups = _each(seen.weights, layer, f"weights of {name}")
        for k, (given, count) in enumerate(zip(groups, layer.groups, strict=True)):
            what = _nth(f"weights of {name}", k, len(groups))
            weights.append(_of_shape(given, (layer.neurons, count), what))
    bias = None
    if seen.bias is not None:
        if not layer.bias:
            raise LoopError(f"{name} has no bias: its Layer(bias=False) says so.")
        bias = _of_shape(seen.bias, (layer.neurons,), f"bias of {name}")
    elif seen.weights is not None and layer.bias:
        raise LoopError(
            f"{name} has a bias. Hand over Observed(bias=...), or say Layer(bias=False)."
        )
    sigma = tensor(layer.sigma if seen.sigma is None else seen.sigma, f"sigma of {name}")
    if tuple(sigma.shape) not in ((), (layer.neurons,)) or not bool((sigma > 0).all()):
        raise LoopError(
            f"sigma of {name} must be positive, a number or of shape ({layer.neurons},), got "
            f"{tuple(sigma.shape)}."
        )
    return weights, bias, sigma


def check_errors(
    errors: Any, losses: Tensor, last: ReplayLayer, steps: int, wanted: bool
) -> Tensor | None:
    """The losses' derivative in the last layer's spikes, if the credit asks for it.

    Raises:
        LoopError: It is not there, or not asked for, or has another shape.
    """
    if errors is None and wanted:
        raise LoopError(
            "credit='feedback' needs errors: the derivative of each row's loss in the last layer's "
            f"spike counts, shape ({losses.shape[-1]}, {last.layer.neurons})."
        )
    if errors is None:
        return None
    if not wanted:
        raise LoopError("errors are for credit='feedback' alone. Leave them out.")
    found = tensor(errors, "errors")
    counts = (losses.shape[-1], last.layer.neurons)
    allowed = ((steps, *counts),) if losses.dim() == 2 else (counts, (steps, *counts))
    if tuple(found.shape) not in allowed:
        raise LoopError(
            f"errors must have shape {' or '.join(map(str, allowed))}, (rows, neurons of "
            f"{last.label}) or with steps first, got {tuple(found.shape)}."
        )
    return found


def _check_noise(eps: Tensor, name: str, antithetic: bool) -> None:
    square = float(eps.double().square().mean()) if eps.numel() else 1.0
    if eps.numel() >= _MANY and not _SQUARES[0] < square < _SQUARES[1]:
        raise LoopError(
            f"noise of {name} must be standard normal, but its mean square is {square:.3g}. Hand "
            "over eps, not sigma * eps."
        )
    if antithetic:
        half = eps.shape[1] // 2
        if not torch.equal(eps[:, :half], -eps[:, half:]):
            raise LoopError(
                f"antithetic=True, but the second half of the rows of {name} does not have minus "
                "the noise of the first."
            )


def _each(values: Any, layer: Layer, what: str) -> list[Any]:
    """One for each group of inputs."""
    if isinstance(layer.inputs, int):
        return [values]
    if not isinstance(values, Sequence) or len(values) != len(layer.groups):
        raise LoopError(f"{what} must be {len(layer.groups)} arrays, one for each group.")
    return list(values)


def _nth(what: str, k: int, count: int) -> str:
    return what if count == 1 else f"{what}, group {k},"


def _of_shape(values: Any, shape: tuple[int, ...], what: str) -> Tensor:
    found = tensor(values, what)
    if tuple(found.shape) != shape:
        raise LoopError(f"{what} must have shape {shape}, got {tuple(found.shape)}.")
    return found
