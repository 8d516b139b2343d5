"""NIT-S+: NIT-S first, then NIT."""

from __future__ import annotations

import math

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet
from torch import nn

from nit_snn import NITLearner, NITSPlus, swap_neurons


def attached(**options: object) -> NITLearner:
    return NITLearner(
        swap_neurons(SnnTorchNet()), **{"credit": "none", "replicas": 4, "seed": 1, **options}
    )


def gradient(learner: NITLearner) -> torch.Tensor:
    learner.net.zero_grad()
    learner.passes = 0
    with learner.record():
        out = learner.net(learner.expand(torch.linspace(-1, 2, 24).view(6, 4)))
    learner.backward(out.square().sum(1))
    return learner.net.fc1.weight.grad.clone()


def test_it_switches_the_estimate_without_attaching_again() -> None:
    learner = attached()
    nit = gradient(learner)
    schedule = NITSPlus(learner, after=2)
    sign = gradient(learner)
    schedule.step()
    assert torch.equal(gradient(learner), sign)
    schedule.step()
    assert learner.rule == "nit"
    assert torch.equal(gradient(learner), nit)
    assert not torch.allclose(sign, nit)


def test_on_a_plateau_it_waits_for_patience_steps_without_a_better_loss() -> None:
    learner = attached()
    schedule = NITSPlus(learner, patience=2)
    rules = []
    # 0.995 is less than a hundredth better than 1, 0.5 much, then nothing for two steps.
    for loss in (1.0, 0.995, 0.5, torch.tensor(0.6), 0.499, 0.1):
        schedule.step(loss)
        rules.append(learner.rule)
    assert rules == ["nit-s"] * 4 + ["nit"] * 2
    assert schedule.steps == 5


@pytest.mark.parametrize("scale", [100.0, -0.01])
def test_a_plateau_is_told_by_hundredths_of_the_loss(scale: float) -> None:
    schedule = NITSPlus(attached(), patience=2)
    for loss in (1.0, 0.995, 0.991) if scale > 0 else (1.0, 1.005, 1.009):
        assert not schedule.switched
        schedule.step(scale * loss)
    assert schedule.switched


@pytest.mark.parametrize("options", [{"after": 3}, {"patience": 2}])
def test_a_resumed_schedule_switches_at_the_same_step(options: dict[str, int]) -> None:
    losses = [1.0, 2.0, 3.0, 4.0, 5.0]
    whole = NITSPlus(attached(), **options)
    expected = []
    for loss in losses:
        whole.step(loss)
        expected.append(whole.learner.rule)
    for stop in range(len(losses)):
        first = NITSPlus(attached(), **options)
        for loss in losses[:stop]:
            first.step(loss)
        second = NITSPlus(attached(), **options)
        second.load_state_dict(first.state_dict())
        assert second.learner.rule == first.learner.rule
        for loss, rule in zip(losses[stop:], expected[stop:], strict=True):
            second.step(loss)
            assert second.learner.rule == rule


@pytest.mark.parametrize(
    "options", [{}, {"after": 1, "patience": 1}, {"after": 0}, {"patience": -1}], ids=str
)
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"NITSPlus takes|must be a positive integer"):
        NITSPlus(attached(), **options)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_plateau_needs_a_loss(loss: float | None) -> None:
    schedule = NITSPlus(attached(), patience=1)
    with pytest.raises(ValueError, match="finite loss"):
        schedule.step(loss)
    assert schedule.steps == 0
    assert not schedule.switched


@pytest.mark.parametrize("options", [{"conditional": True}, {"credit": "auto"}], ids=str)
def test_what_is_for_nit_alone_rests_under_the_sign_rule(options: dict[str, object]) -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return swap_neurons(
            nn.Sequential(
                nn.Linear(4, 5), snn.Leaky(beta=0.5, reset_mechanism="zero", init_hidden=True)
            )
        )

    def gradient(learner: NITLearner) -> torch.Tensor:
        learner.net.zero_grad()
        learner.passes = 0
        with learner.record():
            out = learner.net(learner.expand(torch.linspace(-1, 2, 24).view(6, 4)))
        learner.backward((out.sum(1) - 2).square())
        return learner.net[0].weight.grad.clone()

    given = {"credit": "none", "replicas": 4, "seed": 1}
    plain = NITLearner(net(), **given)
    learner = NITLearner(net(), **{**given, **options})
    schedule = NITSPlus(learner, after=1)
    plain.rule = "nit-s"
    assert torch.equal(gradient(learner), gradient(plain))
    schedule.step()
    plain.rule = "nit"
    assert not torch.allclose(gradient(learner), gradient(plain))
