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
    "__get__",
    "as_subclass",
    "dim",
    "numel",
    "size",
    "is_floating_point",
    "zeros_like",
    "empty_like",
    "ones_like",
}


class GuardedMembrane(Tensor):
    """A neuron's membrane under `conditional`: only the neuron itself may read it.

    While a recording is pending the estimate is conditioned on the spikes, so a loss that depends
    on the membrane in any other way would be biased: any operation on it raises.
    """

    _recorder: Recorder

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return deepcopy(unguarded(self), memo)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.__name__ not in _HARMLESS and _pending((args, kwargs)):
            raise RecordingError(
                f"The membrane of a noisy neuron was read ({func.__name__}) while a NITLearner "
                "with conditional=... records. It conditions on the spikes, so nothing but spikes "
                "may be read: take the loss from spikes, or attach it with conditional=False."
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _pending(value: Any) -> bool:
    """Whether a guarded membrane of a pending recording is somewhere among the arguments."""
    if isinstance(value, GuardedMembrane):
        return value._recorder.pending
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, (tuple, list)) and any(_pending(v) for v in value)


def guarded(membrane: Tensor, recorder: Recorder) -> Tensor:
    """`membrane`, shielded from being read as long as `recorder` is pending."""
    # Not a view, so that it can be detached in place.
    shielded: GuardedMembrane = torch.Tensor._make_subclass(GuardedMembrane, membrane)
    shielded._recorder = recorder
    return shielded


def unguarded(membrane: Tensor) -> Tensor:
    """The membrane itself, for its own neuron."""
    return membrane.as_subclass(Tensor) if isinstance(membrane, GuardedMembrane) else membrane
