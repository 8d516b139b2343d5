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
from ..noisy_lif.reference import Dynamics
from ..replay import replay_arguments, replay_of
from .reference import check
from .reference import weighted_score as reference


@torch.library.custom_op("nit_snn::weighted_score", mutates_args=())
def weighted_score(
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    layers: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    signs: bool = False,
    summed: bool = False,
    dtype: torch.dtype = torch.float32,
    current: Tensor | None = None,
    state: Tensor | None = None,
    decay: Tensor | None = None,
    gain: Tensor | None = None,
    threshold: Tensor | None = None,
    sigma: Tensor | None = None,
    rest: float = 0.0,
    v_reset: float = 0.0,
    reset: str = "none",
    delayed: bool = False,
    or_equal: bool = False,
    first_replica: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `reference.weighted_score`; with a `current`, the scores are conditioned on the spikes.

    The arguments from `current` on are those of `nit_snn.dynamics.kernels.replay.Replay`. The state
    it leaves behind is the second result, so that the next call can go on from there.

    Raises:
        ValueError: `signs` with a `current`, or a `current` without the neurons' parameters.
    """
    dynamics = Dynamics(rest, v_reset, reset, delayed, or_equal)
    replay = replay_of(current, state, decay, gain, threshold, sigma, dynamics)
    stream = Stream(seed, passes, layer, layers, replicas, antithetic, first_replica)
    return reference(weight, scale, stream, inner, steps, first_step, signs, summed, dtype, replay)


@weighted_score.register_fake
def _fake(
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    layers: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    signs: bool = False,
    summed: bool = False,
    dtype: torch.dtype = torch.float32,
    current: Tensor | None = None,
    state: Tensor | None = None,
    decay: Tensor | None = None,
    gain: Tensor | None = None,
    threshold: Tensor | None = None,
    sigma: Tensor | None = None,
    rest: float = 0.0,
    v_reset: float = 0.0,
    reset: str = "none",
    delayed: bool = False,
    or_equal: bool = False,
    first_replica: int = 0,
) -> tuple[Tensor, Tensor]:
    made = (weight.shape[-1], inner)
    return (
        weight.new_empty(made if summed else (steps, *made), dtype=dtype),
        weight.new_empty(0 if current is None else made, dtype=torch.float32),
    )


@weighted_score.register_kernel("cuda")
def launched(
    weight: Tensor,
    scale: Tensor,
    passes: Tensor,
    seed: int,
    layer: int,
    layers: int,
    replicas: int,
    antithetic: bool,
    inner: int,
    steps: int,
    first_step: int,
    signs: bool = False,
    summed: bool = False,
    dtype: torch.dtype = torch.float32,
    current: Tensor | None = None,
    state: Tensor | None = None,
    decay: Tensor | None = None,
    gain: Tensor | None = None,
    threshold: Tensor | None = None,
    sigma: Tensor | None = None,
    rest: float = 0.0,
    v_reset: float = 0.0,
    reset: str = "none",
    delayed: bool = False,
    or_equal: bool = False,
    first_replica: int = 0,
    launch: Callable[[Launch], None] = launch,
) -> tuple[Tensor, Tensor]:
    """The same by the kernel."""
    dynamics = Dynamics(rest, v_reset, reset, delayed, or_equal)
    replay = replay_of(current, state, decay, gain, threshold, sigma, dynamics)
    stream = Stream(seed, passes, layer, layers, replicas, antithetic, first_replica)
    check(signs, replay)
    rows = weight.shape[-1]
    check_size(rows, inner)
    weight = weight.float().contiguous()
    made = (rows, inner)
    scores = weight.new_empty(made if summed else (steps, *made), dtype=dtype)
    last = weight.new_empty(0 if replay is None else made)
    if not rows * inner:
        return scores, last
    threads = rows * (-(-inner // 4))
    (blocks, _), block = over(threads)
    apart = 1 if summed or replay is not None else parts(threads, min(steps, MOST_PARTS))
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
                None if replay is None else last,
                *replay_arguments(replay, steps, rows, inner),
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
    return scores, last
