"""Each warning of a learner is given once, and points at the line of its user."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import snntorch as snn
import torch
from torch import nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import (
    BiasWarning,
    CarriedStateWarning,
    MisuseWarning,
    UnreachedParameterWarning,
)


def network(*between: nn.Module, **options: object) -> nn.Sequential:
    first, second = (snn.Leaky(beta=0.9, init_hidden=True, **options) for _ in range(2))
    return swap_neurons(nn.Sequential(nn.Linear(4, 3), first, *between, nn.Linear(3, 2), second))


def given(run: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    return [w for w in found if w.category.__module__ == "nit_snn.errors"]


def step(net: nn.Module, learner: NITLearner, expand: bool = True) -> Callable[[], None]:
    x = torch.rand(6, 4)

    def run() -> None:
        with learner.record():
            out = net(learner.expand(x) if expand else x)
        learner.backward(out.sum(1).detach())

    return run


def pointed_at(found: list[warnings.WarningMessage], kind: type[Warning]) -> list[str]:
    return [w.filename for w in found if w.category is kind]


def test_coupled_rows_and_what_no_gradient_reached_are_told_once() -> None:
    net = network(nn.BatchNorm1d(3))
    net.append(nn.Linear(2, 2))  # behind the last noisy neuron, and the loss has no graph
    learner = NITLearner(net, replicas=2)
    found = given(step(net, learner))
    assert pointed_at(found, BiasWarning) == [__file__]
    assert pointed_at(found, UnreachedParameterWarning) == [__file__]
    learner.reset()
    assert given(step(net, learner)) == []


def test_what_no_noise_can_reach_is_told_when_the_learner_is_attached() -> None:
    net = network(learn_threshold=True, reset_delay=False)
    found = given(lambda: NITLearner(net, replicas=2))
    assert pointed_at(found, UnreachedParameterWarning) == [__file__]


def test_a_membrane_that_was_carried_on_is_told_once() -> None:
    net = network()
    learner = NITLearner(net, replicas=2)
    assert given(step(net, learner)) == []
    assert pointed_at(given(step(net, learner)), CarriedStateWarning) == [__file__]
    assert given(step(net, learner)) == []


def test_parameters_that_came_later_are_told_once() -> None:
    net = network()
    learner = NITLearner(net, replicas=2)
    net[0].weight = nn.Parameter(torch.zeros(3, 4))
    assert pointed_at(given(step(net, learner)), MisuseWarning) == [__file__]
    learner.reset()
    assert given(step(net, learner)) == []


def test_a_batch_that_nobody_expanded_is_told_once() -> None:
    net = network()
    learner = NITLearner(net, replicas=2)
    found = given(step(net, learner, expand=False))
    assert pointed_at(found, MisuseWarning) == [__file__]
    learner.reset()
    assert given(step(net, learner, expand=False)) == []
