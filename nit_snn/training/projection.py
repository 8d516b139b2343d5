"""The projection onto Omega (section 3.1): boxes for learned noise levels and for weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from threading import Lock
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

#: Tensors and the bounds of each of their elements.
Box = tuple[Iterable[Tensor], tuple[float, float]]

_BOXES: dict[object, WeakMethod[Callable[[], list[Box]]]] = {}
_LOCK = Lock()
_listening = False


@torch.no_grad()
def clamp(tensors: Iterable[Tensor], bounds: tuple[float, float]) -> None:
    """Puts every element back between the bounds, in place."""
    for tensor in tensors:
        tensor.clamp_(*bounds)


def after_each_step(boxes: Callable[[], list[Box]]) -> Callable[[], None]:
    """Clamps, after the step of any torch optimizer, those tensors of the boxes that it holds.

    Others it leaves alone: in another thread they may be about to be updated themselves, or wait
    in a graph for their gradient.

    Args:
        boxes: A bound method; it is asked as long as its object lives.

    Returns:
        What ends it.
    """
    _listen()
    key = object()
    _BOXES[key] = WeakMethod(boxes, lambda _: end())

    def end() -> None:
        _BOXES.pop(key, None)

    return end


def _listen() -> None:
    """One hook for all, once and for good: torch may be going through its hooks in a thread."""
    global _listening
    with _LOCK:
        if not _listening:
            register_optimizer_step_post_hook(_project_all)
            _listening = True


def _project_all(optimizer: Optimizer, *_: object) -> None:
    found = [boxes() for reference in list(_BOXES.values()) if (boxes := reference()) is not None]
    if not found:
        return
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    for tensors, bounds in chain.from_iterable(found):
        clamp((tensor for tensor in tensors if id(tensor) in held), bounds)
