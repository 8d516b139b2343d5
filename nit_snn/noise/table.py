"""Noise from a table that many passes share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..training.distributed import ALONE, Ranks
from .streams import mix64, stream_seeds

_BLOCK = 2**20
_ENOUGH = 16  # blocks, and passes without a number used twice, that a table grows for
_PASSES = 16


class NoiseTable:
    """Standard normal numbers that many passes share, as evolution strategies do.

    Drawing normal numbers is most of what a pass costs on a CPU; reading them from a table is
    nearly free. (Salimans et al., "Evolution strategies as a scalable alternative to reinforcement
    learning", 2017.)

    Args:
        seed: Names the numbers.
        size: How many there are at first. A pass leaves as many behind as 16 of its kind
            need, or 2^24 if those are fewer, so that short runs do not wait for a large table.
    """

    def __init__(self, seed: int, size: int = _BLOCK) -> None:
        self.seed = seed
        self._parts: dict[torch.device, Tensor] = {}
        self.blocks = max(1, size // _BLOCK)

    def values(self, device: torch.device, blocks: int | None = None) -> Tensor:
        """All of it, or at least so many blocks, (size,), float32."""
        held = self._parts.get(device)
        count = 0 if held is None else len(held) // _BLOCK
        if held is None or count < (self.blocks if blocks is None else blocks):
            fresh = torch.empty((self.blocks - count, _BLOCK), device=device)
            generator = torch.Generator(device)
            seeds = stream_seeds(mix64(self.seed), range(count, self.blocks))
            for seed, block in zip(seeds, fresh, strict=True):
                block.normal_(generator=generator.manual_seed(seed))
            flat = fresh.flatten()
            held = self._parts[device] = flat if held is None else torch.cat([held, flat])
        return held

    def grow(self, count: int) -> None:
        """Doubles it, or more if `count` new numbers would not fit."""
        self.blocks += max(self.blocks, -(-count // _BLOCK))

    def provide(self, count: int) -> None:
        """Grows for the passes to come, one of which takes `count` numbers."""
        self.blocks = max(self.blocks, min(_ENOUGH, -(-_PASSES * count // _BLOCK)))


class Places:
    """Where in a table the calls of one pass have their noise, one after the other.

    Args:
        table: The table; it grows if the pass needs more than it has.
        start: Where the first call begins, modulo the table's size.
    """

    def __init__(self, table: NoiseTable, start: int) -> None:
        self.table = table
        self.size = self._left = table.blocks * _BLOCK
        self._next = start % self.size
        self._used = 0
        self._found: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def of(self, layer: int, call: int, count: int) -> list[tuple[int, int]]:
        """From where to where `count` numbers are; in two pieces over the end of the table."""
        if (layer, call) not in self._found:
            if count > self._left:
                self.table.grow(count)
                size, self.size = self.size, self.table.blocks * _BLOCK
                self._next, self._left = size, self.size - size
            end = self._next + count
            beyond = max(0, end - self.size)
            pieces = [(self._next, end - beyond), (0, beyond)]
            self._found[layer, call] = pieces if beyond else pieces[:1]
            self._next = beyond if beyond else end % self.size
            self._left -= count
            self._used += count
            self.table.provide(self._used)
        return self._found[layer, call]


class TableNoise:
    """The noise of one pass from a table, from a random place on.

    No number is used twice in a pass, so within it the noise is as independent as fresh noise is,
    and each pass's gradient has the same distribution over the tables. What is lost is
    independence between passes: later ones use the same numbers in other places, a block of them
    with another sign.

    Args:
        table: The numbers; it grows if a pass needs more than it has.
        index: Number of the pass.
        replicas: Number C of replicas per sample.
        antithetic: Replica c + C/2 gets minus the noise of replica c.
        ranks: Who shares out the replicas; `replicas` are this process's then.
    """

    def __init__(
        self,
        table: NoiseTable,
        index: int,
        replicas: int,
        antithetic: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.table = table
        self.index = index
        self.ranks = ranks
        self.replicas = replicas
        self.antithetic = antithetic
        self._name = mix64(mix64(table.seed) ^ index)
        self._places = Places(table, self._name)

    def draw(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        index: int,
        layer: int,
        call: int,
        layers: int,
    ) -> Tensor:
        """See `ReplicaNoise.draw`; the index is that of the pass that this was made for."""
        rows = shape[0] // self.replicas
        drawn = self.replicas // 2 if self.antithetic else self.replicas
        own_shape = (drawn, rows, *shape[1:])
        count = math.prod(own_shape)
        place = self._places.of(layer, call, count * self.ranks.sharers)
        values = self.table.values(torch.device(device), self._places.size // _BLOCK)
        sign = self.sign(layer, call, layers)
        noise = torch.empty((self.replicas, rows, *shape[1:]), device=device)
        pieces = [values[start:end] for start, end in place]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        own = whole[self.ranks.first(count) :][:count]
        torch.mul(own.view(own_shape), sign, out=noise[:drawn])
        if self.antithetic:
            torch.neg(noise[:drawn], out=noise[drawn:])
        return noise.flatten(0, 1).to(torch.float64 if dtype == torch.float64 else torch.float32)

    def sign(self, layer: int, call: int, layers: int) -> int:
        """What the numbers of a call are multiplied with."""
        return -1 if mix64(self._name + call * layers + layer) & 1 else 1
