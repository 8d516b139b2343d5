"""Whatever holds tensors of a batch, and which dimension of each is the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def tensors_of(value: Any) -> list[Any]:
    """All that lists, tuples and dicts hold, in order; what is none of these counts as it is."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [found for each in value for found in tensors_of(each)]
    return [value]


def rebuilt(value: Any, make: Callable[[], Tensor]) -> Any:
    """The same lists, tuples and dicts with other tensors, asked for one after the other."""
    if isinstance(value, Mapping):
        found = {name: rebuilt(each, make) for name, each in value.items()}
        return found if type(value) is dict else type(value)(found)  # type: ignore[call-arg]
    if isinstance(value, (tuple, list)):
        each = [rebuilt(x, make) for x in value]
        return type(value)(*each) if hasattr(value, "_fields") else type(value)(each)
    return make()


def batch_dims(tensors: Sequence[Any], dim: int) -> list[int]:
    """The batch dimension of each tensor: `dim`, but for what comes beside labels.

    Labels, (B,), have their batch first, whatever `dim` says. With `dim` 0, an input (T, B, *)
    beside labels (B,) is time-first if T is not B.
    """
    labels = {len(x) for x in tensors if isinstance(x, Tensor) and x.dim() == 1}
    found = [dim] * len(tensors)
    if len(labels) != 1 or not all(isinstance(x, Tensor) for x in tensors):
        return found
    (batch,) = labels
    for n, x in enumerate(tensors):
        if dim == 0 and x.dim() > 2 and x.shape[0] != batch == x.shape[1]:
            found[n] = 1
        elif dim == 1 and x.dim() == 1 and len(tensors) > 1:
            found[n] = 0
    return found
