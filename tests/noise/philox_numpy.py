"""Philox 4x32-10 once more, from its paper, in NumPy: no code shared with what it is to check."""

from __future__ import annotations

import numpy as np

#: Random123's known answers for philox 4x32, 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint64)


def philox4x32(counters: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(n, 4) counters and (n, 2) keys, uint64 below 2^32, to (n, 4) random words."""
    mask = np.uint64(2**32 - 1)
    c, k = counters.copy(), keys.copy()
    for _ in range(10):
        left = np.uint64(0xD2511F53) * c[:, 0]
        right = np.uint64(0xCD9E8D57) * c[:, 2]
        c = np.stack(
            [
                (right >> np.uint64(32)) ^ c[:, 1] ^ k[:, 0],
                right & mask,
                (left >> np.uint64(32)) ^ c[:, 3] ^ k[:, 1],
                left & mask,
            ],
            1,
        )
        k = (k + np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)) & mask
    return c


def splitmix64(x: int) -> int:
    """The output function of SplitMix64 for the state that follows `x`."""
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def box_muller(words: np.ndarray) -> np.ndarray:
    """(n, 4) words to (n, 4) standard normal numbers in float64."""
    u = (words[:, 0::2].astype(np.float64) + 0.5) / 2**32
    angle = 2 * np.pi * words[:, 1::2].astype(np.float64) / 2**32
    radius = np.sqrt(-2 * np.log(u))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(len(words), 4)
