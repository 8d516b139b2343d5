"""`A * score * scale` with the noise drawn again, in torch: what the kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from ....noise.philox import Stream, noise
from ...lif import sign
from ..noisy_lif.reference import spread


def weighted_score(
    weight: Tensor,
    scale: Tensor,
    stream: Stream,
    inner: int,
    steps: int,
    first_step: int = 0,
    signs: bool = False,
    summed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What multiplies `dm/dtheta` in Eq. 8, in Eq. 3 with `signs`, at some steps of a layer.

    The score is eps, or its sign, +1 for zero.

    Args:
        weight: A, float32, (N,), or (T, N), one for each step. It is over the number of rows
            already, so that much of the result may be too small for float16, and a large loss
            too large; nothing is rescaled.
        scale: 1-D, one number, or one for each F / n neighbours: gain / sigma, or 1 for signs.
        stream: Whose noise.
        inner: F, how many neurons a row has.
        steps: T.
        first_step: Number of the first step, counted from the layer's first call in the pass.
        signs: Take the signs of the noise (NIT-S).
        summed: Add the steps up, in float32.
        dtype: Of the result: float32, float16 or bfloat16.

    Returns:
        (T, N, F), or (N, F) if `summed`.
    """
    rows = weight.shape[-1]
    score = noise(stream, range(first_step, first_step + steps), rows, inner)
    if signs:
        score = sign(score)
    own = weight.float().expand(steps, rows).unsqueeze(-1)
    found = own * score * spread(scale.float(), inner)
    return (found.sum(0) if summed else found).to(dtype)
