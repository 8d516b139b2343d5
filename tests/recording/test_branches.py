"""Two steps that start from one and the same membrane."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.noise.streams import ReplicaNoise
from nit_snn.recording.places import Left, Places
from nit_snn.recording.provenance import Seen


class Branch(nn.Module):
    """A step, and two that go on from it, each with noise of its own.

    Args:
        reset: The reset mechanism.
        between: Steps that the first of them is followed by before the second one branches off.
    """

    def __init__(self, reset: str, between: int = 0) -> None:
        super().__init__()
        self.between = between
        torch.manual_seed(0)
        self.synapse = nn.Linear(2, 3)
        self.neurons = snn.Leaky(beta=0.9, threshold=0.6, reset_mechanism=reset)

    def forward(self, x: Tensor) -> Tensor:
        current = self.synapse(x)
        _, start = self.neurons(current, self.neurons.reset_mem())
        first, on = self.neurons(current, start)
        for _ in range(self.between):
            _, on = self.neurons(current, on)
        second, _ = self.neurons(0.5 * current, start)
        return first.sum(1) * second.sum(1)


@pytest.mark.parametrize("options", [{"credit": "time"}, {"credit": "none", "conditional": True}])
@pytest.mark.parametrize("between", [0, 3, 20])
def test_a_step_knows_which_one_left_its_membrane(between: int, options: dict[str, Any]) -> None:
    net = swap_neurons(Branch("zero", between), sigma=0.5)
    learner = NITLearner(net, replicas=2, seed=1, **options)
    with learner.record():
        losses = net(learner.expand(torch.rand(3, 2)))
    (layer,) = learner._session.recorder.trace.active
    start, first, second = layer.segments[0], layer.segments[1], layer.segments[-1]
    assert first.origin is start and second.origin is start
    learner.backward(losses)


@pytest.mark.parametrize("between", [3, 20])
def test_a_branch_far_back_is_surrogate_and_all_the_same(between: int) -> None:
    """Steps between that nothing reads change nothing, however many."""
    found = []
    for steps in (0, between):
        net = swap_neurons(Branch("zero", steps), sigma=0.5)
        learner = NITLearner(net, replicas=1, credit="time", residual=0, seed=1)
        with constant_noise(), learner.record():
            losses = net(learner.expand(torch.rand(3, 2, generator=torch.Generator())))
        learner.backward(losses)
        found.append(net.synapse.weight.grad)
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0


@contextmanager
def constant_noise() -> Iterator[None]:
    """The same at every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaNoise, "draw", lambda self, shape, dtype, **_: torch.full(shape, 0.1))
        yield


def test_only_what_somebody_holds_is_remembered() -> None:
    places, held = Places(), []
    for step in range(100):
        state = torch.full((2,), float(step))
        places.newest.append((Left(Seen(state.detach()), None, None), ref(state)))
        places.found(None)
        if step in (3, 50):
            held.append(state)
    assert all(places.found(state) is not None for state in held)
    assert places.found(held[0].detach()) is places.found(held[0])
    assert len(list(places)) <= 8 + 9
    held[0].add_(1)  # it is another now
    assert places.found(held[0]) is None
    assert places.found(torch.full((2,), 50.0)) is None


@pytest.mark.montecarlo
@pytest.mark.parametrize("between", [0, 3])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_membrane_is_asked_by_all_that_start_from_it(reset: str, between: int) -> None:
    """Conditioned or not, the mean of 100,000 rows: 10% is three standard errors, or more."""
    found = []
    for conditional in (False, True):
        net = swap_neurons(Branch(reset, between), sigma=0.5)
        learner = NITLearner(net, replicas=100, credit="none", seed=1, conditional=conditional)
        with learner.record():
            losses = net(learner.expand(torch.tensor([[0.4, -0.3]]).repeat(1000, 1)))
        learner.backward(losses)
        found.append(net.synapse.bias.grad)
    torch.testing.assert_close(*found, rtol=0.1, atol=0)
