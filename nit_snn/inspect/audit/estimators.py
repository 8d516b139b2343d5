"""Independent estimates by every credit and residual of a learner, and their errors.

With d_i the estimates of one kind, and g_i independent ones of the unbiased gradient,

    |E d - g|^2       ~ mean of <d_i - g_i, d_j - g_j> over i != j,
    E |d - E d|^2     ~ mean of |d_i|^2 - mean of <d_i, d_j> over i != j.

Neither has a bias, for products of different estimates hold no sampling variance. So the first
may come out negative where it is zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import (
    BiasWarning,
    MisuseWarning,
    NITError,
    NonFiniteWeightError,
    SilentLayerWarning,
)
from ...learner import NITLearner
from .credits import CreditRow, Credits, Least, name_of
from .measurement import Measurement, with_whole
from .statistics import (
    WHOLE,
    Interval,
    Jackknife,
    fieller,
    gram,
    mean_product,
    mean_square,
    t_quantile,
)
from .subject import Gradient, Subject

#: A credit and a residual.
Kind = tuple[str, float | str]
CREDITS = ("readout", "feedback", "layers", "time")
#: Passes before the first estimate of what learns from pass to pass.
WARM_UP = 20


@dataclass(frozen=True, eq=False)
class Error:
    """Of one kind's estimates of one layer, or of all; none is relative.

    Attributes:
        squared_bias: `|E d - g|^2`.
        variance: `E |d - E d|^2`.
    """

    squared_bias: Jackknife
    variance: Jackknife

    @property
    def mean_squared(self) -> Jackknife:
        """`E |d - g|^2`."""
        return self.squared_bias.plus(self.variance)


def compare(measured: Measurement, replicas: int, confidence: float) -> Credits:
    """Draws as many estimates of every kind as there are of the unbiased gradient.

    Args:
        measured: Has those of the unbiased gradient; its own learner must be closed.
        replicas: Noisy copies of the batch in one pass.
        confidence: Of the intervals.
    """
    reference = measured.unbiased()
    n = measured.estimates
    # All kinds meet the same noise, which is not that of the reference.
    noise = measured.new_seed()
    seeds = [measured.new_seed() for _ in range(WARM_UP + n)]
    squares = {g: mean_product(m) for g, m in with_whole(_grams(reference, reference)).items()}
    found: dict[Kind, dict[str, Error]] = {}
    left_out: dict[str, str] = {}
    for kind in kinds(replicas):
        try:
            with _quietly():
                estimates = draw(measured.subject, kind, replicas, noise, seeds)
        except NonFiniteWeightError:
            raise
        except NITError as error:
            left_out[name_of(*kind)] = " ".join(str(error).split())
        else:
            found[kind] = errors(estimates, reference)
    ranked = sorted(found, key=lambda kind: found[kind][WHOLE].mean_squared.value)
    return Credits(
        rows=tuple(_rows(found, ranked, squares, t_quantile(confidence, n - 1))),
        best=_least(found, ranked, squares[WHOLE], confidence),
        left_out=left_out,
        replicas=replicas,
        estimates=n,
        warm_up=WARM_UP,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """What is to be said of the network, the reference's learner has said."""
    with warnings.catch_warnings():
        for category in (BiasWarning, MisuseWarning, SilentLayerWarning):
            warnings.simplefilter("ignore", category)
        yield


def kinds(replicas: int) -> Iterator[Kind]:
    """All that are different: "none" is the residual alone, and one replica has no "auto"."""
    yield "none", 1
    for credit in CREDITS:
        yield credit, 0
        yield credit, 1
        if replicas > 1:
            yield credit, "auto"


def draw(
    subject: Subject, kind: Kind, replicas: int, noise: int, seeds: list[int]
) -> dict[str, torch.Tensor]:
    """Independent estimates of one kind, given what it has learned before, (n, P) for each layer.

    Args:
        subject: The network and its batch.
        kind: Credit and residual.
        replicas: Noisy copies of the batch in one pass.
        noise: Seed of the neurons' noise.
        seeds: `WARM_UP` + n seeds of whatever else is random in a pass.

    Raises:
        NITError: There is no such estimate for this network and this loss.
    """
    credit, residual = kind
    options: dict[str, Any] = {"credit": credit, "residual": residual}
    learner = NITLearner(subject.net, replicas=replicas, seed=noise, **options)
    try:
        if credit == "feedback" or residual == "auto":
            for seed in seeds[:WARM_UP]:
                subject.estimate(learner, seed)
        learned = learner.state_dict()
        drawn: list[Gradient] = []
        for number, seed in enumerate(seeds[WARM_UP:], start=WARM_UP):
            learner.load_state_dict(learned)
            learner.passes = number
            drawn.append(subject.estimate(learner, seed))
    finally:
        learner.close()
    return {layer: torch.stack([d[layer] for d in drawn]) for layer in drawn[0]}


def errors(estimates: Gradient, reference: Gradient) -> dict[str, Error]:
    """Of the whole network first, then layer by layer.

    Args:
        estimates: (n, P) for each layer.
        reference: As many of the unbiased gradient, from other noise.
    """
    apart = {layer: d - reference[layer] for layer, d in estimates.items()}
    products = with_whole(_grams(estimates, estimates))
    return {
        layer: Error(
            mean_product(of), mean_square(products[layer]).minus(mean_product(products[layer]))
        )
        for layer, of in with_whole(_grams(apart, apart)).items()
    }


def _grams(a: Gradient, b: Gradient) -> dict[str, torch.Tensor]:
    return {layer: gram(a[layer], b[layer]) for layer in a}


def _rows(
    found: Mapping[Kind, Mapping[str, Error]],
    ranked: list[Kind],
    squares: Mapping[str, Jackknife],
    quantile: float,
) -> Iterator[CreditRow]:
    for kind in ranked:
        for layer, error in found[kind].items():
            square = squares[layer]

            def relative(part: Jackknife, square: Jackknife = square) -> Interval | None:
                known = square.exceeds_zero(quantile)
                return fieller(part, square, quantile) if known else None

            parts = (error.squared_bias, error.variance, error.mean_squared)
            yield CreditRow(layer, *kind, *map(relative, parts))


def _least(
    found: Mapping[Kind, Mapping[str, Error]],
    ranked: list[Kind],
    square: Jackknife,
    confidence: float,
) -> Least | None:
    n = len(square.left_out)
    quantile = t_quantile(confidence, n - 1)
    if not ranked or not square.exceeds_zero(quantile):
        return None
    # All leads hold at once (Bonferroni).
    alone = t_quantile(1 - (1 - confidence) / max(len(ranked) - 1, 1), n - 1)
    first, *others = ranked
    error = found[first][WHOLE].mean_squared
    leads = {
        name_of(*kind): found[kind][WHOLE]
        .mean_squared.minus(error)
        .scaled(1 / square.value)
        .interval(alone)
        for kind in others
    }
    return Least(*first, fieller(error, square, quantile), leads)
