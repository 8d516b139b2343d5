"""What each row is charged with, written out row by row."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from nit_snn.estimators.baselines import INDEPENDENT
from nit_snn.estimators.credit import KINDS
from nit_snn.estimators.estimator import Estimator
from nit_snn.estimators.residual import FixedResidual
from nit_snn.estimators.scores import NoiseScore
from nit_snn.training.distributed import ALONE, Ranks

REPLICAS, SAMPLES, STEPS = 6, 2, 3


def weights(losses: Tensor, ranks: Ranks = ALONE, per_step: bool = False) -> Tensor:
    """What multiplies the scores, in the losses' shape."""
    found, parts = NoiseScore(), (KINDS["none"], FixedResidual(1.0), INDEPENDENT)
    estimator = Estimator(found, "leave-one-out", *parts, per_step, ranks)
    trace = SimpleNamespace(replicas=REPLICAS, active=[])
    return estimator._weigh(trace, losses, set())[0]


def charged(losses: Tensor, rows: int) -> Tensor:
    """(C * B,)."""
    found = torch.zeros(REPLICAS, SAMPLES)
    of = losses.view(REPLICAS, SAMPLES)
    for c in range(REPLICAS):
        others = [d for d in range(REPLICAS) if d != c]
        for b in range(SAMPLES):
            found[c, b] = (of[c, b] - sum(of[d, b] for d in others) / len(others)) / rows
    return found.flatten()


def test_a_row_is_compared_with_the_other_replicas_of_its_sample() -> None:
    losses = torch.rand(REPLICAS * SAMPLES)
    torch.testing.assert_close(weights(losses), charged(losses, REPLICAS * SAMPLES))


def test_rows_of_other_processes_count_in_the_mean() -> None:
    losses = torch.rand(REPLICAS * SAMPLES)
    wanted = charged(losses, 3 * REPLICAS * SAMPLES)
    torch.testing.assert_close(weights(losses, Ranks("samples", 1, 3)), wanted)


def test_a_step_is_charged_with_what_comes_later() -> None:
    losses = torch.rand(STEPS, REPLICAS * SAMPLES)
    each = torch.stack([charged(step, REPLICAS * SAMPLES) for step in losses])
    wanted = torch.stack([each[step:].sum(0) for step in range(STEPS)])
    torch.testing.assert_close(weights(losses, per_step=True), wanted)


def test_an_empty_batch_is_charged_with_nothing() -> None:
    assert weights(torch.zeros(0)).shape == (0,)
