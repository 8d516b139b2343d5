"""Tensors that repeat a smaller one: over replicas, or over time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..validation.to_python_scalar import is_whole

_MARK = "_nit_expansion"


class Mark:
    """What is left on a tensor; it does not travel into files or copies."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ()


@dataclass(eq=False)
class Expansion(Mark):
    """How a tensor repeats its first B slices C times along `dim`, replica-major.

    Attributes:
        replicas: C.
        dim: The batch dimension.
        version: autograd's version counter of the repeated tensor when it was made.
    """

    replicas: int
    dim: int
    version: int = 0

    def make(self, x: Tensor) -> Tensor:
        """`x` repeated, (.., C * B, ..), marked so that `of` finds this again."""
        repeated = self.repeat(x)
        self.version = repeated._version
        setattr(repeated, _MARK, self)
        return repeated

    @staticmethod
    def of(x: Tensor) -> Expansion | None:
        """How `x` was expanded, also if it was reshaped behind its batch dimension since.

        None if it was not, or was written to afterwards.
        """
        made = getattr(x, _MARK, None)
        if not isinstance(made, Expansion):
            base = reshaped_from(x)
            made = getattr(base, _MARK, None)
            if base is None or not isinstance(made, Expansion):
                return None
            kept = made.dim + 1
            if x.shape[:kept] != base.shape[:kept]:
                return None
        return made if made.version == x._version else None

    def once(self, x: Tensor) -> Tensor:
        """The first replica of a tensor that is repeated like this."""
        return x.narrow(self.dim, 0, x.shape[self.dim] // self.replicas)

    def repeat(self, x: Tensor) -> Tensor:
        """Repeats a tensor, into memory of its own."""
        wide = (*x.shape[: self.dim], self.replicas, *x.shape[self.dim :])
        repeated = x.unsqueeze(self.dim).expand(wide).flatten(self.dim, self.dim + 1)
        return repeated.clone() if repeated.data_ptr() == x.data_ptr() else repeated

    def fold(self, x: Tensor) -> Tensor:
        """Sums over the replicas: the transpose of `repeat`."""
        return x.unflatten(self.dim, (self.replicas, -1)).sum(self.dim)


def reshaped_from(x: Tensor) -> Tensor | None:
    """The tensor that `x` is a mere reshape of: a view of the same memory in the same order."""
    base = x._base if x._is_view() else None
    if (
        base is None
        or x.numel() != base.numel()
        or x.data_ptr() != base.data_ptr()
        or not (x.is_contiguous() and base.is_contiguous())
    ):
        return None
    return base


def repeats_over_time(x: Tensor) -> bool:
    """Whether `x` is one and the same slice along its first dimension, as `expand` makes it."""
    return x.dim() > 1 and x.shape[0] > 1 and x.stride(0) == 0


def check_batch(tensors: Sequence[Tensor], dim: int) -> None:
    """Tensors that can be repeated together.

    Raises:
        TypeError: Nothing to expand, or not a tensor.
        ValueError: A tensor has no dimension `dim`, or batch sizes differ.
    """
    if not tensors or not all(isinstance(x, Tensor) for x in tensors):
        kinds = ", ".join(type(x).__name__ for x in tensors) or "nothing"
        raise TypeError(f"expand() takes tensors, got {kinds}.")
    if not is_whole(dim) or any(not 0 <= dim < x.dim() for x in tensors):
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise ValueError(f"expand(dim={dim}) needs that dimension in all of: {shapes}.")
    if len({x.shape[dim] for x in tensors}) > 1:
        sizes = ", ".join(str(x.shape[dim]) for x in tensors)
        raise ValueError(f"The batch sizes along dim={dim} differ: {sizes}.")
