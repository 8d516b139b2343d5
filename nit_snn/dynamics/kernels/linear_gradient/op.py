"""The operator `nit_snn::linear_gradient`: the kernel on CUDA, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....noise.philox import Stream
from ..launch import Launch, launch, levels
from ..tiles import gradient
from .reference import linear_gradient as reference


@torch.library.custom_op("nit_snn::linear_gradient", mutates_args=())
def linear_gradient(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    outputs: int,
    steps: int,
    first_step: int,
    slot: int = 0,
    first_replica: int = 0,
) -> Tensor:
    """See `reference.linear_gradient`."""
    stream = Stream(seed, passes, layer, replicas, antithetic, first_replica)
    return reference(bits, weight, scale, stream, outputs, steps, first_step, slot)


@linear_gradient.register_fake
def _fake(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    outputs: int,
    steps: int,
    first_step: int,
    slot: int = 0,
    first_replica: int = 0,
) -> Tensor:
    return weight.new_empty((outputs, bits.shape[2] + 1), dtype=torch.float32)


@linear_gradient.register_kernel("cuda")
def launched(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    outputs: int,
    steps: int,
    first_step: int,
    slot: int = 0,
    first_replica: int = 0,
    launch: Callable[[Launch], None] = launch,
) -> Tensor:
    """The same by the kernel."""
    return gradient(
        "linear_gradient",
        bits,
        weight,
        levels(scale.float().contiguous(), outputs),
        Stream(seed, passes, layer, replicas, antithetic, first_replica),
        steps,  # a unit is one
        outputs,
        steps,
        first_step,
        slot,
        launch,
    )
