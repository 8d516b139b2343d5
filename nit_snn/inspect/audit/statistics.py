"""Cosines and norm ratios of expected gradients, from noisy and independent estimates of them.

The cosine of two noisy estimates is too small and the norm of one too large, since noise adds to
`|g|^2`. Here every product is taken between different, independent estimates, so `<g, s>`,
`|g|^2` and `|s|^2` are U-statistics without bias. Their covariance comes from the delete-one
jackknife, which for such quadratic statistics errs on the wide side (Efron and Stein 1981), and
intervals of their quotients from Fieller's theorem with Student's t (Fieller 1954): the interval is
bounded exactly when the denominator can be separated from zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from torch import Tensor

#: The name that all compared layers together go by.
WHOLE = "whole network"
# Why a cosine may be missing.
UNRESOLVED = "unresolved"
ZERO = "surrogate ~ 0"
NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def clipped(self, low: float, high: float) -> Interval:
        """The same, within what the quantity can be at all."""
        return Interval(*(min(max(x, low), high) for x in (self.value, self.low, self.high)))

    def root(self) -> Interval:
        """The interval of the square root; what is negative counts as zero."""
        return Interval(*(math.sqrt(max(x, 0.0)) for x in (self.value, self.low, self.high)))


@dataclass(frozen=True, eq=False)
class Jackknife:
    """A statistic of n independent estimates.

    Attributes:
        value: The statistic.
        left_out: The statistic without estimate i, float64, (n,).
    """

    value: float
    left_out: Tensor

    def covariance(self, other: Jackknife) -> float:
        """The jackknife covariance of two statistics of the same estimates."""
        n = len(self.left_out)
        ours, theirs = (x.left_out - x.left_out.mean() for x in (self, other))
        return (n - 1) / n * float(ours @ theirs)

    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.covariance(self))

    def scaled(self, factor: float) -> Jackknife:
        return Jackknife(factor * self.value, factor * self.left_out)

    def minus(self, other: Jackknife) -> Jackknife:
        return Jackknife(self.value - other.value, self.left_out - other.left_out)

    def plus(self, other: Jackknife) -> Jackknife:
        return Jackknife(self.value + other.value, self.left_out + other.left_out)

    def exceeds_zero(self, quantile: float) -> bool:
        """Whether it is positive beyond doubt."""
        return self.value > quantile * self.error()

    def interval(self, quantile: float) -> Interval:
        """value +- quantile * standard error."""
        half = quantile * self.error()
        return Interval(self.value, self.value - half, self.value + half)


def mean_product(gram: Tensor) -> Jackknife:
    """The mean product of two different estimates, unbiased for the product of what they estimate.

    Args:
        gram: (n, n), products of estimates i and j; those with i = j are left out. Or (n, 1),
            products with one vector that is known exactly; or (1, 1), of that with itself.
    """
    n, columns = gram.shape
    if n == 1:
        return Jackknife(gram.item(), gram.flatten())
    if columns == 1:
        total = gram.sum()
        return Jackknife(float(total / n), (total - gram.flatten()) / (n - 1))
    products = gram - gram.diag().diag()
    sums = products.sum(0) + products.sum(1)
    total = products.sum()
    return Jackknife(float(total / (n * (n - 1))), (total - sums) / ((n - 1) * (n - 2)))


def mean_square(gram: Tensor) -> Jackknife:
    """The mean of `|g_i|^2`, from the products of estimates, (n, n)."""
    squares, n = gram.diag(), len(gram)
    total = squares.sum()
    return Jackknife(float(total / n), (total - squares) / (n - 1))


def fieller(numerator: Jackknife, denominator: Jackknife, quantile: float) -> Interval:
    """The quotient q with all its values for which `numerator - q * denominator` could be zero.

    Unbounded if the denominator is not positive beyond doubt.
    """
    top, bottom, square = numerator.value, denominator.value, quantile**2
    a = bottom**2 - square * denominator.covariance(denominator)
    b = top * bottom - square * numerator.covariance(denominator)
    c = top**2 - square * numerator.covariance(numerator)
    if a <= 0:
        return Interval(top / bottom, -math.inf, math.inf)
    half = math.sqrt(max(b * b - a * c, 0.0))
    value, low, high = top / bottom, (b - half) / a, (b + half) / a
    # The value is in it, but for the rounding of an interval next to nothing.
    return Interval(value, min(low, value), max(high, value))


@dataclass(frozen=True, eq=False)
class Products:
    """What is known of two expected gradients, g and s.

    Attributes:
        gg: `|g|^2`.
        gs: `<g, s>`.
        ss: `|s|^2`.
    """

    gg: Jackknife
    gs: Jackknife
    ss: Jackknife

    @classmethod
    def of_grams(cls, gg: Tensor, gs: Tensor, ss: Tensor) -> Products:
        """From the products of estimates: (n, n), (n, n) or (n, 1), (n, n) or (1, 1)."""
        square = mean_product(ss)
        if len(ss) == 1:
            square = Jackknife(square.value, square.left_out.expand(len(gg)))
        return cls(mean_product(gg), mean_product(gs), square)

    def obstacle(self, quantile: float) -> str | None:
        """Why there is no cosine: one of the reasons above, or None if there is one."""
        if not self.gg.exceeds_zero(quantile):
            return UNRESOLVED
        if not math.isfinite(self.ss.value):
            return NOT_FINITE
        return None if self.ss.exceeds_zero(quantile) else ZERO

    def cosine(self, quantile: float) -> Interval | None:
        """`<g, s> / (|g| |s|)`; None if there is an obstacle."""
        if self.obstacle(quantile):
            return None
        return fieller(self.gs, self._norms(), quantile).clipped(-1.0, 1.0)

    def norm_ratio(self, quantile: float) -> Interval | None:
        """`|s| / |g|`; None if g cannot be separated from zero, or s is not finite."""
        if self.obstacle(quantile) in (UNRESOLVED, NOT_FINITE):
            return None
        return fieller(self.ss, self.gg, quantile).root()

    def norm(self, quantile: float) -> Interval | None:
        """`|g|`; None if it cannot be separated from zero."""
        return self.gg.interval(quantile).root() if self.gg.exceeds_zero(quantile) else None

    @property
    def hopeless(self) -> bool:
        """Whether no further estimate can bring a cosine: s is zero for sure, or not finite."""
        return not math.isfinite(self.ss.value) or self.ss.value == self.ss.error() == 0

    def lead(self, other: Products, quantile: float) -> Interval | None:
        """This cosine minus the other's, from the same estimates of g; None as in `cosine`."""
        if self.obstacle(quantile) or other.obstacle(quantile):
            return None
        return self._linear_cosine().minus(other._linear_cosine()).interval(quantile)

    def _norms(self) -> Jackknife:
        """`|g| |s|`, to first order in what a single estimate adds."""
        value = math.sqrt(self.gg.value * self.ss.value)
        relative = self.gg.left_out / self.gg.value + self.ss.left_out / self.ss.value
        return Jackknife(value, value / 2 * relative)

    def _linear_cosine(self) -> Jackknife:
        norms = self._norms()
        cosine = self.gs.value / norms.value
        rest = self.gs.scaled(1 / norms.value).minus(norms.scaled(cosine / norms.value))
        return Jackknife(cosine, rest.left_out + cosine)


@cache
def t_quantile(confidence: float, dof: int) -> float:
    """The t with `P(|T| < t) = confidence`, T Student's with `dof` degrees of freedom."""
    low, high = 0.0, 1.0
    while _t_probability(high, dof) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, dof) < confidence else (low, middle)
    return high


def _t_probability(t: float, dof: int) -> float:
    """`P(|T| < t)` for whole numbers of degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(dof))
    odd = dof % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, dof, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Products of all rows of a, (n, P), with all rows of b, (m, P), in float64."""
    return (a.double() @ b.double().T).cpu()
