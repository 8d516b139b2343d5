"""The counter-based noise of the kernels, in torch: what `include/philox.cuh` does.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns a counter
and a key into four random words, and Box and Muller's transform turns these into the noise of four
neighbouring neurons. The key names seed and pass, the counter neuron, sample, step, layer
and replica, so the same number can be had again at any time and nothing need be stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .streams import mix64

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_SIGNED = 1 << 63


@dataclass(frozen=True, eq=False)
class Stream:
    """Whose noise is meant.

    Attributes:
        seed: Names the whole family of streams.
        passes: Number of the pass, int64, of one element. It lies in the memory of the device that
            draws, so that a graph that is replayed there can count on.
        layer: Number of the layer, below 2^16.
        replicas: C, below 2^16; rows are replica-major.
        antithetic: Replica c + C/2 gets minus the noise of replica c.
        first_replica: Where these replicas, or the first half of antithetic ones, begin among those
            of all processes.
    """

    seed: int
    passes: Tensor
    layer: int = 0
    replicas: int = 1
    antithetic: bool = False
    first_replica: int = 0


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox 4x32-10.

    Args:
        counter: Four words, int64 below 2^32, of shapes that broadcast.
        key: Two words.

    Returns:
        Four random words, likewise.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [hex(int(word)) for word in philox((zero, zero, zero, zero), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(a, _MULTIPLIERS[0])
        high1, low1 = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return list(torch.broadcast_tensors(a, b, c, d))


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low word of a product of two words, of which int64 would lose the sign."""
    low, high = (x & 0xFFFF) * factor, (x >> 16) * factor
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _WORD


def normals(words: list[Tensor]) -> Tensor:
    """Four standard normal numbers from four words, float32, (*, 4).

    Signs are those of the angle's quarter before it is rounded, as the kernels have them.
    """
    unit = 2.0**-32
    pairs = []
    for a, b in (words[:2], words[2:]):
        # As a kernel has it: the word is rounded to float32 first.
        radius = (-2 * (a.float() * unit + unit / 2).log()).sqrt()
        angle = (b.float() * (2 * unit)).double() * math.pi
        for found, negative in ((angle.cos(), (b ^ (b << 1)) >> 31), (angle.sin(), b >> 31)):
            pairs.append(radius * found.abs().float() * (1 - 2 * (negative & 1)))
    return torch.stack(pairs, -1)


def noise(stream: Stream, steps: range, rows: int, inner: int) -> Tensor:
    """eps of a layer at some steps, float32, (T, N, F).

    Args:
        stream: Whose.
        steps: Numbers of the steps, counted from the layer's first call in the pass.
        rows: N, replicas times samples.
        inner: F, how many neurons a row has.
    """
    device = stream.passes.device
    key = mix64(mix64(stream.seed) ^ (int(stream.passes) & 0xFFFFFFFFFFFFFFFF))
    samples = max(1, rows // stream.replicas)
    replica, sign = _whose(stream, rows)
    counter = (
        torch.arange(-(-inner // 4), device=device),
        torch.arange(rows, device=device)[:, None] % samples,
        torch.tensor(list(steps), dtype=torch.int64, device=device)[:, None, None],
        stream.layer << 16 | replica,
    )
    drawn = normals(philox(counter, (key & _WORD, key >> 32))).flatten(2)[..., :inner]
    return drawn * sign


def _whose(stream: Stream, rows: int) -> tuple[Tensor, Tensor]:
    """The replica that a row shares its noise with, and the noise's sign, each (N, 1).

    The sign is -1 in the second half of antithetic replicas.
    """
    row = torch.arange(rows, device=stream.passes.device)[:, None]
    replica, sign = row // max(1, rows // stream.replicas), torch.ones_like(row).float()
    if stream.antithetic:
        half = stream.replicas // 2
        sign = torch.where(replica >= half, -sign, sign)
        replica = replica % half
    return replica + stream.first_replica, sign


def signed(seed: int) -> int:
    """The same 64 bits as a signed number, which is what torch's operators take."""
    seed &= 2 * _SIGNED - 1
    return seed - 2 * _SIGNED if seed >= _SIGNED else seed
