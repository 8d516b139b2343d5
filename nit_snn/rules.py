"""What multiplies the loss: the score of the membrane under each learning rule."""

from __future__ import annotations

from torch import Tensor

NAMES = ("nit",)


def weighted_score(noise: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 8, first line, without the presynaptic activity: `A * eps / sigma`.

    This is the cotangent of the membrane's drift, since `d log p(u | m) / dm = eps / sigma` for
    `u = m + sigma * eps`.

    Args:
        noise: eps, (N, *), or a sum of eps over steps that share one drift's derivative.
        weight: A, (N,), the loss minus its baseline over the number of rows.
        sigma: Scalar, or broadcasting to (*).

    Returns:
        (N, *).
    """
    scale = weight.to(noise.dtype).view(-1, *(1,) * (noise.dim() - 1)) / sigma.to(noise.dtype)
    return noise * scale
