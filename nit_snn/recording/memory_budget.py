"""How many bytes a recorded pass may keep, and how many there are."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from ..validation.capture import being_captured

#: What each GPU had left when it was asked last.
_LAST: dict[torch.device, int] = {}
#: Bytes of spikes that a pass may keep as numbers.
_SPIKES = 2**21


@dataclass(eq=False)
class MemoryBudget:
    """Bytes that a pass may keep until they are turned into gradients.

    What does not fit is recomputed: noise is drawn again from its seed, spikes are kept as bits.

    Attributes:
        left: How many there are yet; 0 to keep nothing that can be recomputed.
        spikes: How many of these are for spikes as numbers. To pack them takes little time, so
            there are few.
    """

    left: float = math.inf
    spikes: float = field(default_factory=lambda: _SPIKES)

    @property
    def frugal(self) -> bool:
        """Whether spikes are kept as bits from the start."""
        return self.left <= 0

    def take(self, size: int) -> bool:
        """Whether there are so many; they are taken then."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        """So many are not kept after all."""
        self.left += size

    def take_spikes(self, size: int) -> bool:
        """The same for spikes as numbers."""
        if size > self.spikes or size > self.left:
            return False
        self.left, self.spikes = self.left - size, self.spikes - size
        return True

    def give_back_spikes(self, size: int) -> None:
        """Likewise."""
        self.left, self.spikes = self.left + size, self.spikes + size


def budget_of(recompute: bool | str, limit: int | None, device: torch.device) -> MemoryBudget:
    """What one pass may keep.

    Args:
        recompute: Whether noise is drawn again instead of kept; "auto" keeps what fits.
        limit: Bytes that a pass may take; None for half of what the device has left.
        device: Where the network is.
    """
    if recompute != "auto":
        return MemoryBudget(0.0 if recompute else math.inf)
    if limit is None:
        left = available(device)
        return MemoryBudget(math.inf if left is None else left / 4)
    return MemoryBudget(limit / 2)  # the other half is for what a step holds at once


def available(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None if the system does not say."""
    if device.type == "cuda":
        if not being_captured():  # else what there was before: a graph does as its warm-up did
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            _LAST[device] = torch.cuda.mem_get_info(device)[0] + cached
        return _LAST.get(device)
    return _free(int(time.monotonic())) if device.type == "cpu" else None


@lru_cache(maxsize=1)
def _free(second: int) -> int | None:
    """Bytes of memory that the system has left, asked for once a second: it takes its time."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", table.read_text(), re.MULTILINE)
    return None if found is None else 1024 * int(found[1])
