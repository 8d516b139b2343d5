"""The gradient of the noise level with the noise drawn again, in torch: the kernel's oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from ....noise.philox import Stream, noise, whose
from ...firing import normal_hazard
from ..replay import Replay


def sigma_gradient(
    weight: Tensor,
    stream: Stream,
    inner: int,
    steps: int,
    first_step: int = 0,
    replay: Replay | None = None,
) -> Tensor:
    """`sum A * (eps^2 - 1)` over rows and steps; over sigma, Eq. 8's second line.

    In a replay, the mean of the score given the spike stands in for it where there is one,
    `a * phi(a) / (1 - Phi(a))`. Rows without noise in this layer add nothing.

    Args:
        weight: A, float32, (N,), or (T, N), one for each step.
        stream: Whose noise.
        inner: F, how many neurons a row has.
        steps: T.
        first_step: Number of the first step, counted from the layer's first call in the pass.
        replay: Condition on the spikes of these steps.

    Returns:
        (F,), float32.
    """
    rows = weight.shape[-1]
    eps = noise(stream, range(first_step, first_step + steps), rows, inner)
    score = eps.square() - 1
    if replay is not None:
        spikes, level, _ = replay.run(eps)
        score = torch.where(spikes, level * normal_hazard(level), score)
    noisy = whose(stream, rows)[1] != 0
    own = weight.float().expand(steps, rows).unsqueeze(-1) * noisy
    return (own * score).sum((0, 1))
