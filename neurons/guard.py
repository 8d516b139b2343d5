"""A membrane that may be carried on, put aside and partly reset, but not looked at."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..errors import RecordingError
from .base import Recorder

# What tells nothing of the values.
_HARMLESS = {
    "__len__",
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
# What puts values elsewhere as they are: the outcome may be looked at as little.
_MOVES = {
    "__getitem__",
    "broadcast_to",
    "cat",
    "chunk",
    "clone",
    "concat",
    "concatenate",
    "contiguous",
    "detach",
    "dstack",
    "expand",
    "expand_as",
    "flatten",
    "flip",
    "gather",
    "hstack",
    "index_select",
    "movedim",
    "narrow",
    "permute",
    "repeat",
    "repeat_interleave",
    "reshape",
    "reshape_as",
    "select",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "t",
    "to",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
    "vstack",
}
_MASKS = {"mul", "__mul__", "__rmul__", "where", "masked_fill"}
_OURS = ("nit_snn", "torch", "snntorch", "spikingjelly")


class GuardedMembrane(Tensor):
    """A neuron's membrane under `conditional`: only the neuron itself may read it.

    While a recording is pending the estimate is conditioned on the spikes, so a loss that depends
    on the membrane in any other way would be biased: whatever tells of its values raises. It may be
    put aside, `torch.stack(membranes)`, and set to zero in some rows, `mem * (1 - done)`.
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
        pending = [] if _tells_nothing(func) else list(_pending((args, kwargs)))
        name = func.__name__
        if name == "__get__" and pending:
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if pending and name in (*_MOVES, "T", "mT"):
            return _moved(func, args, kwargs or {}, pending)
        if pending and name in _MASKS and len(pending) == 1:
            kept = _partly_reset(func, args, kwargs or {}, pending[0])
            if kept is not None:
                return kept
        if pending:
            raise RecordingError(_message(name))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _moved(func: Any, args: Any, kwargs: Any, held: list[GuardedMembrane]) -> Any:
    """What comes of moving values, guarded like them; as it is, it is its neuron's still."""
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*_plainly(args), **_plainly(kwargs))
    first = held[0]

    def shield(x: Tensor) -> Tensor:
        same = len(held) == 1 and x.shape == first._plain.shape
        same = same and x.data_ptr() == first._plain.data_ptr()
        return guarded(x, first._recorder, first._owner if same else None)

    if isinstance(found, Tensor):
        return shield(found)
    return type(found)(map(shield, found))


def _partly_reset(func: Any, args: Any, kwargs: Any, held: GuardedMembrane) -> Tensor | None:
    """A membrane that is its neuron's own in some places and a number in all others.

    None if it is anything else: a membrane times a weight, say.
    """
    if held._owner is None:
        return None
    rest = [x for x in _leaves((args, kwargs)) if x is not held]
    if any(isinstance(x, Tensor) and x.requires_grad for x in rest):
        return None
    plain = held._plain
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        ones = torch.ones_like(plain)
        found = func(*_replaced(args, held, plain.detach()), **_replaced(kwargs, held, plain))
        # Each of these functions is affine in the membrane.
        slope = func(*_replaced(args, held, ones), **_replaced(kwargs, held, ones))
        level = func(*_replaced(args, held, ones - 1), **_replaced(kwargs, held, ones - 1))
        if not isinstance(found, Tensor) or found.shape != plain.shape:
            return None
        kept = (slope - level).to(plain.dtype)
        if not bool(((kept == 0) | (kept == 1)).all()):
            return None
    held._recorder.partly_reset(held._owner, plain, found, kept)
    return guarded(found, held._recorder, held._owner)


def _replaced(value: Any, held: Tensor, by: Tensor) -> Any:
    if value is held:
        return by
    if isinstance(value, dict):
        return {k: _replaced(v, held, by) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(v, held, by) for v in value)
    return value


def _plainly(value: Any) -> Any:
    if isinstance(value, GuardedMembrane):
        return value._plain
    if isinstance(value, dict):
        return {k: _plainly(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plainly, value))
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _message(operation: str) -> str:
    return (
        f"The membrane of a noisy neuron was read ({operation}){_line()}, while a NITLearner "
        "with conditional=True records. It conditions on the spikes, so nothing but spikes "
        "may be read: take the loss from spikes there, or attach it with conditional=False. "
        "Membranes may be stacked and put aside, and reset by mem * (1 - done)."
    )


def _line() -> str:
    """Where the user's own code has asked for it."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if package not in _OURS:
            file, line = frame.f_code.co_filename, frame.f_lineno
            text = linecache.getline(file, line).strip()
            return f" at {file}:{line}" + (f", `{text}`" if text else "")
        frame = frame.f_back
    return ""


def _tells_nothing(func: Callable[..., Any]) -> bool:
    if func.__name__ == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _METADATA
    return func.__name__ in _HARMLESS


def _pending(value: Any) -> Iterator[GuardedMembrane]:
    """The guarded membranes of pending recordings among the arguments."""
    for each in _leaves(value):
        if isinstance(each, GuardedMembrane) and each._recorder.pending:
            yield each


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
