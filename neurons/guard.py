"""A membrane that may be carried on, but not looked at."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..errors import RecordingError
from .base import Recorder

# What tells nothing of the values.
_HARMLESS = {
    "detach_",
    "dim",
    "numel",
    "size",
    "is_floating_point",
    "zeros_like",
    "empty_like",
    "ones_like",
}
_METADATA = {
    "shape",
    "dtype",
    "device",
    "layout",
    "ndim",
    "requires_grad",
    "is_leaf",
    "grad_fn",
    "_version",
    "is_cuda",
    "is_cpu",
    "is_meta",
    "is_sparse",
}


class GuardedMembrane(Tensor):
    """A neuron's membrane under `conditional`: only the neuron itself may read it.

    While a recording is pending the estimate is conditioned on the spikes, so a loss that depends
    on the membrane in any other way would be biased: whatever tells of its values raises.
    """

    _recorder: Recorder
    _owner: object
    _plain: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = deepcopy(unguarded(self), memo)
        return guarded(copied, self._recorder, self._owner) if self._recorder.pending else copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._recorder.pending:
            raise RecordingError(_message("pickle"))
        return unguarded(self).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not _tells_nothing(func) and _pending((args, kwargs)):
            raise RecordingError(_message(func.__name__))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _message(operation: str) -> str:
    return (
        f"The membrane of a noisy neuron was read ({operation}) while a NITLearner "
        "with conditional=... records. It conditions on the spikes, so nothing but spikes "
        "may be read: take the loss from spikes, or attach it with conditional=False."
    )


def _tells_nothing(func: Callable[..., Any]) -> bool:
    if func.__name__ == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _METADATA
    return func.__name__ in _HARMLESS


def _pending(value: Any) -> bool:
    """Whether a guarded membrane of a pending recording is somewhere among the arguments."""
    if isinstance(value, GuardedMembrane):
        return value._recorder.pending
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, (tuple, list)) and any(_pending(v) for v in value)


def guarded(membrane: Tensor, recorder: Recorder, owner: object) -> Tensor:
    """`membrane`, shielded from being read by all but `owner` as long as `recorder` is pending."""
    # Not a view, so that it can be detached in place.
    shielded: GuardedMembrane = torch.Tensor._make_subclass(GuardedMembrane, membrane)
    shielded._recorder, shielded._owner, shielded._plain = recorder, owner, membrane
    return shielded


def unguarded(membrane: Tensor, reader: object = None) -> Tensor:
    """The membrane itself.

    Raises:
        RecordingError: `reader` is another neuron than the one that it belongs to, and its
            recording is pending.
    """
    if not isinstance(membrane, GuardedMembrane):
        return membrane
    if reader is not None and reader is not membrane._owner and membrane._recorder.pending:
        raise RecordingError(_message("by another neuron"))
    return membrane._plain
