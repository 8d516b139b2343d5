"""The operator `nit_snn::unpack_bits`: the kernel on CUDA, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..launch import MOST_PARTS, REALS, Launch, launch, over
from .reference import unpack_bits as reference


@torch.library.custom_op("nit_snn::unpack_bits", mutates_args=())
def unpack_bits(bits: Tensor, slot: int, steps: int, dtype: torch.dtype) -> Tensor:
    """See `reference.unpack_bits`."""
    return reference(bits, slot, steps, dtype)


@unpack_bits.register_fake
def _fake(bits: Tensor, slot: int, steps: int, dtype: torch.dtype) -> Tensor:
    return bits.new_empty((steps, *bits.shape[1:]), dtype=dtype)


@unpack_bits.register_kernel("cuda")
def launched(
    bits: Tensor,
    slot: int,
    steps: int,
    dtype: torch.dtype,
    launch: Callable[[Launch], None] = launch,
) -> Tensor:
    """The same by the kernel, in one launch; the kernels have no float64."""
    if dtype not in REALS:
        return reference(bits, slot, steps, dtype)
    spikes = bits.new_empty((steps, *bits.shape[1:]), dtype=dtype)
    if not spikes.numel():
        return spikes
    size = bits.shape[1:].numel()
    (blocks, _), block = over(-(-size // 4))
    planes = -(-(slot + steps) // 8) - slot // 8
    launch(
        Launch(
            "unpack_bits",
            dtype,
            bits.device,
            (blocks, min(planes, MOST_PARTS)),
            block,
            [bits.contiguous(), spikes, np.int64(steps), np.int64(size), np.int64(slot)],
        )
    )
    return spikes
