"""What noisy neurons ask of the tensors that they are given."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RecordingError, SwapError


def rows_of(rows: Tensor, like: Tensor) -> Tensor:
    """(N,), true in some rows, so that it broadcasts to (N, *).

    Raises:
        RecordingError: There are other rows.
    """
    if rows.dim() != 1 or not like.dim() or len(rows) != len(like):
        raise RecordingError(
            f"reset_rows takes one truth value for each row, got {tuple(rows.shape)} for states of "
            f"shape {tuple(like.shape)}. Put it through learner.expand(), as the input."
        )
    return rows.to(like.device, torch.bool).view(-1, *(1,) * (like.dim() - 1))


def check_grad_mode() -> None:
    """Graphs are made, as a recorded pass needs them.

    Raises:
        RecordingError: They are not.
    """
    if not torch.is_grad_enabled():
        raise RecordingError(
            "learner.record() needs grad mode for whatever lies between two noisy layers. "
            "Run the network inside it without torch.no_grad() or inference_mode()."
        )


def broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False


def checked_sigma(sigma: float | Tensor) -> Tensor:
    """A copy of `sigma` as a floating-point tensor.

    Raises:
        SwapError: It is no real number, negative, or not finite.
    """
    try:
        value = torch.as_tensor(sigma).detach().clone()
    except (RuntimeError, TypeError, ValueError):
        value = None
    if value is None or value.is_complex():
        raise SwapError(f"sigma must be a real number or a tensor of them, got {sigma!r}.")
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if not torch.isfinite(value).all() or (value < 0).any():
        raise SwapError(f"sigma must be finite and not negative, got {sigma!r}.")
    return value
