"""From tensors to a compiled loop: addresses, and parameters of the neurons as it reads them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..cuda_executor import levels
from .build import compiled

#: How many neurons a loop takes at once.
_BLOCK = 1024
_ENOUGH = 2**17


def structure(name: str, fields: str, types: Mapping[str, Any]) -> type[ctypes.Structure]:
    """A loop's arguments: words of `fields` in the source's order, pointers but for `types`."""
    own = [(word, types.get(word, ctypes.c_void_p)) for word in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": own})


@lru_cache(maxsize=64)
def array(kind: type[Any], length: int) -> type[Any]:
    """So many in a row: ctypes makes the type anew each time that nobody holds it."""
    found: type[Any] = kind * length  # type: ignore[operator]
    return found


def call(loop: str, what: type[ctypes.Structure], **values: Any) -> None:
    """Runs a loop; tensors are contiguous, and None is no tensor."""
    given = {
        name: value.data_ptr() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    getattr(compiled(), loop)(ctypes.byref(what(**given)))


def threads(count: int) -> int:
    """How many threads pay for so many numbers."""
    return max(1, min(torch.get_num_threads(), count // _ENOUGH))


def period(inner: torch.Size) -> int:
    """After how many neurons parameters repeat: whole rows, and no block much shorter than most."""
    neurons = max(1, math.prod(inner))
    return neurons * max(1, _BLOCK // neurons)


def repeated(value: float | Tensor, inner: torch.Size) -> Tensor:
    """A parameter of the neurons, (period,).

    Args:
        value: A scalar, or broadcasting to `inner`.
        inner: (*), the neurons of a row.

    Raises:
        RuntimeError: The value goes with the rows, (N, *).
    """
    length = period(inner)
    if not isinstance(value, Tensor) or value.numel() == 1:
        return _constant(float(value), length)
    while value.dim() > len(inner) and value.shape[0] == 1:
        value = value[0]
    own = levels(value, inner, value.device)
    neurons = math.prod(inner)
    return own.repeat_interleave(neurons // len(own)).repeat(length // neurons)


@lru_cache(maxsize=16)
def _constant(value: float, length: int) -> Tensor:
    return torch.full((length,), value, dtype=torch.float32, device="cpu")


def fits(*tensors: Tensor | None) -> bool:
    """Whether a loop can read or write them."""
    return all(
        x is None or (x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous())
        for x in tensors
    )
