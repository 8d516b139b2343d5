"""Tensors of many gigabytes that are never touched as a whole, and a kernel's last block there."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nit_snn.dynamics.kernels.launch import Launch

from .runner import run_on_host

_NORESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on
# An offset that wraps around to a negative one of 32 bits lands here, not in somebody's memory.
_MARGIN = 2**31 * 4


def sparse(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, of which only the pages that are written to take memory.

    Raises:
        OSError: The system does not lend so many addresses.
    """
    size = math.prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    memory = mmap.mmap(-1, _MARGIN + size, flags=flags)
    return torch.frombuffer(memory, dtype=torch.uint8, offset=_MARGIN).view(dtype).view(shape)


class LastBlock:
    """A launcher for tensors of the meta device: gives them sparse memory, runs the last block."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, x: Tensor) -> Tensor:
        """The memory of a tensor of the meta device, zeros at first; any other is its own."""
        if x.device.type != "meta":
            return x
        if id(x) not in self._held:
            self._held[id(x)] = x, sparse(x.shape, x.dtype)
        return self._held[id(x)][1]

    def __call__(self, what: Launch) -> None:
        arguments = [self.of(a) if isinstance(a, Tensor) else a for a in what.arguments]
        run_on_host(replace(what, arguments=arguments), "launch_last")
