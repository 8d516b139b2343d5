"""What noise a learner's passes get: its kind, its seed, and the number of passes so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..dynamics.backend import backend_of
from ..errors import AttachError
from ..training.distributed import Ranks
from ..training.saved_state import Entries, count, is_seed
from .philox_noise import PhiloxNoise
from .streams import Noise, ReplicaNoise
from .table import NoiseTable, TableNoise


class NoiseSource:
    """Gives each pass its noise.

    Args:
        seed: Names the noise of all passes.
        ranks: Who shares out replicas or samples.
        table: Read the noise from a table that all passes share.
        antithetic: Replica c + C/2 gets minus the noise of replica c.
    """

    def __init__(
        self,
        seed: int,
        ranks: Ranks,
        *,
        table: bool = False,
        antithetic: bool = False,
    ) -> None:
        self.seed = seed
        self.ranks = ranks
        self.passes = 0
        self.antithetic = antithetic
        self.table = NoiseTable(self._own_seed) if table else None
        self.counters: dict[torch.device, Tensor] = {}

    def next(self, replicas: int, devices: Iterable[torch.device]) -> tuple[Noise, int]:
        """The noise of the next pass, and its number.

        Args:
            replicas: C.
            devices: Where there are neurons.

        Raises:
            AttachError: The kernels have no such noise.
        """
        index, found = self.passes, set(devices)
        kernels = not all(backend_of(device).name == "torch" for device in found)
        if kernels:
            for device in found:
                if device not in self.counters:
                    self.counters[device] = _counter(index, device)
                else:
                    # On the device, where a replayed CUDA graph counts on without Python.
                    self.counters[device].add_(1)
        noise = self._make(replicas, index, kernels)
        self.passes += 1
        return noise, index

    def _make(self, replicas: int, index: int, kernels: bool) -> Noise:
        options = (replicas, self.antithetic, self.ranks)
        if kernels:
            if self.table is not None:
                raise AttachError(
                    "noise_reuse=True is for torch's backend; the kernels draw noise faster than "
                    "they could read it. Leave it out."
                )
            return PhiloxNoise(self._own_seed, self.counters, *options)
        if self.table is not None:
            return TableNoise(self.table, index, *options)
        return ReplicaNoise(self._own_seed, *options)

    @property
    def _own_seed(self) -> int:
        return self.ranks.own_seed(self.seed)

    def state_dict(self) -> dict[str, Any]:
        """What draws the same noise again."""
        # A replayed CUDA graph has made passes that only its device has counted.
        passes = max([self.passes, *(int(count) + 1 for count in self.counters.values())])
        table = {} if self.table is None else {"table": self.table.blocks}
        return {"seed": self.seed, "passes": passes, **table}

    @property
    def entries(self) -> Entries:
        """What must be true of a state."""
        table: Entries = {} if self.table is None else {"table": lambda n: count(n) and n > 0}
        return {"seed": is_seed, "passes": count, **table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the source that gave `state` stopped; it must have the `entries`."""
        self.seed, self.passes, self.counters = state["seed"], state["passes"], {}
        if self.table is not None:
            self.table = NoiseTable(self._own_seed)
            self.table.blocks = state["table"]


def _counter(passes: int, device: torch.device) -> Tensor:
    return torch.full((1,), passes, dtype=torch.int64, device=device)
