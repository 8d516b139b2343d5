"""Two steps that start from one and the same membrane."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons


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


@pytest.mark.parametrize("between", [0, 3])
def test_a_step_knows_which_one_left_its_membrane(between: int) -> None:
    net = swap_neurons(Branch("zero", between), sigma=0.5)
    learner = NITLearner(net, replicas=2, credit="time", seed=1)
    with learner.record():
        losses = net(learner.expand(torch.rand(3, 2)))
    (layer,) = learner._session.recorder.trace.active
    start, first, second = layer.segments[0], layer.segments[1], layer.segments[-1]
    assert first.origin is start and second.origin is start
    learner.backward(losses)


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
