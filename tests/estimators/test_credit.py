"""What each row is charged with, written out row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nit_snn.estimators.advantages import Credit
from nit_snn.estimators.baselines import INDEPENDENT
from nit_snn.training.distributed import ALONE, Ranks

REPLICAS, SAMPLES, STEPS = 6, 2, 3


def weights(losses: Tensor, ranks: Ranks = ALONE, layers: int = 1, causal: bool = False) -> Tensor:
    return Credit("leave-one-out", INDEPENDENT, ranks, layers, causal).weights(losses, REPLICAS)


def charged(losses: Tensor, rows: int, layers: int = 1) -> Tensor:
    """(C * B,), of replicas that have noise in the same one of the layers."""
    found = torch.zeros(REPLICAS, SAMPLES)
    of = losses.view(REPLICAS, SAMPLES)
    for c in range(REPLICAS):
        others = [d for d in range(REPLICAS) if d != c and d % layers == c % layers]
        for b in range(SAMPLES):
            found[c, b] = (of[c, b] - sum(of[d, b] for d in others) / len(others)) / rows
    return found.flatten()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_only_replicas_with_noise_in_the_same_layer_are_compared(layers: int) -> None:
    losses = torch.rand(REPLICAS * SAMPLES)
    wanted = charged(losses, REPLICAS * SAMPLES, layers)
    torch.testing.assert_close(weights(losses, layers=layers), wanted)


def test_rows_of_other_processes_count_in_the_mean() -> None:
    losses = torch.rand(REPLICAS * SAMPLES)
    wanted = charged(losses, 3 * REPLICAS * SAMPLES)
    torch.testing.assert_close(weights(losses, Ranks("samples", 1, 3)), wanted)


def test_a_step_is_charged_with_what_comes_later() -> None:
    losses = torch.rand(STEPS, REPLICAS * SAMPLES)
    each = torch.stack([charged(step, REPLICAS * SAMPLES) for step in losses])
    wanted = torch.stack([each[step:].sum(0) for step in range(STEPS)])
    torch.testing.assert_close(weights(losses, causal=True), wanted)


def test_an_empty_batch_is_charged_with_nothing() -> None:
    assert weights(torch.zeros(0)).shape == (0,)
