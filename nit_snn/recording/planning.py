"""How a batch is put through in the memory that there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .memory import Footprint, available


@dataclass(frozen=True)
class Plan:
    """How a batch is put through.

    Attributes:
        mode: "scores", "bits" or "replay".
        parts: In how many parts its replicas go.
        bytes: What that takes.
    """

    mode: str
    parts: int
    bytes: int

    @property
    def twice(self) -> bool:
        """Whether every part goes through twice: the losses of all are needed to weigh any."""
        return self.parts > 1 or self.mode == "replay"


def plan(
    footprint: Footprint, modes: Sequence[str], limit: float, rows: int, parts: Sequence[int]
) -> Plan:
    """The first way to put a batch through that fits, or else the one that takes least.

    Args:
        footprint: What a pass takes.
        modes: Those that there are, from the fastest to the most frugal.
        limit: Bytes that there are.
        rows: Replicas times samples.
        parts: Numbers of parts that the replicas can go in, ascending.
    """
    ways = [(mode, 1) for mode in modes] + [(modes[-1], number) for number in parts if number > 1]
    plans = [Plan(mode, n, footprint.of(mode, -(-rows // n))) for mode, n in ways]
    fitting = (found for found in plans if found.bytes <= limit)
    return next(fitting, min(plans, key=lambda found: found.bytes))


@dataclass
class Planner:
    """Plans the passes of one learner.

    Attributes:
        mode: What the user asked for, one of `nit_snn.recording.memory.MODES`.
        limit: Bytes that a pass may take; None for half of what the device has left.
        frugal: Modes that the learner's options leave besides "scores".
        unit: What the replicas of a part have to be a multiple of; None if they stay together.
        footprint: What a pass takes, once that is known.
        rows: Of the pass that was last planned or run.
        batch: Bytes of one row of its tensors.
    """

    mode: str
    limit: int | None
    frugal: Sequence[str]
    unit: int | None
    footprint: Footprint | None = None
    rows: int = 0
    batch: float = 0.0

    def bytes(self, device: torch.device) -> float:
        """How many a pass may take."""
        if self.limit is not None:
            return self.limit
        left = available(device)
        return math.inf if left is None else left / 2

    def room(self, device: torch.device) -> float:
        """Bytes of scores that an unplanned pass may keep."""
        if self.mode != "auto":
            return 0.0 if self.mode == "bits" else math.inf
        return self.bytes(device) / 2

    def plan(self, replicas: int, device: torch.device, once: bool = False) -> Plan:
        """For the number of rows that is set.

        Args:
            replicas: C.
            device: Where the network is.
            once: Whether no pass may run twice.
        """
        modes = ["scores", *self.frugal] if self.mode == "auto" else [self.mode]
        if once:
            modes = [mode for mode in modes if mode != "replay"]
        if self.footprint is None:
            return Plan(modes[0], 1, 0)
        units = 1 if once or self.unit is None else max(1, replicas // self.unit)
        parts = [number for number in range(1, units + 1) if units % number == 0]
        return plan(self.footprint, modes, self.bytes(device), self.rows, parts)

    def describe(self, replicas: int, device: torch.device) -> str:
        """For `repr`."""
        if self.footprint is None or not self.rows:
            return "peak unknown before the first pass"
        found = self.plan(replicas, device)
        where = f" in {found.parts} parts" if found.parts > 1 else ""
        return f"{found.mode}{where}: {found.bytes / 2**20:.1f} MiB for {self.rows} rows"
