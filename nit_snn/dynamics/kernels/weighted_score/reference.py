"""`A * score * scale` with the noise drawn again, in torch: what the kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from ...lif import sign
from ....noise.philox import Stream, noise, whose
from ...firing import normal_hazard
from ..noisy_lif.reference import spread
from ..replay import Replay


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
    replay: Replay | None = None,
) -> tuple[Tensor, Tensor]:
    """What multiplies `dm/dtheta` in Eq. 8, in Eq. 3 with `signs`, at some steps of a layer.

    The score is eps; or its sign, +1 for zero; or in a replay its mean given the spike, the hazard
    `phi(a) / (1 - Phi(a))` with one and eps without. Where a row has no noise in this layer, it
    is 0.

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
        replay: Condition on the spikes of these steps.

    Returns:
        (T, N, F), or (N, F) if `summed`; and the state that a replay leaves behind, (N, F)
        float32, or an empty tensor.

    Raises:
        ValueError: `signs` with `replay`.
    """
    check(signs, replay)
    rows = weight.shape[-1]
    score = noise(stream, range(first_step, first_step + steps), rows, inner)
    last = score.new_empty(0)
    if replay is not None:
        spikes, level, last = replay.run(score)
        score = torch.where(spikes, normal_hazard(level), score)
    elif signs:
        score = sign(score)
    noisy = whose(stream, rows)[1] != 0
    own = weight.float().expand(steps, rows).unsqueeze(-1) * noisy
    found = own * score * spread(scale.float(), inner)
    return (found.sum(0) if summed else found).to(dtype), last


def check(signs: bool, replay: Replay | None) -> None:
    """Refuses the sign of a mean, which is not the mean of the sign."""
    if signs and replay is not None:
        raise ValueError("Signs of the noise are not conditioned on spikes: drop one of the two.")
