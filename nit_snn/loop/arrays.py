"""Arrays of NumPy and torch, and lists of events, as tensors; and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LoopError

_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def tensor(values: Any, what: str) -> Tensor:
    """Numbers as a tensor on the CPU, without a graph.

    Args:
        values: An array, a tensor, or nested lists.
        what: What it is, for the message.

    Raises:
        LoopError: They are no real numbers, or NaN or infinite.
    """
    try:
        found = values if isinstance(values, Tensor) else torch.from_numpy(_array(values))
    except (RuntimeError, TypeError, ValueError) as error:
        raise LoopError(
            f"{what} must be an array of numbers, got {type(values).__name__}: {error}"
        ) from error
    if found.is_complex():
        raise LoopError(f"{what} must be real, got {found.dtype}.")
    found = found.detach().cpu()
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise LoopError(f"{what} of shape {tuple(found.shape)} holds NaN or infinity.")
    return found


def _array(values: Any) -> np.ndarray:
    found = np.asarray(values)
    if found.dtype == np.uint16 or found.dtype == np.uint32 or found.dtype == np.uint64:
        found = found.astype(np.int64)
    writable = found.flags.writeable and all(stride >= 0 for stride in found.strides)
    return found if writable else found.copy()


def activity(values: Any, shape: tuple[int, int, int], dtype: torch.dtype, what: str) -> Tensor:
    """Spikes or other presynaptic activity, (T, N, neurons), from an array or a list of events.

    Args:
        values: (T, N, neurons), or whole numbers (events, 3): step, row, index. Events that are
            named twice count twice.
        shape: What it should be.
        dtype: What it becomes.
        what: What it is, for the message.

    Raises:
        LoopError: It does not fit.
    """
    found = tensor(values, what)
    if found.dim() == 2:
        return _from_events(found, shape, dtype, what)
    if tuple(found.shape) != shape:
        raise LoopError(
            f"{what} must have shape (steps, rows, neurons) = {shape}, or be events (step, row, "
            f"index) of shape (events, 3), got {tuple(found.shape)}."
        )
    return found.to(dtype)


def _from_events(
    events: Tensor, shape: tuple[int, int, int], dtype: torch.dtype, what: str
) -> Tensor:
    if events.shape[1] != 3 or (len(events) and events.dtype not in _WHOLE):
        raise LoopError(
            f"Events of {what} must be whole numbers of shape (events, 3) = step, row, index, got "
            f"{tuple(events.shape)} of {events.dtype}."
        )
    events = events.long()
    outside = ((events < 0) | (events >= torch.tensor(shape))).any(1)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise LoopError(
            f"Event {first} of {what}, {events[first].tolist()}, lies outside of (steps, rows, "
            f"neurons) = {shape}. Steps, rows and indices count from zero."
        )
    found = torch.zeros(shape, dtype=dtype)
    ones = torch.ones(len(events), dtype=dtype)
    return found.index_put_(tuple(events.unbind(1)), ones, accumulate=True)


def like(values: Tensor, model: Any) -> Any:
    """A tensor as what came in: a tensor on the same device, or else a NumPy array."""
    if isinstance(model, Tensor):
        return values.to(model.device)
    return values.numpy()


def last_spikes(spikes: Any) -> Any:
    """Those of the step before, zero at the first: what recurrent synapses carry.

    Args:
        spikes: (T, N, neurons), a NumPy array or a tensor.

    Example:
        >>> last_spikes(np.array([[[1.0]], [[0.0]], [[1.0]]])).ravel()
        array([0., 1., 0.])
    """
    if isinstance(spikes, Tensor):
        return torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
    return np.concatenate([np.zeros_like(spikes[:1]), spikes[:-1]])
