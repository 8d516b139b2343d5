"""A recorded pass runs in Python, whatever `torch.compile` was asked for.

While a learner records, layers and neurons leave marks on tensors and remember them, which a
compiled graph would leave out. So inside of `record()` compiled modules run as they were written,
and outside of it as they were compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

from ..errors import RecordingError

_lock = Lock()
_users = 0
_stance: Any = None


@contextmanager
def eager() -> Iterator[None]:
    """Inside, nothing is compiled. The stance is that of the process: the last one puts it back.

    Raises:
        RecordingError: It is called from within a compiled function.
    """
    global _users, _stance
    if not _anything_compiled():
        yield
        return
    with _lock:
        if _users == 0:
            try:
                _stance = torch.compiler.set_stance("force_eager")
            except RuntimeError as error:
                raise RecordingError(
                    "learner.record() and learn() cannot be compiled themselves. Compile the "
                    "network alone."
                ) from error
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _stance.__exit__(None, None, None)
                _stance = None


def _anything_compiled() -> bool:
    """Whether `torch.compile` was called in this process; a stance takes its time at each pass."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:
        return False
    backends = getattr(dynamo, "cached_backends", None)
    return backends is None or any(backend is not None for backend in backends.values())
