"""Baselines: by hand, and that none of them depends on the replica's own noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nit_snn.estimators import baselines
from nit_snn.estimators.baselines import Sharing, advantages, mean_of_others
from nit_snn.training.distributed import Ranks

PAIRS = Sharing(antithetic=True)
LOSSES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]])


def test_none_is_the_loss() -> None:
    assert torch.equal(advantages(LOSSES, "none"), LOSSES)


def test_leave_one_out_by_hand() -> None:
    expected = torch.tensor([1 - 14 / 3, 2 - 13 / 3, 4 - 11 / 3, 8 - 7 / 3])
    torch.testing.assert_close(advantages(LOSSES, "leave-one-out")[:, 0], expected)
    torch.testing.assert_close(advantages(LOSSES, "leave-one-out")[:, 1], 10 * expected)


def test_leave_one_out_leaves_the_antithetic_partner_out_too() -> None:
    expected = torch.tensor([1 - (2 + 8) / 2, 2 - (1 + 4) / 2, 4 - (2 + 8) / 2, 8 - (1 + 4) / 2])
    torch.testing.assert_close(advantages(LOSSES, "leave-one-out", PAIRS)[:, 0], expected)


def test_batch_mean_by_hand() -> None:
    total = LOSSES.sum()
    torch.testing.assert_close(advantages(LOSSES, "batch-mean"), LOSSES - (total - LOSSES) / 7)
    partner = LOSSES.roll(2, 0)
    torch.testing.assert_close(
        advantages(LOSSES, "batch-mean", PAIRS),
        LOSSES - (total - LOSSES - partner) / 6,
    )


def test_partners_are_left_out_together() -> None:
    expected = torch.tensor([(2 + 8) / 2, (1 + 4) / 2, (2 + 8) / 2, (1 + 4) / 2])
    torch.testing.assert_close(mean_of_others(LOSSES, PAIRS)[:, 0], expected)


class Others(Ranks):
    """Stands in for the processes that have the last two of four replicas."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values + LOSSES[2:].mean(0)


@pytest.mark.parametrize("baseline", ["leave-one-out", "none"])
def test_replicas_in_other_processes_are_averaged_over_too(baseline: str) -> None:
    found = advantages(LOSSES[:2], baseline, ranks=Others("replicas", 0, 2))
    torch.testing.assert_close(found, advantages(LOSSES, baseline)[:2])


@given(
    half=st.integers(2, 4),
    samples=st.integers(1, 3),
    baseline=st.sampled_from(baselines.NAMES),
    antithetic=st.booleans(),
    data=st.data(),
)
def test_a_baseline_never_sees_its_own_noise(
    half: int, samples: int, baseline: str, antithetic: bool, data: st.DataObject
) -> None:
    """Changing one loss (and its partner's) leaves the baseline of that row where it was."""
    losses = torch.rand(2 * half, samples, dtype=torch.float64)
    row, sample = data.draw(st.integers(0, 2 * half - 1)), data.draw(st.integers(0, samples - 1))
    changed = losses.clone()
    changed[row, sample] += 1.0
    if antithetic:
        changed[(row + half) % (2 * half), sample] -= 3.0
    subtracted = [x - advantages(x, baseline, Sharing(antithetic)) for x in (losses, changed)]
    torch.testing.assert_close(subtracted[0][row, sample], subtracted[1][row, sample])


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("baseline", ["leave-one-out", "batch-mean"])
def test_nothing_to_average_over_is_an_error(baseline: str, antithetic: bool) -> None:
    losses = torch.ones(2 if antithetic else 1, 1)
    with pytest.raises(ValueError, match="use more replicas"):
        advantages(losses, baseline, Sharing(antithetic))


def test_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="leave-one-out"):
        advantages(LOSSES, "median")


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_fewest_replicas_are_just_enough(antithetic: bool) -> None:
    fewest = baselines.minimal_replicas("leave-one-out", antithetic)
    assert fewest == (4 if antithetic else 2)
    assert advantages(torch.ones(fewest, 1), "leave-one-out", Sharing(antithetic)).abs().max() == 0
    with pytest.raises(ValueError, match="use more replicas"):
        advantages(torch.ones(fewest // 2, 1), "leave-one-out", Sharing(antithetic))
    for baseline in ("batch-mean", "none"):
        assert baselines.minimal_replicas(baseline, antithetic) == (2 if antithetic else 1)


def test_an_error_names_replicas_and_samples_alone() -> None:
    with pytest.raises(ValueError, match=r"among \(1, 2\) \(replicas, samples\)"):
        mean_of_others(torch.ones(1, 2, 3))
