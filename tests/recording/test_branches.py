"""Two steps that start from one and the same membrane."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons


class Branch(nn.Module):
    """A step, and two that go on from it, each with noise of its own."""

    def __init__(self, reset: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.synapse = nn.Linear(2, 3)
        self.neurons = snn.Leaky(beta=0.9, threshold=0.6, reset_mechanism=reset)

    def forward(self, x: Tensor) -> Tensor:
        current = self.synapse(x)
        _, start = self.neurons(current, self.neurons.reset_mem())
        first, _ = self.neurons(current, start)
        second, _ = self.neurons(0.5 * current, start)
        return first.sum(1) * second.sum(1)


@pytest.mark.montecarlo
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_membrane_is_asked_by_all_that_start_from_it(reset: str) -> None:
    """Conditioned or not, the mean of 100,000 rows: 10% is three standard errors, or more."""
    found = []
    for conditional in (False, True):
        net = swap_neurons(Branch(reset), sigma=0.5)
        learner = NITLearner(net, replicas=100, credit="none", seed=1, conditional=conditional)
        with learner.record():
            losses = net(learner.expand(torch.tensor([[0.4, -0.3]]).repeat(1000, 1)))
        learner.backward(losses)
        found.append(net.synapse.bias.grad)
    torch.testing.assert_close(*found, rtol=0.1, atol=0)
