"""Losses of two parts, one without a derivative: noticed, and learned from as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import functional as SF
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import BiasWarning, MisuseWarning

X = torch.linspace(0, 1, 15).view(5, 3)
Y = torch.tensor([0, 1, 1, 0, 1])


class Net(nn.Module):
    """(T, N, 2) output spikes, over three steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(3, 6), nn.Linear(6, 2)
        self.fc1.weight.data *= 2
        self.fc2.weight.data *= 3
        self.lif1, self.lif2 = snn.Leaky(beta=0.7), snn.Leaky(beta=0.7)
        swap_neurons(self, sigma=0.4)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, found = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(3):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
            found.append(spikes)
        return torch.stack(found)


Loss = Callable[[Tensor, Tensor], Tensor]


def wrong(out: Tensor, y: Tensor) -> Tensor:
    return (out.sum(0).argmax(1) != y).float()


def price(out: Tensor) -> Tensor:
    return 0.1 * out.sum((0, 2))


def in_place(out: Tensor, y: Tensor) -> Tensor:
    losses = price(out)
    losses += wrong(out, y)
    return losses


MIXED: dict[str, Loss] = {
    "a sum": lambda out, y: wrong(out, y) + price(out),
    "a difference": lambda out, y: price(out) - (out.sum(0).argmax(1) == y).float(),
    "weighted": lambda out, y: 3.0 * wrong(out, y) + 2 * price(out),
    "in place": in_place,
    "stacked": lambda out, y: torch.stack([wrong(out, y), price(out)], 1).mean(1),
    "a sum of many": lambda out, y: sum([price(out), wrong(out, y), price(out) ** 2]),
    "rounded": lambda out, y: torch.round(out.mean((0, 2))) + price(out),
    "one minus": lambda out, y: 1 - (out.sum(0).argmax(1) == y).double() + price(out),
    "entropy and wrong": lambda out, y: (
        F.cross_entropy(out.sum(0), y, reduction="none") + wrong(out, y)
    ),
}


def hinge(out: Tensor, y: Tensor) -> Tensor:
    margin = 1 - out.sum(0).gather(1, y[:, None])[:, 0]
    return (margin > 0).float() * margin


def hubers(out: Tensor, y: Tensor) -> Tensor:
    apart = out.mean(0)[:, 0] - y
    return torch.where(apart.abs() < 0.5, apart.square() / 2, apart.abs() / 2 - 0.125)


def hardest(out: Tensor, y: Tensor) -> Tensor:
    scores = out.sum(0)
    rival = scores.masked_fill(F.one_hot(y, 2).bool(), -9).argmax(1)
    return scores.gather(1, rival[:, None])[:, 0] - scores.gather(1, y[:, None])[:, 0]


def policy(out: Tensor, y: Tensor) -> Tensor:
    scores = out.sum(0)
    with torch.no_grad():
        reward = (torch.multinomial(scores.softmax(1), 1)[:, 0] == y).float()
    value = out.mean((0, 2))
    return -reward * scores.log_softmax(1)[:, 0] + (value - reward).square()


def logged(out: Tensor, y: Tensor) -> Tensor:
    accuracy = (out.sum(0).argmax(1) == y).float().mean()
    assert accuracy >= 0
    return F.cross_entropy(out.sum(0), y, reduction="none")


def straight_through(out: Tensor, y: Tensor) -> Tensor:
    rate = out.mean((0, 2))
    return (rate + (torch.round(rate) - rate).detach() - 0.3).square()


def shifted(out: Tensor, y: Tensor) -> Tensor:
    scores = out.sum(0)
    scores = scores - scores.max(1, keepdim=True).values.detach()
    return scores.exp().sum(1).log() - scores[torch.arange(len(y)), y]


RIGHT: dict[str, Loss] = {
    "cross entropy": lambda out, y: F.cross_entropy(out.sum(0), y, reduction="none"),
    "mean square": lambda out, y: F.mse_loss(
        out.mean(0), F.one_hot(y, 2).float(), reduction="none"
    ).mean(1),
    "margins": lambda out, y: F.multi_margin_loss(out.sum(0), y, reduction="none"),
    "counts": lambda out, y: (out.sum(0) - 2).square().sum(1) + price(out),
    "a hinge by hand": hinge,
    "Huber's by hand": hubers,
    "the hardest rival": hardest,
    "policy gradient": policy,
    "an accuracy that is logged": logged,
    "a softmax by hand": shifted,
    "a straight-through rounding is meant": straight_through,
    "detached": lambda out, y: (out.sum(0).detach().argmax(1) != y).float() + price(out),
    "clamped": lambda out, y: (1 - out.sum(0)[:, 0]).clamp(min=0) + price(out),
    "snnTorch's count loss": lambda out, y: torch.stack(
        [SF.mse_count_loss()(out[:, i : i + 1], y[i : i + 1]) for i in range(len(y))]
    ),
}


def learned(loss: Loss, passes: int = 2, **options: Any) -> tuple[Net, NITLearner, list[Any]]:
    net = Net()
    learner = NITLearner(net, seed=0, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(passes):
            net.zero_grad()
            with learner.record():
                xr, yr = learner.expand(X, Y)
                losses = loss(net(xr), yr)
            learner.backward(losses)
    found = [w for w in caught if "A part of the losses" in str(w.message)]
    return net, learner, found


@pytest.mark.parametrize("name", MIXED)
def test_a_part_without_a_derivative_is_noticed_once(name: str) -> None:
    """The choice falls on the likelihood ratio, as for losses without any derivative."""
    _, learner, found = learned(MIXED[name])
    assert [w.category for w in found] == [MisuseWarning]
    assert found[0].filename == __file__
    assert "argmax" in str(found[0].message) or "round" in str(found[0].message)
    assert learner._choice.kind == "none" and learner.replicas == 16


@pytest.mark.parametrize("name", RIGHT)
def test_others_are_not_complained_of(name: str) -> None:
    _, learner, found = learned(RIGHT[name])
    assert not found
    assert learner._choice.kind == "layers"


def test_a_part_that_comes_later_is_noticed() -> None:
    count = [0]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        count[0] += 1
        return price(out) + wrong(out, y) if count[0] > 2 else price(out)

    _, learner, found = learned(loss, passes=6)
    assert len(found) == 1
    assert learner._choice.kind == "none"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"credit": "layers", "residual": 0}, True),
        ({"credit": "time", "residual": 0.5, "replicas": 4}, True),
        ({"forward_only": True, "residual": 0}, True),
        ({"credit": "layers", "residual": 1, "replicas": 4}, False),
        ({"credit": "none", "replicas": 4}, False),
    ],
    ids=str,
)
def test_a_credit_that_was_asked_for(options: dict[str, Any], told: bool) -> None:
    _, _, found = learned(MIXED["a sum"], **options)
    kind = MisuseWarning if "forward_only" in options else BiasWarning
    assert [w.category for w in found] == ([kind] if told else [])


@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "options", [{}, {"credit": "layers", "residual": 1, "replicas": 16}], ids=str
)
def test_finite_differences(options: dict[str, Any]) -> None:
    """Of both parts, along the gradient: within 4 standard errors of the mean of 40 passes.

    The first pass counts, too: "auto" has one replica there.
    """
    net, direction = Net(), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    loss = MIXED["weighted"]

    def expected(shift: float) -> float:
        torch.manual_seed(4)
        net.fc1.weight.data += shift * direction
        with torch.no_grad():
            value = loss(net(X.repeat(16000, 1)), Y.repeat(16000)).double().mean().item()
        net.fc1.weight.data -= shift * direction
        return value

    truth = (expected(0.05) - expected(-0.05)) / 0.1
    for first in (True, False):
        found = []
        learner = NITLearner(net, seed=1, **options)
        for i in range(40):
            if first and i:
                learner.close()
                learner = NITLearner(net, seed=i, **options)
            net.zero_grad()
            with warnings.catch_warnings(), learner.record():
                warnings.simplefilter("ignore")
                xr, yr = learner.expand(X.repeat(60, 1), Y.repeat(60))
                losses = loss(net(xr), yr)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                learner.backward(losses)
            found.append((net.fc1.weight.grad * direction).sum())
        learner.close()
        values = torch.stack(found)
        error = (values.std() / len(values) ** 0.5).item()
        assert abs(values.mean().item() - truth) < 4 * error + 0.02 * abs(truth), (values, truth)
