"""What a recorded pass keeps in memory: measured layer by layer, and predicted from that."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import RecordingError
from .expansion import Expansion
from .packed_spikes import Packed

if TYPE_CHECKING:
    from .synapse_taps import Source
    from .trace import Event

MODES = ("auto", "scores", "bits", "replay")
#: Numbers kept for each draw beside its score, as counted: by conditioning pathwise, and in
#: a layer with a control variate.
PATHWISE, CONTROL = 2, {"none": 0, "readout": 5, "network": 6, "time": 10}
#: Under "replay", so many bytes may gather before they are turned into gradients.
AT_ONCE = 2**23


@dataclass(eq=False)
class Room:
    """Bytes that a pass may keep until they are turned into gradients.

    Attributes:
        left: How many there are yet.
        frugal: Whether spikes are kept as bits even where there is room for numbers.
        unread: Bytes, as numbers, of spikes that went into synapses which no noisy neuron has
            read: what autograd's graph holds behind the last noisy layer.
    """

    left: float = math.inf
    frugal: bool = False
    unread: float = 0.0

    def take(self, size: int) -> bool:
        """Whether there are so many; they are taken then."""
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(eq=False)
class LayerSize:
    """What one layer of noisy neurons takes for each row of a pass, counted while it runs.

    Attributes:
        width: Numbers that it handles at once.
        draws: Numbers that it draws in all.
        scores: Bytes of all scores that would be kept.
        activity: Bytes of presynaptic activity: spikes as bits, anything else as it came.
        events: Draws, or sums of draws, that something can be learned from.
    """

    width: int = 0
    draws: int = 0
    scores: float = 0.0
    activity: float = 0.0
    events: int = 0
    _last: set[Source] = field(default_factory=set)

    def see(self, current: Tensor, steps: int = 1) -> None:
        """The layer was given a current, (N, *), or so many at once."""
        numbers = steps * current.shape[1:].numel()
        self.width, self.draws = max(self.width, numbers), self.draws + numbers

    def count(self, event: Event, draws: int = 1) -> None:
        """Something was remembered of it, with the scores of so many draws."""
        self.events += 1
        self.scores += event.shape[1:].numel() * event.dtype.itemsize * draws
        sources = {target.source for target in event.targets}
        rows = max(1, event.shape[0])
        self.activity += sum(_bytes(source) / rows for source in sources - self._last)
        self._last = sources

    def done(self) -> LayerSize:
        """Itself, after the pass."""
        self._last = set()
        return self


def _bytes(source: Source) -> float:
    """What is kept of what went into a synapse."""
    if isinstance(source.activity, Packed):
        return source.activity.shape.numel() / 8
    # The batch itself is there anyway.
    return 0.0 if Expansion.of(source.activity) is not None else source.activity.nbytes


@dataclass(frozen=True)
class Footprint:
    """What a pass takes beyond the network and the batch, predicted from an earlier pass.

    Attributes:
        layers: Those of the earlier pass.
        parameters: Bytes of the trainable parameters.
        batch: Bytes of one expanded row of the batch.
        learned_levels: Whether the noise levels are learned, which doubles the scores.
        beside: How many numbers each layer keeps for each draw beside its score.
        unread: Bytes of the spikes of one row that autograd's graph holds; see `Room`.
    """

    layers: Sequence[LayerSize]
    parameters: int
    batch: float
    learned_levels: bool
    beside: Sequence[int] = ()
    unread: float = 0.0

    def of(self, mode: str, rows: int) -> int:
        """Bytes at the peak, with so many rows at once.

        Args:
            mode: "scores", "bits" or "replay".
            rows: Replicas times samples.
        """
        # Currents, noise, membranes and spikes of the widest layer; what the others carry on.
        width = sum(2 * layer.width for layer in self.layers)
        width += 7 * max((layer.width for layer in self.layers), default=0)
        kept = sum(layer.activity for layer in self.layers)
        kept += sum(4 * n * layer.draws for n, layer in zip(self.beside, self.layers, strict=False))
        if mode == "scores":
            kept += sum(layer.scores for layer in self.layers) * (1 + self.learned_levels)
            kept += self.unread
        kept *= rows
        if mode == "replay":
            kept = min(kept + rows * sum(layer.scores for layer in self.layers), AT_ONCE)
        return int(rows * (4 * width + self.batch) + kept + 2 * self.parameters)


@contextmanager
def forgetting() -> Iterator[None]:
    """Graphs that are made inside keep no tensors, and cannot be differentiated."""
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, _refuse):
        yield


def _refuse(_: None) -> Tensor:
    raise RecordingError(
        "This pass is run twice, and only the second time can anything in it be differentiated: "
        "the losses must not call backward() or torch.autograd.grad() themselves."
    )


def available(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None if the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return _free(int(time.monotonic())) if device.type == "cpu" else None


@lru_cache(maxsize=1)
def _free(second: int) -> int | None:
    """Bytes of memory that the system has left, asked for once a second: it takes its time."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", table.read_text(), re.MULTILINE)
    return None if found is None else 1024 * int(found[1])
