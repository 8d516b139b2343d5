"""The gradient of the noise level with the noise drawn again, in torch: the kernel's oracle."""

from __future__ import annotations

from torch import Tensor

from ....noise.philox import Stream, noise


def sigma_gradient(
    weight: Tensor, stream: Stream, inner: int, steps: int, first_step: int = 0
) -> Tensor:
    """`sum A * (eps^2 - 1)` over rows and steps; over sigma, Eq. 8's second line.

    Args:
        weight: A, float32, (N,), or (T, N), one for each step.
        stream: Whose noise.
        inner: F, how many neurons a row has.
        steps: T.
        first_step: Number of the first step, counted from the layer's first call in the pass.

    Returns:
        (F,), float32.
    """
    rows = weight.shape[-1]
    eps = noise(stream, range(first_step, first_step + steps), rows, inner)
    score = eps.square() - 1
    own = weight.float().expand(steps, rows).unsqueeze(-1)
    return (own * score).sum((0, 1))
