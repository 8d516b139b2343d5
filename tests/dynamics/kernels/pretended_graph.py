"""A CUDA graph on a GPU that is a CPU: operations that are written down and done again.

As a real graph it knows no Python: a replay does the same operations with the same memory. What a
step decides on the host is decided once, and noise is fresh only if the device counts its passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_cuda import PretendedCuda
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if function._schema.is_mutable:
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor) and id(x) not in self._before:
                    self._before[id(x)] = x, x.detach().clone()
        found = function(*args, **kwargs)
        self.done.append((function, args, kwargs, found))
        return found

    @torch.no_grad()
    def __exit__(self, *reason: Any) -> None:
        """What is captured is not done yet."""
        super().__exit__(*reason)
        for x, before in self._before.values():
            x.detach().copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, before in self.done:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


def with_graphs(patch: pytest.MonkeyPatch, cuda: PretendedCuda) -> None:
    """torch.cuda has streams and graphs; a wait while one is captured is an error."""
    stream = SimpleNamespace(cuda_stream=0, wait_stream=lambda other: None)
    patch.setattr(torch.cuda, "Stream", lambda device=None: stream)
    patch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    patch.setattr(torch.cuda, "CUDAGraph", Graph)
    state = {"capturing": False}
    patch.setattr(torch.cuda, "is_initialized", lambda: True)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["capturing"])

    @contextmanager
    def graph(what: Graph) -> Iterator[None]:
        cuda.waits.clear()
        state["capturing"] = True
        try:
            with what:
                yield
        finally:
            state["capturing"] = False
        if cuda.waits:
            raise RuntimeError(f"not permitted when a stream is captured: {cuda.waits}")

    patch.setattr(torch.cuda, "graph", graph)
