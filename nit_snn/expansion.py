"""Tensors that repeat a smaller one: over replicas, or over time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_MARK = "_nit_expansion"


@dataclass(eq=False)
class Expansion:
    """How a tensor repeats `original` C times along `dim`, replica-major.

    Attributes:
        original: (.., B, ..), with B along `dim`.
        replicas: C.
        dim: The batch dimension.
        version: autograd's version counter of the repeated tensor when it was made.
    """

    original: Tensor
    replicas: int
    dim: int
    version: int = 0

    def make(self) -> Tensor:
        """The repeated tensor, (.., C * B, ..), marked so that `of` finds this again."""
        repeated = self.repeat(self.original)
        if repeated.data_ptr() == self.original.data_ptr():  # one replica: never an alias
            repeated = repeated.clone()
        self.version = repeated._version
        setattr(repeated, _MARK, self)
        return repeated

    @staticmethod
    def of(x: Tensor) -> Expansion | None:
        """How `x` was expanded, also if it was reshaped behind its batch dimension since.

        None if it was not, or was written to afterwards.
        """
        made = getattr(x, _MARK, None)
        if made is not None:
            return made if made.version == x._version else None
        base = reshaped_from(x)
        made = getattr(base, _MARK, None)
        if base is None or made is None or made.version != x._version:
            return None
        kept = made.dim + 1
        if x.shape[:kept] != base.shape[:kept]:
            return None
        original = made.original.reshape(*made.original.shape[:kept], *x.shape[kept:])
        return Expansion(original, made.replicas, made.dim, made.version)

    def repeat(self, x: Tensor) -> Tensor:
        """Repeats a tensor as `original` was repeated."""
        wide = (*x.shape[: self.dim], self.replicas, *x.shape[self.dim :])
        return x.unsqueeze(self.dim).expand(wide).flatten(self.dim, self.dim + 1)

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
