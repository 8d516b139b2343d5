"""A membrane that may be carried on, but not looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import RecordingError

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
    """A neuron's membrane under `conditional=True`: only the neuron itself may read it.

    The estimate is then conditioned on the spikes, so a loss that depends on the membrane in any
    other way would be biased. Any other operation on it raises.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.__name__ not in _HARMLESS:
            raise RecordingError(
                f"The membrane of a noisy neuron was read ({func.__name__}) while a NITLearner "
                "with conditional=True records. It conditions on the spikes, so nothing but spikes "
                "may be read: take the loss from spikes, or attach it with conditional=False."
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def guarded(membrane: Tensor) -> Tensor:
    """`membrane`, shielded from being read."""
    return membrane.as_subclass(GuardedMembrane)


def unguarded(membrane: Tensor) -> Tensor:
    """The membrane itself, for its own neuron."""
    return membrane.as_subclass(Tensor) if isinstance(membrane, GuardedMembrane) else membrane
