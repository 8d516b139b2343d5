"""The operator `nit_snn::noisy_lif`: the kernel on CUDA, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ....noise.philox import Stream
from ...lif import RESETS, Dynamics
from ..launch import Launch, check_size, launch, levels, over, placed, stream_arguments
from .reference import noisy_lif as reference


@torch.library.custom_op("nit_snn::noisy_lif", mutates_args={"bits"})
def noisy_lif(
    current: Tensor,
    state: Tensor | None,
    bits: Tensor | None,
    decay: Tensor,
    gain: Tensor,
    threshold: Tensor,
    sigma: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    rest: float,
    v_reset: float,
    reset: str,
    delayed: bool,
    or_equal: bool,
    steps: int,
    first_step: int,
    slot: int,
    wants_membranes: bool,
    first_replica: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.noisy_lif`; without `wants_membranes` these come empty."""
    spikes, membranes, last = reference(
        current,
        state,
        bits,
        decay,
        gain,
        threshold,
        sigma,
        Dynamics(rest, v_reset, reset, delayed, or_equal),
        Stream(seed, passes, layer, replicas, antithetic, first_replica),
        steps,
        first_step,
        slot,
    )
    return spikes, membranes if wants_membranes else current.new_empty(0), last


@noisy_lif.register_fake
def _fake(
    current: Tensor,
    state: Tensor | None,
    bits: Tensor | None,
    decay: Tensor,
    gain: Tensor,
    threshold: Tensor,
    sigma: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    rest: float,
    v_reset: float,
    reset: str,
    delayed: bool,
    or_equal: bool,
    steps: int,
    first_step: int,
    slot: int,
    wants_membranes: bool,
    first_replica: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    made = (steps, *current.shape[1:])
    return (
        current.new_empty(made),
        current.new_empty(made if wants_membranes else 0),
        current.new_empty(current.shape[1:]),
    )


@noisy_lif.register_kernel("cuda")
def launched(
    current: Tensor,
    state: Tensor | None,
    bits: Tensor | None,
    decay: Tensor,
    gain: Tensor,
    threshold: Tensor,
    sigma: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    replicas: int,
    antithetic: bool,
    rest: float,
    v_reset: float,
    reset: str,
    delayed: bool,
    or_equal: bool,
    steps: int,
    first_step: int,
    slot: int,
    wants_membranes: bool,
    first_replica: int = 0,
    launch: Callable[[Launch], None] = launch,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the kernel."""
    rows, inner = current.shape[1:]
    check_size(rows, inner)
    current = placed(current)
    spikes = current.new_empty((steps, rows, inner))
    membranes = torch.empty_like(spikes) if wants_membranes else current.new_empty(0)
    last = current.new_empty((rows, inner))
    if not spikes.numel():
        return spikes, membranes, last.zero_() if state is None else last.copy_(state)
    parameters = (p.float().contiguous() for p in (decay, gain, threshold, sigma))
    stream = Stream(seed, passes, layer, replicas, antithetic, first_replica)
    grid, block = over(rows * (-(-inner // 4)))
    launch(
        Launch(
            "noisy_lif",
            current.dtype,
            current.device,
            grid,
            block,
            [
                current,
                None if state is None else placed(state.to(current.dtype)),
                *(argument for p in parameters for argument in levels(p, inner)),
                spikes,
                membranes if wants_membranes else None,
                last,
                bits,
                np.float32(rest),
                np.float32(v_reset),
                np.int32(RESETS.index(reset)),
                np.int32(delayed),
                np.int32(or_equal),
                *stream_arguments(stream),
                np.int64(rows * inner if len(current) == steps else 0),
                np.int64(steps),
                np.int64(rows),
                np.int32(inner),
                np.int32(first_step),
                np.int32(slot),
            ],
        )
    )
    return spikes, membranes, last
