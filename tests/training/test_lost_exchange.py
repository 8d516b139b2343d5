"""Whichever exchange between processes fails, `.grad` is as it was, and the error says what to do.

One process, which takes itself for the first of two: what it exchanges comes back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import DistributedError
from nit_snn.training.distributed import Ranks, together

#: How a batch is learned from.
WAYS: dict[str, dict[str, Any]] = {
    "scores": {"credit": "none"},
    "recompute": {"credit": "none", "recompute": True},
    "conditional": {"credit": "none", "conditional": True},
    "credit": {"credit": "layers", "residual": 0},
}


#: What is added to the losses; the square root of nothing has no derivative.
BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "": torch.zeros_like,
    "loss": lambda out: out * float("nan"),
    "gradient": lambda out: (out * 0).sqrt(),
}


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Exchange:
    """Stands for `all_reduce`; the exchange of that number raises, counted from 1."""

    def __init__(self) -> None:
        self.count, self.fails, self.error = 0, 0, BaseException()

    def __call__(self, tensor: Tensor, *args: Any) -> None:
        self.count += 1
        if self.count == self.fails:
            raise self.error


@pytest.fixture
def exchange(group: None, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    made = Exchange()
    monkeypatch.setattr(dist, "all_reduce", made)
    monkeypatch.setattr(Ranks, "of", lambda shares: Ranks(shares, 0, 2))
    return made


class Readout(nn.Module):
    """A part that noise trains, and one that autograd does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = SpikingJellyNet(steps=3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def learner_of(way: str, shares: str, **options: Any) -> NITLearner:
    torch.manual_seed(0)
    net = swap_neurons(Readout(), sigma=0.8)
    return NITLearner(net, replicas=8, seed=1, shard=shares, **WAYS[way], **options)


def update(learner: NITLearner, bad: str = "") -> Tensor:
    x = torch.ones(5, 4)

    def losses_of(x: Tensor) -> Tensor:
        out = learner.net(x).sum(1)
        return out + BAD[bad](out)

    with learner.record():
        losses = losses_of(learner.expand(x))
    return learner.backward(losses)


def struck(learner: NITLearner, exchange: Exchange, bad: str = "") -> int:
    """Has one exchange after the other of an update fail; how many there are."""
    for fails in range(1, 100):
        for held in (False, True):
            exchange.count, exchange.fails, exchange.error = 0, fails, RuntimeError("gone")
            before = [torch.ones_like(p) if held else None for p in learner.parameters()]
            for p, gradient in zip(learner.parameters(), before, strict=True):
                p.grad = gradient
            try:
                update(learner, bad)
            except DistributedError:
                for p, gradient in zip(learner.parameters(), before, strict=True):
                    assert p.grad is gradient, f"exchange {fails}"
                    assert gradient is None or bool((gradient == 1).all()), f"exchange {fails}"
            else:
                assert exchange.count == fails - 1
        if exchange.count < fails:
            return exchange.count
    raise AssertionError("It never came to an end.")


@pytest.mark.parametrize("shares", ["replicas", "samples"])
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "write"])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_written(way: str, on_nonfinite: str, shares: str, exchange: Exchange) -> None:
    learner = learner_of(way, shares, on_nonfinite=on_nonfinite)
    # Whether the losses can be used, their mean, and the gradient, at the least.
    assert struck(learner, exchange) >= 3
    assert all(bool((p.grad != 1).any()) for p in learner.parameters())  # the last was whole
    assert learner.skipped == 0


@pytest.mark.parametrize("shares", ["replicas", "samples"])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("way", WAYS)
def test_nor_is_a_bad_batch_counted(way: str, bad: str, shares: str, exchange: Exchange) -> None:
    learner = learner_of(way, shares, on_nonfinite="skip")
    assert struck(learner, exchange, bad) >= 2
    assert learner.skipped == 2  # without a gradient before, and with one


def test_nor_by_an_interrupt(exchange: Exchange) -> None:
    learner = learner_of("scores", "samples", on_nonfinite="write")
    for p in learner.parameters():
        p.grad = torch.ones_like(p)
    exchange.fails, exchange.error = 3, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        update(learner)
    assert all(bool((p.grad == 1).all()) for p in learner.parameters())


def test_the_error_claims_no_more_than_is_known(group: None) -> None:
    with pytest.raises(DistributedError) as error, together():
        raise RuntimeError("unlike shapes")
    assert "Process 0 of 1" in str(error.value) and "unlike shapes. If the cause" in str(
        error.value
    )


def test_the_cause_is_told_without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "get_rank", lambda: pytest.fail("There is no rank."))
    with pytest.raises(DistributedError) as error, together():
        raise RuntimeError("it is gone")
    assert "This process could not exchange numbers with the others: it is gone" in str(error.value)
