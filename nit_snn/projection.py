"""The projection onto Omega (section 3.1): boxes for learned noise levels and for weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

_PROJECTS: dict[object, WeakMethod[Callable[[], None]]] = {}
_LOCK = Lock()
_listening = False


@torch.no_grad()
def clamp(tensors: Iterable[Tensor], bounds: tuple[float, float]) -> None:
    """Puts every element back between the bounds, in place."""
    for tensor in tensors:
        tensor.clamp_(*bounds)


def after_each_step(project: Callable[[], None]) -> Callable[[], None]:
    """Calls a bound method after the step of any torch optimizer, as long as its object lives.

    Returns:
        What ends it.
    """
    _listen()
    key = object()
    _PROJECTS[key] = WeakMethod(project, lambda _: end())

    def end() -> None:
        _PROJECTS.pop(key, None)

    return end


def _listen() -> None:
    """One hook for all, once and for good: torch may be going through its hooks in a thread."""
    global _listening
    with _LOCK:
        if not _listening:
            register_optimizer_step_post_hook(_project_all)
            _listening = True


def _project_all(*_: object) -> None:
    for reference in list(_PROJECTS.values()):
        project = reference()
        if project is not None:
            project()
