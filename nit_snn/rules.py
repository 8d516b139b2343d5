"""What multiplies the loss: the score of a membrane's noise under each learning rule.

For `u = m + sigma * eps`, `d log p(u) / dm = eps / sigma` and
`d log p(u) / d sigma = (eps^2 - 1) / sigma` (Eq. 8). A score here is kept without its `1 / sigma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("nit", "nit-s")


@dataclass
class Scores:
    """Scores of one draw of noise, or sums over several draws; each of shape (N, *).

    Attributes:
        drift: `eps`, or `sign(eps)` under NIT-S.
        sigma: `eps^2 - 1`, if the noise level is learned.
    """

    drift: Tensor
    sigma: Tensor | None

    def __iadd__(self, other: Scores) -> Scores:
        self.drift += other.drift
        if self.sigma is not None and other.sigma is not None:
            self.sigma += other.sigma
        return self


def scores(noise: Tensor, rule: str, learn_sigma: bool) -> Scores:
    """The scores of a draw. Under "nit" the noise itself is handed on, not a copy.

    Args:
        noise: eps, (N, *).
        rule: "nit" (Eq. 8) or "nit-s" (Eq. 3, which takes the sign for the weights alone).
        learn_sigma: Whether the score of the noise level is wanted.
    """
    return Scores(
        sign(noise) if rule == "nit-s" else noise,
        noise.square() - 1 if learn_sigma else None,
    )


def conditional_scores(noise: Tensor, spike: Tensor, level: Tensor, learn_sigma: bool) -> Scores:
    """The scores' means given the spikes (Rao-Blackwell), for membranes that a spike wipes out.

    With a spike, that is `eps > a`, `E[eps | eps > a] = h(a)` and `E[eps^2 - 1 | eps > a] = a h(a)`
    with the hazard `h(a) = phi(a) / (1 - Phi(a))`; without one, the draw itself lives on in
    the membrane, and its score stays as it is.

    Args:
        noise: eps, (N, *).
        spike: Whether the neuron fired, bool, (N, *).
        level: a = (threshold - m) / sigma, (N, *).
        learn_sigma: Whether the score of the noise level is wanted.
    """
    hazard = normal_hazard(level)
    return Scores(
        torch.where(spike, hazard, noise),
        torch.where(spike, level * hazard, noise.square() - 1) if learn_sigma else None,
    )


def normal_hazard(a: Tensor) -> Tensor:
    """`phi(a) / (1 - Phi(a))` of the standard normal, without overflow or cancellation.

    Example:
        >>> normal_hazard(torch.tensor([-40.0, 0.0, 40.0]))
        tensor([ 0.0000,  0.7979, 40.0250])
    """
    return math.sqrt(2 / math.pi) / torch.special.erfcx(a / math.sqrt(2))


def weighted_score(score: Tensor, weight: Tensor, sigma: Tensor, rule: str = "nit") -> Tensor:
    """What multiplies `dm/dtheta`: `A * eps / sigma`, or `A * sign(eps)` under NIT-S.

    Args:
        score: `Scores.drift`, (N, *).
        weight: A, (N,), the loss minus its baseline over the number of rows.
        sigma: Scalar, or broadcasting to (*).
        rule: "nit" or "nit-s".

    Returns:
        (N, *).
    """
    scale = weight.to(score.dtype).view(-1, *(1,) * (score.dim() - 1))
    return score * (scale if rule == "nit-s" else scale / sigma.to(score.dtype))


def sigma_gradient(score: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 8, second line: `sum A * (eps^2 - 1) / sigma`, in the shape of `sigma`.

    Args:
        score: `Scores.sigma`, (N, *).
        weight: A, (N,).
        sigma: Scalar, or broadcasting to (*); what it is shared by is summed over.
    """
    scale = weight.to(score.dtype).view(-1, *(1,) * (score.dim() - 1))
    return (score * scale).sum_to_size(sigma.shape) / sigma.to(score.dtype)


def sign(x: Tensor) -> Tensor:
    """The sign of Eq. 3: +1 from zero on, -1 below.

    Example:
        >>> sign(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """
    return (x >= 0).to(x.dtype) * 2 - 1


def presynaptic_sign(x: Tensor) -> Tensor:
    """NIT-S's presynaptic factor: spikes 0 and 1 count as -1 and +1, real values by their sign.

    A tensor that holds nothing but zeros and ones is taken for spikes (section 3.3).

    Example:
        >>> presynaptic_sign(torch.tensor([0.0, 1.0, 1.0]))
        tensor([-1.,  1.,  1.])
        >>> presynaptic_sign(torch.tensor([0.0, 0.5, -1.0]))
        tensor([ 1.,  1., -1.])
    """
    if ((x == 0) | (x == 1)).all():
        return 2 * x - 1
    return sign(x)
