"""How likely a noisy neuron was to do what it did: fire, or stay silent.

Its membrane is `u = m + sigma * eps`, so with `a = (threshold - m) / sigma` it fires with
probability `p = Phi(-a)`. Everything here follows from `a`, from the spike and, for what a membrane
carries on, from `eps`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)
_HALF_AS_POWER = -0.5 / math.log(2)


@dataclass(eq=False)
class Firing:
    """What a layer did in one call, and how likely it was; every tensor (N, *).

    Attributes:
        spike: Whether it fired, zeros and ones.
        level: a, the distance to the threshold in units of sigma.
    """

    spike: Tensor
    level: Tensor

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
        return torch.minimum(self.likelihood, 1 - self.likelihood)

    @cached_property
    def hazard(self) -> Tensor:
        """phi(a) over the likelihood: h(a) with a spike, h(-a) without."""
        return self.density / self.likelihood


def normal_hazard(a: Tensor) -> Tensor:
    """`phi(a) / (1 - Phi(a))` of the standard normal.

    For a up to 9, farther than any draw of normal noise; beyond, erfc leaves the normal float32
    numbers behind.

    Example:
        >>> normal_hazard(torch.tensor([-40.0, 0.0, 9.0]))
        tensor([0.0000, 0.7979, 9.1085])
    """
    tail = torch.special.erfc(a * _SQRT_HALF)
    return bell_(a.square()).mul_(2 * _DENSITY_AT_0).div_(tail)


def bell_(square: Tensor) -> Tensor:
    """`exp(-a^2 / 2)` from `a^2`, in place.

    As a power of 2: torch's exp takes far longer where next to nothing comes out (timed in
    `benchmarks/step.py`).
    """
    return square.mul_(_HALF_AS_POWER).exp2_()
