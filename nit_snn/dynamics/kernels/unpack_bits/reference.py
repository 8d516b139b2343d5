"""Spikes that are kept as bits, as numbers, in torch: what the kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from ....recording.bits import unpack


def unpack_bits(bits: Tensor, slot: int, steps: int, dtype: torch.dtype) -> Tensor:
    """(T, *) zeros and ones.

    Args:
        bits: (planes, *) bytes.
        slot: Where the first step is: bit `slot % 8` of plane `slot // 8`.
        steps: T.
        dtype: The type of the numbers.
    """
    return unpack(bits, range(slot, slot + steps), dtype)
