"""Tensors that repeat a smaller one over the replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..validation.to_python_scalar import is_whole
from .provenance import find, mark


@dataclass(frozen=True, eq=False)
class Expansion:
    """How a tensor repeats its first B slices C times along `dim`, replica-major.

    Attributes:
        replicas: C.
        dim: The batch dimension.
    """

    replicas: int
    dim: int

    def make(self, x: Tensor) -> Tensor:
        """`x` repeated, (.., C * B, ..), marked so that `of` finds this again."""
        repeated = self.repeat(x)
        mark(repeated, self, kept=self.dim + 1)
        return repeated

    @staticmethod
    def of(x: Tensor) -> Expansion | None:
        """How `x` was expanded, also if it was reshaped behind its batch dimension since.

        None if it was not, or was written to afterwards.
        """
        return find(x, Expansion)

    def once(self, x: Tensor) -> Tensor:
        """The first replica of a tensor that is repeated like this."""
        return x.narrow(self.dim, 0, x.shape[self.dim] // self.replicas)

    def repeat(self, x: Tensor) -> Tensor:
        """Repeats a tensor, into memory of its own."""
        if self.replicas == 1:
            return x.clone()
        wide = (*x.shape[: self.dim], self.replicas, *x.shape[self.dim :])
        repeated = x.unsqueeze(self.dim).expand(wide).flatten(self.dim, self.dim + 1)
        return repeated.clone() if repeated.data_ptr() == x.data_ptr() else repeated

    def fold(self, x: Tensor) -> Tensor:
        """Sums over the replicas: the transpose of `repeat`."""
        return x.unflatten(self.dim, (self.replicas, -1)).sum(self.dim)


def check_batch(tensors: Sequence[Tensor], dims: Sequence[int]) -> None:
    """Tensors that can be repeated together, each along a dimension of its own.

    Raises:
        TypeError: Nothing to expand, or not a tensor.
        ValueError: A tensor has no such dimension, or batch sizes differ.
    """
    if not tensors or not all(isinstance(x, Tensor) for x in tensors):
        kinds = ", ".join(type(x).__name__ for x in tensors) or "nothing"
        raise TypeError(f"expand() takes tensors, got {kinds}.")
    if any(not is_whole(n) or not 0 <= n < x.dim() for x, n in zip(tensors, dims, strict=True)):
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise ValueError(f"expand(dim={dims[0]}) needs that dimension in all of: {shapes}.")
    found = [x.shape[n] for x, n in zip(tensors, dims, strict=True)]
    if len(set(found)) > 1:
        sizes = ", ".join(map(str, found))
        raise ValueError(f"The batch sizes along dim={dims[0]} differ: {sizes}.")
