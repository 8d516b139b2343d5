"""Noise from a shared table: no number twice in a pass, and the same when read again."""

from __future__ import annotations

import pytest
import torch
from conftest import SnnTorchNet

import nit_snn.noise.table as module
from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError
from nit_snn.noise.table import NoiseTable, TableNoise


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 64)


def calls(noise: TableNoise, count: int, rows: int = 8, inner: int = 5) -> list[torch.Tensor]:
    return [
        noise.draw((rows, inner), index=0, layer=layer, call=call, layers=2)
        for call in range(count)
        for layer in range(2)
    ]


@pytest.mark.parametrize("index", range(20))
def test_no_number_is_used_twice_in_a_pass(index: int) -> None:
    """Also where the table ends, and where it has to grow: 800 numbers from one of 256."""
    drawn = torch.cat([x.flatten() for x in calls(TableNoise(NoiseTable(1, 256), index, 4), 10)])
    assert len(drawn.abs().unique()) == drawn.numel()


def test_reading_again_gives_the_same() -> None:
    noise = TableNoise(NoiseTable(1, 256), 3, 4)
    first = calls(noise, 10)
    for a, b in zip(first, calls(noise, 10), strict=True):
        assert torch.equal(a, b)
    grown = noise.table
    for a, b in zip(*(calls(TableNoise(grown, 3, 4), 2) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


def test_what_is_read_can_be_written_to() -> None:
    noise = TableNoise(NoiseTable(1, 256), 3, 4)
    first = calls(noise, 1)[0]
    kept = first.clone()
    first.zero_()
    assert torch.equal(calls(noise, 1)[0], kept)


def test_passes_read_other_numbers_in_other_places() -> None:
    table = NoiseTable(1, 2**12)
    first, second = (calls(TableNoise(table, index, 4), 1)[0] for index in (0, 1))
    assert not (first.abs() == second.abs()).any()


def test_antithetic_noise_is_as_ever() -> None:
    pairs = calls(TableNoise(NoiseTable(1, 2**12), 0, 4, antithetic=True), 1)[0]
    assert torch.equal(pairs[:4], -pairs[4:])


@pytest.mark.full
@pytest.mark.montecarlo
def test_over_the_tables_it_is_standard_normal_and_independent() -> None:
    """20,000 tables of 128 numbers, 40 of them read in a pass: moments and correlations within 5
    standard errors each, some 900 numbers (p < 1e-3 in all, at fixed seeds)."""
    drawn = torch.stack(
        [
            torch.cat([x.flatten() for x in calls(TableNoise(NoiseTable(s, 128), 5, 2), 2, 2)])
            for s in range(20000)
        ]
    )
    error = 20000**-0.5
    assert drawn.mean(0).abs().max() < 5 * error
    assert (drawn.square().mean(0) - 1).abs().max() < 5 * 2**0.5 * error
    products = drawn.T @ drawn / 20000
    assert (products - torch.diag(products.diag())).abs().max() < 5 * error


def test_an_empty_batch_takes_nothing() -> None:
    noise = TableNoise(NoiseTable(1, 256), 3, 4)
    assert noise.draw((0, 5), index=0, layer=0, call=0, layers=2).shape == (0, 5)
    fresh = TableNoise(NoiseTable(1, 256), 3, 4)
    where = {"index": 0, "layer": 1, "call": 0, "layers": 2}
    assert torch.equal(noise.draw((8, 5), **where), fresh.draw((8, 5), **where))


def learn(learner: NITLearner, passes: int) -> list[torch.Tensor]:
    found = []
    for _ in range(passes):
        learner.net.zero_grad()
        with learner.record():
            out = learner.net(learner.expand(torch.ones(3, 4)))
        learner.backward(out.square().sum(1))
        found.append(learner.net.fc1.weight.grad.clone())
    return found


def test_a_learner_that_draws_again_gives_the_same() -> None:
    net, found = swap_neurons(SnnTorchNet(steps=5)), []
    for recompute in (False, True):
        learner = NITLearner(
            net, replicas=4, credit="none", seed=2, noise_reuse=True, recompute=recompute
        )
        found += learn(learner, 1)
        learner.close()
    torch.testing.assert_close(*found)


def test_a_resumed_learner_reads_on() -> None:
    net = swap_neurons(SnnTorchNet(steps=5))
    learner = NITLearner(net, replicas=8, credit="none", seed=2, noise_reuse=True)
    learner._session.source.table.blocks = 2  # so that it has grown when it is saved
    learn(learner, 2)
    saved = learner.state_dict()
    wanted = learn(learner, 1)[0]
    learner.close()
    other = NITLearner(net, replicas=8, credit="none", seed=9, noise_reuse=True)
    other.load_state_dict(saved)
    assert saved["table"] > 2 and torch.equal(learn(other, 1)[0], wanted)


def test_bad_options() -> None:
    with pytest.raises(AttachError, match="noise_reuse must be True or False"):
        NITLearner(swap_neurons(SnnTorchNet()), replicas=4, noise_reuse="table")


def test_kernels_do_not_read_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")
    learner = NITLearner(swap_neurons(SnnTorchNet()), replicas=4, noise_reuse=True)
    with pytest.raises(AttachError, match="torch's backend"), learner.record():
        pass
