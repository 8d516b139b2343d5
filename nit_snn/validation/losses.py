"""What a learner refuses of losses, in this process or in another; nothing is written before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import LossError, NonFiniteLossError
from ..gradients.nonfinite import check_weights, suspects
from ..gradients.update import Update
from ..recording.trace import LayerTrace, PassTrace
from ..training.distributed import Ranks
from .capture import being_captured


def numbers(losses: Any) -> Tensor:
    """Losses as a tensor of real numbers.

    Raises:
        LossError: They are none, or sparse, or on the meta device.
    """
    try:
        values = losses if isinstance(losses, Tensor) else torch.as_tensor(losses)
    except (RuntimeError, TypeError, ValueError) as error:
        raise LossError(f"losses must be numbers, got {type(losses).__name__}: {error}") from error
    if values.is_complex():
        raise LossError(f"losses must be real, got {values.dtype}.")
    if values.is_meta or values.layout != torch.strided:
        kind = "on the meta device, without values" if values.is_meta else str(values.layout)
        raise LossError(f"losses must be a dense tensor with values, got one that is {kind}.")
    return values


def checked_losses(losses: Any, trace: PassTrace, update: Update) -> Tensor:
    """The losses as a tensor; if they are bad in one process, all of them raise.

    Args:
        losses: Whatever the user has computed.
        trace: The pass that they belong to.
        update: What they are for.

    Raises:
        LossError: They do not fit the pass, here or in another process.
        NonFiniteLossError: They are NaN or infinite, here or in another process.
        NonFiniteWeightError: They are, and a parameter is, too.
    """
    estimator = update.estimator
    device = next(iter(trace.layers)).sigma.device
    error: LossError | None = None
    values = torch.zeros((), device=device)
    try:
        values = shaped_losses(losses, trace.rows or 0, trace.replicas, estimator.per_step)
        values = values.to(device)
        if estimator.per_step:
            check_steps(trace.active, len(values))
        if update.on_nonfinite != "write":
            values = finite_losses(values, lambda: _suspects(trace))
    except LossError as found:
        error = found
    try:
        all_usable(error, values, estimator.ranks)
    except NonFiniteLossError:
        check_weights(update.net)  # no batch will ever be better then
        raise
    return values


def _suspects(trace: PassTrace) -> str:
    """What may have made the losses bad, as a sentence."""
    return suspects({layer.name: n for n, layer in trace.layers.items() if layer.calls})


def shaped_losses(losses: Any, rows: int, replicas: int, per_step: bool = False) -> Tensor:
    """Losses of the right shape, in float32 at least.

    Raises:
        LossError: The shape is another.
    """
    values = numbers(losses)
    if per_step and (values.dim() != 2 or values.shape[1] != rows):
        raise LossError(
            f"per_step_losses=True takes losses of shape (T, {rows}) = (steps, replicas * batch), "
            f"got {tuple(values.shape)}."
        )
    if not per_step and values.shape != (rows,):
        raise LossError(
            f"losses must have one number per row, shape ({rows},) = (replicas * batch,) with "
            f"{replicas} replicas, got {tuple(values.shape)}. {_remedy(values, rows)}"
        )
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()  # a mean over many rows is too much for half precision
    return values


def _remedy(values: Tensor, rows: int) -> str:
    if values.dim() > 1 and values.shape[0] == rows:
        return "Take one number per row: losses.flatten(1).mean(1)."
    return "Did you forget reduction='none'?"


def check_steps(layers: Iterable[LayerTrace], steps: int) -> None:
    """Losses per time step need a step of each layer for each.

    Raises:
        LossError: A layer has made more or fewer.
    """
    for layer in layers:
        if layer.calls != steps:
            raise LossError(
                f"The losses are of {steps} time steps, but {layer.name} made "
                f"{layer.calls} steps. per_step_losses needs a loss for each, zero where there "
                "is none."
            )


def finite_losses(values: Tensor, suspects: Callable[[], str]) -> Tensor:
    """The losses, if they are finite.

    Args:
        values: (C * B,), or (T, C * B).
        suspects: Where else to look, as a sentence, if they are not.

    Raises:
        NonFiniteLossError: They are not.
    """
    if being_captured():
        # Nothing can be raised from within a graph: a bad batch teaches nothing.
        finite = torch.isfinite(values.detach())
        return torch.where(finite.all(), values, torch.zeros_like(values))
    # A finite sum has finite summands; only where it is not, they have to be looked at.
    if not math.isfinite(values.detach().sum().item()):
        finite = torch.isfinite(values.detach())
        if finite.all():
            return values
        bad = (~finite).nonzero()[:, -1]
        raise NonFiniteLossError(
            f"{len(bad)} of {values.numel()} losses are NaN or infinite, first in row "
            f"{int(bad[0])}. {suspects()}No gradient was written.",
            values.detach().sum() / values.shape[-1],
        )
    return values


def all_usable(error: LossError | None, values: Tensor, ranks: Ranks) -> None:
    """If the losses are bad in one process, all of them raise.

    Args:
        error: What is wrong with the losses of this process, if anything is.
        values: Its losses, if nothing is, on the device of the network.
        ranks: The processes; each of them has to call this.

    Raises:
        LossError: The losses are not usable, here or elsewhere.
        NonFiniteLossError: They are NaN or infinite, here or elsewhere, and usable otherwise.
    """
    if ranks.size > 1:
        skipped = isinstance(error, NonFiniteLossError)
        # One number tells how many there are of either kind.
        beyond = ranks.size + 1
        flag = 0.0 if error is None else 1.0 if skipped else float(beyond)
        total = ranks.sum(torch.tensor(flag, device=values.device))
        unusable, not_finite = divmod(int(total), beyond)
        if unusable and (error is None or skipped):
            raise LossError(f"{unusable} other processes have no usable losses.")
        if not_finite and error is None:
            raise NonFiniteLossError(
                f"{not_finite} other processes have losses that are NaN or infinite.",
                values.detach().sum() / max(1, values.shape[-1] * ranks.size),
            )
    if isinstance(error, NonFiniteLossError):
        error.mean = error.mean / ranks.size
    if error is not None:
        raise error
