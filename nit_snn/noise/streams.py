"""Where epsilon comes from: a stream of its own for every pass, layer, call and replica."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..training.distributed import ALONE, Ranks

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_BLOCK = 2**20
_ENOUGH = 16  # blocks, and passes without a number used twice, that a table grows for
_PASSES = 16


class Noise(Protocol):
    """Standard normal noise for the replicas of a batch, that can be drawn again."""

    replicas: int

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
        """See `ReplicaNoise.draw`."""
        ...

    def part(self, number: int, parts: int) -> Noise:
        """The noise of some of the replicas: of `parts` equal shares of them, that number."""
        ...


class ReplicaNoise:
    """Standard normal noise that can be drawn again, replica by replica.

    Each replica of each layer's call in each pass has its own stream, named by numbers alone. So
    the same seed gives the same noise whether it was kept or is drawn a second time, in any
    order, and a replica's noise does not depend on how many replicas sit beside it.

    Args:
        seed: Names the whole family of streams.
        replicas: Number C of replicas per sample.
        antithetic: Replica c + C/2 gets minus the noise of replica c.
        layerwise: Replica c gets noise in layer `c % layers` only, and zeros elsewhere.
        ranks: Who shares out the replicas; `replicas` are this process's then.

    Example:
        >>> source = ReplicaNoise(seed=0, replicas=2)
        >>> where = dict(index=3, layer=0, call=1, layers=2)
        >>> first = source.draw((6, 5), **where)
        >>> torch.equal(first, source.draw((6, 5), **where))
        True
    """

    def __init__(
        self,
        seed: int,
        replicas: int,
        antithetic: bool = False,
        layerwise: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.seed = seed
        self.replicas = replicas
        self.antithetic = antithetic
        self.layerwise = layerwise
        self.ranks = ranks
        self._generators: dict[torch.device, torch.Generator] = {}

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
        """Draws the noise of one call of one layer.

        Args:
            shape: (C * B, *), replica-major.
            dtype: float64 is drawn as such; anything else in float32.
            device: Where it is drawn; a CPU and a GPU have different streams.
            index: Number of the pass.
            layer: Number of the layer, below `layers`.
            call: How often the layer was called before in this pass.
            layers: Number of layers in the network.

        Returns:
            Independent N(0, 1) of that shape.
        """
        rows = shape[0] // self.replicas
        device = torch.device(device)
        make = torch.zeros if self.layerwise else torch.empty
        noise = make(
            (self.replicas, rows, *shape[1:]),
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
            device=device,
        )
        generator = self._generator(device)
        drawn = self.replicas // 2 if self.antithetic else self.replicas
        base = _mix64(_mix64(self.seed) ^ index)
        everywhere = self.replicas * self.ranks.sharers
        first = (call * layers + layer) * everywhere + self.ranks.first(drawn)
        for replica in range(layer, drawn, layers) if self.layerwise else range(drawn):
            stream = first + replica
            generator.manual_seed(_stream_seed(base, stream))
            noise[replica].normal_(generator=generator)
        if self.antithetic:
            torch.neg(noise[:drawn], out=noise[drawn:])
        return noise.flatten(0, 1)

    def part(self, number: int, parts: int) -> ReplicaNoise:
        """See `Noise.part`."""
        ranks = self.ranks.part(number, parts)
        own = self.replicas // parts
        return ReplicaNoise(self.seed, own, self.antithetic, self.layerwise, ranks)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device]


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
            for i, block in enumerate(fresh, count):
                block.normal_(generator=generator.manual_seed(_stream_seed(_mix64(self.seed), i)))
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
        layerwise: Replica c gets noise in layer `c % layers` only, and zeros elsewhere.
        ranks: Who shares out the replicas; `replicas` are this process's then.
        places: Where the calls of the pass have their noise, if others have to find it there too.
    """

    def __init__(
        self,
        table: NoiseTable,
        index: int,
        replicas: int,
        antithetic: bool = False,
        layerwise: bool = False,
        ranks: Ranks = ALONE,
        places: Places | None = None,
    ) -> None:
        self.table = table
        self.index = index
        self.ranks = ranks
        self.replicas = replicas
        self.antithetic = antithetic
        self.layerwise = layerwise
        self._name = _mix64(_mix64(table.seed) ^ index)
        self._places = Places(table, self._name) if places is None else places

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
        noisy = slice(layer, drawn, layers) if self.layerwise else slice(0, drawn)
        own_shape = (len(range(drawn)[noisy]), rows, *shape[1:])
        count = math.prod(own_shape)
        place = self._places.of(layer, call, count * self.ranks.sharers)
        values = self.table.values(torch.device(device), self._places.size // _BLOCK)
        sign = self.sign(layer, call, layers)
        make = torch.zeros if self.layerwise else torch.empty
        noise = make((self.replicas, rows, *shape[1:]), device=device)
        pieces = [values[start:end] for start, end in place]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        own = whole[self.ranks.first(count) :][:count]
        torch.mul(own.view(own_shape), sign, out=noise[noisy])
        if self.antithetic:
            torch.neg(noise[:drawn], out=noise[drawn:])
        return noise.flatten(0, 1).to(torch.float64 if dtype == torch.float64 else torch.float32)

    def read(
        self, shape: Sequence[int], device: torch.device, *, layer: int, call: int
    ) -> Tensor | None:
        """The numbers of `draw` but for `sign`, where they lie; None if they are not in one piece.

        They are not to be written to.
        """
        if self.antithetic or self.layerwise:
            return None
        count = math.prod(shape)
        pieces = self._places.of(layer, call, count * self.ranks.sharers)
        if len(pieces) > 1:
            return None
        start = pieces[0][0] + self.ranks.first(count)
        values = self.table.values(device, self._places.size // _BLOCK)
        return values[start : start + count].view(torch.Size(shape))

    def sign(self, layer: int, call: int, layers: int) -> int:
        """What the numbers of a call are multiplied with."""
        return -1 if _mix64(self._name + call * layers + layer) & 1 else 1

    def part(self, number: int, parts: int) -> TableNoise:
        """See `Noise.part`."""
        return TableNoise(
            self.table,
            self.index,
            self.replicas // parts,
            self.antithetic,
            self.layerwise,
            self.ranks.part(number, parts),
            self._places,
        )


class SobolNoise:
    """Scrambled Sobol points through the inverse normal distribution function.

    The replicas of a sample are `point_sets` randomised point sets, so they fill the space of a
    layer's noise more evenly than chance would. Each set has a scramble of its own, each sample
    a random shift of it modulo 1 (Cranley and Patterson 1976), which makes every single replica's
    noise exactly uniform before the transform, independent over neurons, calls and samples. The
    replicas of one set depend on each other, so no baseline may use one for another.

    Args:
        seed: Names the whole family of streams.
        replicas: Number C of replicas per sample.
        point_sets: Number of independent sets; each has C / point_sets points, a power of two.
    """

    def __init__(self, seed: int, replicas: int, point_sets: int) -> None:
        self.seed = seed
        self.replicas = replicas
        self.point_sets = point_sets

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
        """See `ReplicaNoise.draw`."""
        rows, inner = shape[0] // self.replicas, math.prod(shape[1:])
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        base = _mix64(_mix64(self.seed) ^ index)
        sets = []
        for number in range(self.point_sets):
            stream = (call * layers + layer) * self.point_sets + number
            generator = torch.Generator().manual_seed(_stream_seed(base, stream))
            points = self._points(inner, generator).to(exact)
            shift = torch.rand((rows, inner), generator=generator, dtype=exact)
            sets.append((points[:, None] + shift) % 1)
        uniform = torch.cat(sets).to(device)
        smallest = torch.finfo(exact).eps / 4
        normal = torch.special.ndtri(uniform.clamp(smallest, 1 - 2 * smallest))
        return normal.view(shape)

    def part(self, number: int, parts: int) -> SobolNoise:
        """See `Noise.part`; a point set is not taken apart.

        Raises:
            ValueError: Another part than the whole.
        """
        if parts != 1:
            raise ValueError("Sobol points are drawn for all replicas at once.")
        return self

    def _points(self, dimensions: int, generator: torch.Generator) -> Tensor:
        """(C / point_sets, dimensions); dimensions that torch has none for get a set of their own.

        The points come in random order, since sets of other calls come in their order too.
        """
        blocks = []
        count = self.replicas // self.point_sets
        most = torch.quasirandom.SobolEngine.MAXDIM
        for first in range(0, dimensions, most):
            seed = int(torch.randint(2**31, (), generator=generator))
            width = min(most, dimensions - first)
            engine = torch.quasirandom.SobolEngine(width, scramble=True, seed=seed)
            order = torch.randperm(count, generator=generator)
            blocks.append(engine.draw(count, dtype=torch.float64)[order])
        return torch.cat(blocks, 1)


def _mix64(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _mix32(x: int) -> int:
    """The finaliser of MurmurHash3 (Appleby): a bijection on 32 bits."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK32
    return x ^ (x >> 16)


def _stream_seed(base: int, stream: int) -> int:
    """Seed of one stream of a pass.

    torch's CPU generator keeps the low 32 bits of a seed only. A bijection of
    `base + stream` makes them different for all streams of a pass, which a hash would not.
    """
    return (base & ~_MASK32) | _mix32((base + stream) & _MASK32)
