"""Whether a tensor is one that was seen before: the one mechanism for that question.

Two forms of it. A *mark* is left on a tensor and found again on it, or on a mere reshape of it.
`Seen` is held by whoever has to recognise a tensor that comes back. Both ask the same: is it the
same memory, in the same order, and was nothing written to it since?
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar
from weakref import ref

from torch import Tensor

_MARKS = "_nit_marks"
Kind = TypeVar("Kind")


class _Marks(dict[type, tuple[Any, int, int]]):
    """What was left on a tensor; it does not travel into files or copies."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ()


def mark(tensor: Tensor, value: object, kept: int = 0) -> None:
    """Leaves a value on a tensor.

    Args:
        tensor: The tensor.
        value: Found again by its class; an earlier value of the same class is replaced.
        kept: How many leading dimensions a reshape has to keep, so that it is found there, too.
    """
    held = getattr(tensor, _MARKS, None)
    if held is None:
        held = _Marks()
        setattr(tensor, _MARKS, held)
    held[type(value)] = (value, tensor._version, kept)


def find(tensor: Tensor, kind: type[Kind]) -> Kind | None:
    """The value of this class that was left on `tensor`, or on what it is a mere reshape of.

    None if there is none, or if the tensor was written to since.
    """
    held = getattr(tensor, _MARKS, None)
    entry = None if held is None else held.get(kind)
    if entry is None:
        if not tensor._is_view():
            return None
        base = reshaped_from(tensor)
        held = getattr(base, _MARKS, None)
        entry = None if not held else held.get(kind)
        if base is None or entry is None or tensor.shape[: entry[2]] != base.shape[: entry[2]]:
            return None
    value, version, _ = entry
    return value if version == tensor._version else None


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


class Seen:
    """A tensor as it was when it was seen.

    Args:
        tensor: The tensor.
        weak: Do not keep it alive; it is recognised while somebody else does.
    """

    __slots__ = ("_address", "_held", "_shape", "_version")

    def __init__(self, tensor: Tensor, weak: bool = False) -> None:
        self._held = ref(tensor) if weak else tensor
        self._version = tensor._version
        self._shape = tensor.shape
        self._address = tensor.data_ptr()

    def matches(self, tensor: Tensor) -> bool:
        """Whether `tensor` is this one: the same memory and shape, and not written to since."""
        if self._version != tensor._version:
            return False
        held = self._held() if isinstance(self._held, ref) else self._held
        if held is None or held is tensor:
            return held is tensor
        return self._address == tensor.data_ptr() and self._shape == tensor.shape

    @property
    def alive(self) -> bool:
        """Whether the tensor is still there."""
        return not isinstance(self._held, ref) or self._held() is not None

    def weakened(self, tensor: Tensor) -> Seen:
        """The same, kept alive by nobody but those who hold `tensor`, which has its memory."""
        found = Seen(tensor, weak=True)
        found._version, found._shape = self._version, self._shape
        return found


def unchanged(seen: Sequence[Seen | None]) -> list[Tensor] | None:
    """The tensors, if all of them are still there and nothing was written to any; else None."""
    found = []
    for each in seen:
        if each is None:
            return None
        held = each._held() if isinstance(each._held, ref) else each._held
        if held is None or held._version != each._version:
            return None
        found.append(held)
    return found
