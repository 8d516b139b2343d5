"""The operator `nit_snn::sigma_gradient`: the kernel on CUDA, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ....noise.philox import Stream
from ..launch import Launch, check_size, launch, over, parts, stream_arguments
from .reference import sigma_gradient as reference


@torch.library.custom_op("nit_snn::sigma_gradient", mutates_args=())
def sigma_gradient(
    weight: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    first_replica: int = 0,
) -> Tensor:
    """See `reference.sigma_gradient`."""
    stream = Stream(seed, passes, layer, replicas, antithetic, first_replica)
    return reference(weight, stream, inner, steps, first_step)


@sigma_gradient.register_fake
def _fake(
    weight: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    first_replica: int = 0,
) -> Tensor:
    return weight.new_empty(inner, dtype=torch.float32)


@sigma_gradient.register_kernel("cuda")
def launched(
    weight: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    first_replica: int = 0,
    launch: Callable[[Launch], None] = launch,
) -> Tensor:
    """The same by the kernel, which leaves the parts' sums to be added up in their order."""
    stream = Stream(seed, passes, layer, replicas, antithetic, first_replica)
    rows = weight.shape[-1]
    check_size(rows, inner)
    weight = weight.float().contiguous()
    if not rows * inner:
        return weight.new_zeros(inner)
    quads = -(-inner // 4)
    rows_of_part = -(-rows // parts(quads, rows))
    count = -(-rows // rows_of_part)
    sums = weight.new_empty((count, inner))
    grid, block = over(count * quads)
    launch(
        Launch(
            "sigma_gradient",
            torch.float32,
            weight.device,
            grid,
            block,
            [
                weight,
                sums,
                *stream_arguments(stream),
                np.int64(weight.expand(steps, rows).stride(0)),
                np.int64(steps),
                np.int64(rows),
                np.int64(rows_of_part),
                np.int64(count),
                np.int32(inner),
                np.int32(first_step),
            ],
        )
    )
    return sums.sum(0)
