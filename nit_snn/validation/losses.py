"""What a learner refuses of losses, in this process or in another; nothing is written before."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import LossError, NonFiniteLossError
from ..gradients.nonfinite import check_weights, suspects
from ..gradients.update import Update
from ..recording.parts import step_in
from ..recording.trace import LayerTrace, PassTrace
from ..training.distributed import Ranks
from .capture import being_captured
from .passes import where_else
from .rows import RowWatch


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


def mean_of(losses: Any, shared: Any) -> Tensor:
    """The mean loss, where nothing is learned from it."""
    mean = numbers(losses).detach().float().mean()
    return mean if shared is None else mean + numbers(shared).detach().float().mean()


def checked_losses(
    losses: Any, shared: Any, trace: PassTrace, update: Update, watch: RowWatch
) -> tuple[Tensor, Tensor | None]:
    """The losses as tensors; if they are bad in one process, all of them raise.

    Args:
        losses: Whatever the user has computed.
        shared: Likewise, for each replica; None if there is nothing.
        trace: The pass that they belong to, whose layers are told which rows belong together.
        update: What they are for.
        watch: What is known of the rows.

    Raises:
        LossError: They do not fit the pass, here or in another process.
        NonFiniteLossError: They are NaN or infinite, here or in another process.
        NonFiniteWeightError: They are, and a parameter is, too.
    """
    estimator = update.estimator
    device = next(iter(trace.layers)).sigma.device
    error: LossError | None = None
    values, extra = torch.zeros((), device=device), None
    trace.step = step_in(losses) or step_in(shared)
    trace.mixed = trace.step is not None and not update.strict
    try:
        values = shaped_losses(losses, trace, estimator.per_step).to(device)
        if shared is not None:
            extra = shaped_shared(shared, trace.replicas, values).to(values)
        if estimator.per_step:
            check_steps(trace.active, len(values))
        if update.on_nonfinite != "write":
            values = finite_losses(values, lambda: _suspects(trace))
            if extra is not None:
                extra = finite_losses(extra, lambda: _suspects(trace))
        values = watch.settle(trace, values, extra, estimator)
    except LossError as found:
        error = found
    try:
        all_usable(error, values, estimator.ranks)
    except NonFiniteLossError:
        check_weights(update.net)  # no batch will ever be better then
        raise
    return values, extra


def _suspects(trace: PassTrace) -> str:
    """What may have made the losses bad, as a sentence."""
    return suspects({layer.name: n for n, layer in trace.layers.items() if layer.calls})


def shaped_losses(losses: Any, trace: PassTrace, per_step: bool = False) -> Tensor:
    """Losses of the right shape, in float32 at least.

    There is one for each row; for each row that `expand` has made, where samples have several; or
    for each replica.

    Raises:
        LossError: The shape is another.
    """
    values = numbers(losses)
    rows, replicas = trace.rows or 0, trace.replicas
    counts = {layer.name: layer.rows for layer in trace.active}
    known = {rows, replicas, *counts.values(), *trace.expanded}
    wanted = min((n for n in trace.expanded if n and rows % n == 0), default=rows)
    if per_step and (values.dim() != 2 or values.shape[1] not in known):
        raise LossError(
            f"per_step_losses=True takes losses of shape (T, {wanted}) = (steps, replicas * "
            f"batch), got {tuple(values.shape)}."
        )
    if not per_step and (values.dim() != 1 or len(values) not in known):
        raise LossError(
            f"losses must have one number per row, shape ({wanted},) = (replicas * batch,) with "
            f"{replicas} replicas, got {tuple(values.shape)}. {_remedy(values, known - {replicas})}"
        )
    units = values.shape[-1]
    unfit = {name: n for name, n in counts.items() if units and n % units}
    if unfit or units % replicas:
        listed = ", ".join(f"{name} ({n} rows)" for name, n in unfit.items())
        shapes = [o.segments[-1].shape for o in trace.active if o.name in unfit]
        where = next((found for x in shapes if (found := where_else(x, [units]))), "")
        raise LossError(
            f"{units} losses cannot be shared out over the {replicas} replicas and the rows of "
            f"{listed or 'the network'}. "
            + (
                where
                or "Give one loss for each sample of each replica: if it has several rows, their "
                f"mean, losses.unflatten(0, ({wanted}, -1)).mean(1)."
            )
        )
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()  # a mean over many rows is too much for half precision
    return values


def shaped_shared(shared: Any, replicas: int, losses: Tensor) -> Tensor:
    """What replicas add to their mean loss, (C,), or (T, C) per step.

    Raises:
        LossError: The shape is another.
    """
    values, wanted = numbers(shared), (*losses.shape[:-1], replicas)
    if values.dim() == 0 and wanted == (1,):
        return values[None]
    if tuple(values.shape) != wanted:
        raise LossError(
            f"shared must have one number for each replica, shape {wanted}, got "
            f"{tuple(values.shape)}. Take x.unflatten(0, ({replicas}, -1)) of the rows that it is "
            "made of, and each mean over the rest: .flatten(1).mean(1)."
        )
    return values


def _remedy(values: Tensor, known: Collection[int]) -> str:
    if values.dim() == 2 and values.shape[0] in known:
        return "Take one number per row: losses.mean(1)."
    if values.dim() > 2 and values.shape[0] in known:
        return "Take one number per row: losses.flatten(1).mean(1)."
    if values.dim() == 2 and values.shape[1] in known:
        return "Take one number per row: losses.mean(0)."
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
