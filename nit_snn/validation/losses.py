"""What a learner refuses of losses, in this process or in another; nothing is written before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import LossError, NonFiniteLossError
from ..training.distributed import Ranks
from .network import being_captured


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


def checked_losses(losses: Any, rows: int, replicas: int, causal: bool = False) -> Tensor:
    values = numbers(losses)
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
