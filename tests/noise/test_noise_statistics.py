"""The kernels' noise is standard normal, and independent of all that has another name.

Every test says how many numbers it draws and how likely a false alarm would be; seeds are fixed.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from nit_snn.noise.philox import Stream, noise

pytestmark = pytest.mark.montecarlo


def draw(rows: int = 64, inner: int = 64, steps: int = 64, number: int = 0, **who: int) -> Tensor:
    """(T, N, F) numbers in float64."""
    stream = Stream(**{"seed": 1, "passes": torch.tensor([number]), "replicas": 4, **who})
    return noise(stream, range(steps), rows, inner).double()


def z_of_correlation(a: Tensor, b: Tensor) -> float:
    """The correlation of independent numbers of mean 0 and variance 1, in standard errors."""
    return float((a * b).mean() * math.sqrt(a.numel()))


def size(x: Tensor) -> Tensor:
    """|x| with mean 0 and variance 1."""
    return (x.abs() - math.sqrt(2 / math.pi)) / math.sqrt(1 - 2 / math.pi)


def test_moments() -> None:
    """2^20 numbers, the first four moments within 5 standard errors (p < 3e-6)."""
    x = draw(256).flatten()
    n = len(x)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = math.sqrt(variance / n)
        assert abs(float(x.pow(power).mean()) - moment) < 5 * error, power


def test_distribution() -> None:
    """2^18 numbers against the normal distribution (Kolmogorov and Smirnov, p > 1e-4)."""
    assert stats.kstest(draw().flatten().numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("level", [2.0, 3.0, 4.0])
def test_tails(level: float) -> None:
    """2^21 numbers; how many lie beyond a level on each side, within 5 standard errors.

    66 are expected beyond the last level (p < 1e-5 in all).
    """
    x = draw(512).flatten()
    expected = len(x) * stats.norm.sf(level)
    for side in (x > level, x < -level):
        assert abs(int(side.sum()) - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("dimension", ["steps", "rows", "neurons"])
def test_neighbours_are_uncorrelated(dimension: str, apart: int) -> None:
    """2^18 numbers each, themselves and their squares, within 4.5 standard errors: 36 numbers in
    all (p < 3e-4)."""
    x = draw().movedim({"steps": 0, "rows": 1, "neurons": 2}[dimension], 0)
    assert abs(z_of_correlation(x[apart:], x[:-apart])) < 4.5
    squares = (x.square() - 1) / math.sqrt(2)
    assert abs(z_of_correlation(squares[apart:], squares[:-apart])) < 4.5


@pytest.mark.parametrize("other_quad", [0, 1])
def test_places_in_quads_are_uncorrelated(other_quad: int) -> None:
    """2^16 pairs for each two of four places in a quad, or for each of 16 in a quad and the next,
    themselves, their sizes and one with the other: 88 numbers within 5 standard errors (p < 6e-5).
    """
    quads = draw().unflatten(2, (16, 4))
    here, there = quads[:, :, : 16 - other_quad], quads[:, :, other_quad:]
    for i in range(4):
        for j in range(4) if other_quad else range(i):
            a, b = here[..., i], there[..., j]
            for left, right in ((a, b), (size(a), size(b)), (a, size(b)), (size(a), b)):
                assert abs(z_of_correlation(left, right)) < 5


@pytest.mark.parametrize(
    "other",
    [{"layer": 1}, {"seed": 2}, {"number": 1}, {"seed": 2**32 + 1}, {"first_replica": 4}],
    ids=str,
)
def test_other_names_are_independent(other: dict[str, int]) -> None:
    """2^18 pairs each within 4.5 standard errors (p < 1e-4 in all)."""
    a, b = draw(), draw(**other)
    assert not (a == b).any()
    assert abs(z_of_correlation(a, b)) < 4.5
    assert abs(z_of_correlation(size(a), size(b))) < 4.5


def test_replicas_and_samples_are_independent() -> None:
    """All pairs among 64 rows of 2^12 numbers: 2,016 correlations within 5.5 standard errors
    (p < 1e-4 in all)."""
    rows = draw(inner=256, steps=16).movedim(1, 0).flatten(1)
    correlations = rows @ rows.T / math.sqrt(rows.shape[1])
    assert float((correlations - torch.diag(correlations.diag())).abs().max()) < 5.5


def test_antithetic_replicas_are_opposite() -> None:
    drawn = draw(antithetic=True)
    assert torch.equal(drawn[:, :32], -drawn[:, 32:])
    assert torch.equal(drawn[:, :32], draw()[:, :32])


def test_numbers_do_not_depend_on_what_is_drawn_with_them() -> None:
    whole = draw(rows=24, inner=10, steps=6)
    stream = Stream(1, torch.tensor([0]), replicas=4)
    for step in range(6):
        alone = noise(stream, range(step, step + 1), 24, 10)
        assert torch.equal(alone[0].double(), whole[step])
    fewer = noise(Stream(1, torch.tensor([0]), replicas=2), range(6), 12, 10).double()
    assert torch.equal(fewer, whole[:, :12])  # six samples each
    last = noise(Stream(1, torch.tensor([0]), replicas=2, first_replica=2), range(6), 12, 10)
    assert torch.equal(last.double(), whole[:, 12:])
