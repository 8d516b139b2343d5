"""Where epsilon comes from: a stream of its own for every pass, layer, call and replica."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..training.distributed import ALONE, Ranks

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


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


class ReplicaNoise:
    """Standard normal noise that can be drawn again, replica by replica.

    Each replica of each layer's call in each pass has its own stream, named by numbers alone. So
    the same seed gives the same noise whether it was kept or is drawn a second time, in any
    order, and a replica's noise does not depend on how many replicas sit beside it.

    Args:
        seed: Names the whole family of streams.
        replicas: Number C of replicas per sample.
        antithetic: Replica c + C/2 gets minus the noise of replica c.
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.seed = seed
        self.replicas = replicas
        self.antithetic = antithetic
        self.ranks = ranks
        self._generators: dict[torch.device, torch.Generator] = {}
        self._base = (-1, 0)
        self._everywhere = replicas * ranks.sharers
        self._first = ranks.first(replicas // 2 if antithetic else replicas)

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
        noise = torch.empty(
            shape,
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
            device=device,
        )
        generator = self._generators.get(device)
        if generator is None:
            generator = self._generators[device] = torch.Generator(device)
        drawn = self.replicas // 2 if self.antithetic else self.replicas
        if self._base[0] != index:
            self._base = (index, mix64(mix64(self.seed) ^ index))
        first = (call * layers + layer) * self._everywhere + self._first
        seeds = stream_seeds(self._base[1], range(first, first + drawn))
        each = noise.view(self.replicas, rows, *shape[1:]).unbind(0)
        for seed, own in zip(seeds, each, strict=False):
            own.normal_(generator=generator.manual_seed(seed))
        for own, other in zip(each[:drawn], each[drawn:], strict=False):
            torch.neg(own, out=other)
        return noise


def mix64(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def stream_seeds(base: int, streams: Iterable[int]) -> list[int]:
    """Seeds of some streams of a pass.

    torch's CPU generator keeps the low 32 bits of a seed only. A bijection of `base + stream`, the
    finaliser of MurmurHash3 (Appleby), makes them different for all streams of a pass, which a hash
    would not.
    """
    high, seeds = base & ~_MASK32, []
    for stream in streams:
        x = (base + stream) & _MASK32
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK32
        seeds.append(high | (x ^ (x >> 16)))
    return seeds
