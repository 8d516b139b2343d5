"""How a GPU shares out the gradient of a Linear layer: `include/tile.cuh`, seen from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...noise.philox import Stream
from .launch import MOST_PARTS, Argument, Launch, check_size, stream_arguments

_OUTPUTS, _INPUTS, _ROWS, _THREADS = 64, 256, 16, 256
# As many blocks as two rounds of a large GPU's. What they leave to be added up is 32 MiB at most.
_BLOCKS = 512
_FEWEST_UNITS = 4


def gradient(
    kernel: str,
    bits: Tensor,
    weight: Tensor,
    parameters: Sequence[Argument],
    stream: Stream,
    units: int,
    outputs: int,
    steps: int,
    first_step: int,
    slot: int,
    launch: Callable[[Launch], None],
) -> Tensor:
    """A layer's gradient with the bias as its last column, (O, I + 1), float32.

    Args:
        kernel: Which.
        bits: Presynaptic spikes, (planes, N, I) bytes.
        weight: A, (N,).
        parameters: What the kernel takes between `weight` and the sums.
        stream: Noise of the layer's outputs.
        units: How many units of work 16 rows are.
        outputs: O.
        steps: T.
        first_step: Number of the first step in the noise.
        slot: Number of the first step in the bits.
        launch: Runs it.
    """
    _, rows, inputs = bits.shape
    check_size(rows, max(outputs + _OUTPUTS, inputs + _INPUTS))
    found = (outputs, inputs + 1)
    units *= -(-rows // _ROWS)
    if not units * outputs:
        return weight.new_zeros(found, dtype=torch.float32)
    tiles = -(-outputs // _OUTPUTS) * max(1, -(-inputs // _INPUTS))
    most = min(_BLOCKS // tiles, units // _FEWEST_UNITS, MOST_PARTS)
    units_of_part = -(-units // max(1, most))
    parts = weight.new_empty((-(-units // units_of_part), *found), dtype=torch.float32)
    launch(
        Launch(
            kernel,
            torch.float32,
            weight.device,
            (tiles, len(parts)),
            _THREADS,
            [
                bits.contiguous(),
                weight.float().contiguous(),
                *parameters,
                parts,
                *stream_arguments(stream),
                np.int64(units),
                np.int64(units_of_part),
                np.int64(steps),
                np.int64(rows),
                np.int32(inputs),
                np.int32(outputs),
                np.int32(first_step),
                np.int32(slot),
            ],
        )
    )
    return parts[0] if len(parts) == 1 else parts.sum(0)
