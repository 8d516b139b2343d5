"""The operator `nit_snn::weighted_score`: the kernel on CUDA, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ....noise.philox import Stream
from ..launch import (
    MOST_PARTS,
    Launch,
    check_size,
    dense,
    launch,
    levels,
    over,
    parts,
    stream_arguments,
)
from .reference import weighted_score as reference


@torch.library.custom_op("nit_snn::weighted_score", mutates_args=())
def weighted_score(
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    signs: bool = False,
    summed: bool = False,
    dtype: torch.dtype = torch.float32,
    first_replica: int = 0,
) -> Tensor:
    """See `reference.weighted_score`."""
    stream = Stream(seed, passes, layer, replicas, antithetic, first_replica)
    return reference(weight, scale, stream, inner, steps, first_step, signs, summed, dtype)


@weighted_score.register_fake
def _fake(
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    signs: bool = False,
    summed: bool = False,
    dtype: torch.dtype = torch.float32,
    first_replica: int = 0,
) -> Tensor:
    made = (weight.shape[-1], inner)
    return weight.new_empty(made if summed else (steps, *made), dtype=dtype)


@weighted_score.register_kernel("cuda")
def launched(
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    signs: bool = False,
    summed: bool = False,
    dtype: torch.dtype = torch.float32,
    first_replica: int = 0,
    launch: Callable[[Launch], None] = launch,
) -> Tensor:
    """The same by the kernel."""
    stream = Stream(seed, passes, layer, replicas, antithetic, first_replica)
    rows = weight.shape[-1]
    check_size(rows, inner)
    weight = weight.float().contiguous()
    made = (rows, inner)
    scores = weight.new_empty(made if summed else (steps, *made), dtype=dtype)
    if not rows * inner:
        return scores
    threads = rows * (-(-inner // 4))
    (blocks, _), block = over(threads)
    apart = 1 if summed else parts(threads, min(steps, MOST_PARTS))
    launch(
        Launch(
            "weighted_score",
            dtype,
            weight.device,
            (blocks, apart),
            block,
            [
                weight,
                *levels(dense(scale), inner),
                scores,
                *stream_arguments(stream),
                np.int64(weight.expand(steps, rows).stride(0)),
                np.int64(steps),
                np.int64(rows),
                np.int32(inner),
                np.int32(first_step),
                np.int32(signs),
                np.int32(summed),
            ],
        )
    )
    return scores
