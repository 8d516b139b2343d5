"""How much memory something takes at its peak: of the process, and of tensors alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make, while they are alive.

    Attributes:
        bytes: Now.
        peak: At most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes()
        self._known.add(address)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.bytes -= size


def resident_peak(run: Callable[[], None]) -> int | None:
    """Bytes by which the resident memory rises while it runs; None where the system is silent."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None

    def read(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])

    gc.collect()
    reset.write_text("5")  # the peak is what it is now
    before = read("VmRSS")
    run()
    return read("VmHWM") - before


def live_peak(run: Callable[[], None]) -> int:
    """The peak of the bytes of the tensors that were made while it ran, and were alive."""
    with LiveTensors() as live:
        run()
    return live.peak
