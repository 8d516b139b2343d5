"""The noise: what it is, and that a name gives it again."""

from __future__ import annotations

import math

import pytest
import torch

from nit_snn.noise.streams import ReplicaNoise, stream_seeds

WHERE = {"index": 5, "layer": 1, "call": 2, "layers": 3}


def test_same_name_gives_the_same_noise_in_any_order() -> None:
    source = ReplicaNoise(seed=1, replicas=4)
    first = [source.draw((8, 3), **{**WHERE, "call": call}) for call in range(3)]
    again = [ReplicaNoise(1, 4).draw((8, 3), **{**WHERE, "call": call}) for call in (2, 1, 0)]
    for a, b in zip(first, reversed(again), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", [{"index": 6}, {"layer": 0}, {"call": 3}])
def test_another_name_gives_other_noise(change: dict[str, int]) -> None:
    source = ReplicaNoise(seed=1, replicas=4)
    assert not (source.draw((8, 3), **WHERE) == source.draw((8, 3), **{**WHERE, **change})).any()


def test_another_seed_and_another_replica_give_other_noise() -> None:
    noise = ReplicaNoise(seed=1, replicas=4).draw((8, 3), **WHERE).view(4, 2, 3)
    other = ReplicaNoise(seed=2, replicas=4).draw((8, 3), **WHERE).view(4, 2, 3)
    assert not (noise == other).any()
    assert len(noise.flatten().unique()) == noise.numel()


def test_antithetic_pairs_are_exact_opposites() -> None:
    noise = ReplicaNoise(seed=1, replicas=6, antithetic=True).draw((12, 5), **WHERE).view(6, 2, 5)
    assert torch.equal(noise[:3], -noise[3:])
    assert len(noise[:3].flatten().unique()) == noise[:3].numel()


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    ReplicaNoise(seed=1, replicas=2).draw((4, 3), **WHERE)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_half_precision_is_drawn_in_float32(asked: torch.dtype, drawn: torch.dtype) -> None:
    assert ReplicaNoise(0, 2).draw((4, 3), asked, **WHERE).dtype == drawn


def test_no_two_streams_of_a_pass_share_a_seed() -> None:
    """torch keeps 32 bits of a CPU seed; a million streams of one pass must still all differ."""
    low = {seed & 0xFFFFFFFF for seed in stream_seeds(0x1234_5678_FFFF_FF00, range(1_000_000))}
    assert len(low) == 1_000_000
    assert len(set(stream_seeds(0, range(100_000)))) == 100_000


@pytest.mark.montecarlo
def test_moments_and_correlations() -> None:
    """1,000,000 draws over 10 passes x 10 calls x 10 replicas x 1,000; bounds of 5 standard
    errors on each of 4 moments and 3 correlations (two-sided, p < 4e-6 in all)."""
    source = ReplicaNoise(seed=7, replicas=10)
    noise = torch.stack(
        [
            torch.stack(
                [
                    source.draw((10, 1000), torch.float64, index=i, layer=0, call=t, layers=2)
                    for t in range(10)
                ]
            )
            for i in range(10)
        ]
    )
    n = noise.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((noise**power).mean() - expected) < 5 * math.sqrt(variance / n)
    for dim in range(3):  # neighbouring passes, calls and replicas
        product = noise * noise.roll(1, dim)
        assert abs(product.mean()) < 5 / math.sqrt(n)
