"""How likely a noisy neuron was to do what it did: fire, or stay silent.

Its membrane is `u = m + sigma * eps`, so with `a = (threshold - m) / sigma` it fires with
probability `p = Phi(-a)`. Everything here follows from `a`, from the spike and, for what a membrane
carries on, from `eps`.

Under `conditional=True` the noise is conditioned on the spike. All that a loss of spikes knows of a
membrane's noise is whether the neuron fired, now and later. So the sample is taken apart: first the
spike, `P(s = 1) = p(m)`, then the noise given the spike, a truncated normal,
`eps = F^-1(U; m, s)` of a uniform U that no parameter touches. The score is the spike's alone,

    d log P(s) / dm = h(a) / sigma with a spike, -h(-a) / sigma without,

with the hazard `h = phi / (1 - Phi)`: next to nothing where the outcome was next to certain. What
the membrane carries on is a smooth function of m, sigma and U, and is differentiated as such:

    du/dm     = D = 1 - h(b) / h(b_eps)
    du/dsigma = eps - (1 - D) a

with `(b, b_eps) = (a, eps)` after a spike and `(-a, -eps)` otherwise; D lies between 0, at the
threshold, and 1, far from it. A likelihood ratio on the jumps and a pathwise derivative of what is
smooth: conditional Monte Carlo as in smoothed perturbation analysis (Fu and Hu 1997).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

#: From so many standard deviations on, a density is lost beside its peak in float32.
OUT_OF_REACH = math.sqrt(-2 * math.log(torch.finfo(torch.float32).eps))
_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)
_HALF_AS_POWER = -0.5 / math.log(2)
_RARE = 1e-6


class Firing:
    """What a layer did, and how likely it was; every tensor has one shape, (T, N, *) or (N, *).

    Attributes:
        spike: Whether it fired, zeros and ones.
        level: a, the distance to the threshold in units of sigma.
        noise: eps.
        wiped: Whether a spike leaves nothing of the membrane.
    """

    def __init__(
        self, spike: Tensor, level: Tensor, noise: Tensor | None = None, wiped: bool = False
    ) -> None:
        self.spike = spike
        self.level = level
        self.noise = noise
        self.wiped = wiped

    @cached_property
    def side(self) -> Tensor:
        """+1 with a spike, -1 without."""
        return self.spike.mul(2).sub_(1)

    @cached_property
    def density(self) -> Tensor:
        """phi(a); over sigma it is the derivative of p in the drift."""
        return bell_(self.level * self.level).mul_(_DENSITY_AT_0)

    @cached_property
    def likelihood(self) -> Tensor:
        """The probability of what happened: p with a spike, 1 - p without; relatively exact."""
        return (self.side * self.level).mul_(_SQRT_HALF).erfc_().mul_(0.5)

    @cached_property
    def residual(self) -> Tensor:
        """s - p, absolutely exact."""
        if "likelihood" in vars(self):
            return (1 - self.likelihood).mul_(self.side)
        half = (self.level * _SQRT_HALF).erf_()  # cheaper than erfc: p = (1 - erf) / 2
        return torch.add(self.spike, half, alpha=0.5).sub_(0.5)

    @property
    def probability(self) -> Tensor:
        """p, absolutely exact."""
        return self.spike - self.residual

    @property
    def lesser(self) -> Tensor:
        """Q(|a|), the smaller of p and 1 - p: `E[(s - p) sign(eps)]`."""
        probability = self.probability
        return torch.minimum(probability, 1 - probability)

    @cached_property
    def hazard(self) -> Tensor:
        """phi(a) over the likelihood: h(a) with a spike, h(-a) without."""
        return self.density / self.likelihood

    @cached_property
    def score(self) -> Tensor:
        """`E[eps | s]`: the score of the spike alone, without its `1 / sigma`."""
        return self.side * self.hazard

    @cached_property
    def _share(self) -> Tensor:
        """h(b) / h(b_eps): at most 1 in exact numbers, for the noise lies on the spike's side."""
        assert self.noise is not None
        return (self.hazard / normal_hazard(self.side * self.noise)).clamp_(max=1)

    @cached_property
    def decay(self) -> Tensor:
        """du/dm of what a step leaves behind, given its spike; 0 where the spike wiped it out."""
        apart = 1 - self._share
        return apart.addcmul_(apart, self.spike, value=-1) if self.wiped else apart

    @cached_property
    def level_decay(self) -> Tensor:
        """du/dsigma, likewise."""
        assert self.noise is not None
        apart = self.noise - self._share * self.level
        return apart.addcmul_(apart, self.spike, value=-1) if self.wiped else apart

    @cached_property
    def wandering(self) -> Tensor:
        """`eps - E[eps | s]`: what the membrane carries on beyond what its spike says."""
        assert self.noise is not None
        apart = self.noise - self.score
        return apart.addcmul_(apart, self.spike, value=-1) if self.wiped else apart

    @cached_property
    def silent_mean(self) -> Tensor:
        """`E[eps | s = 0] = -phi(a) / (1 - p)`, cut off where silence is next to impossible."""
        return self.density / (self.probability - 1).clamp_(max=-_RARE)

    @cached_property
    def gap(self) -> Tensor:
        """`E[eps | s = 1] - E[eps | s = 0] = phi(a) / (p (1 - p))`, cut off at both ends."""
        p = self.probability
        return self.density / (p * (1 - p)).clamp_(min=_RARE)


def normal_hazard(a: Tensor) -> Tensor:
    """`phi(a) / (1 - Phi(a))` of the standard normal.

    For a up to 9, farther than any sample of normal noise; beyond, erfc leaves the normal float32
    numbers behind.

    Example:
        >>> normal_hazard(torch.tensor([-40.0, 0.0, 9.0]))
        tensor([0.0000, 0.7979, 9.1085])
    """
    tail = torch.special.erfc(a * _SQRT_HALF)
    return bell_(a.square()).mul_(2 * _DENSITY_AT_0).div_(tail)


def without_tails(density: Tensor) -> Tensor:
    """phi(a), and exactly 0 where it is lost beside its peak in the tensor's type.

    That is from 5.6 standard deviations on, in float64 from 8.5. Adam would walk on such numbers.

    Example:
        >>> without_tails(torch.tensor([0.4, 1e-9]))
        tensor([0.4000, 0.0000])
    """
    resolution = min(torch.finfo(density.dtype).eps, torch.finfo(torch.float32).eps)
    return F.threshold(density, resolution * _DENSITY_AT_0, 0.0)


def bell_(square: Tensor) -> Tensor:
    """`exp(-a^2 / 2)` from `a^2`, in place.

    As a power of 2: torch's exp takes far longer where next to nothing comes out (timed in
    `benchmarks/step.py`).
    """
    return square.mul_(_HALF_AS_POWER).exp2_()
