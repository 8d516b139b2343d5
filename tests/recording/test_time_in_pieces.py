"""However many steps are weighed at once, the gradient is the same."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import nit_snn.dynamics.torch_executor
from nit_snn import NITLearner, swap_neurons


def gradients(rule: str, x: Tensor) -> list[Tensor | None]:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(5, 7), neuron.LIFNode(v_threshold=0.3), layer.Linear(7, 3))
    functional.set_step_mode(net, "m")
    learner = NITLearner(swap_neurons(net, sigma=0.5), replicas=4, credit="none", rule=rule, seed=1)
    with learner.record():
        losses = net(learner.expand(x, dim=1)).sum(0).square().sum(1)
    learner.backward(losses)
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("rule", ["nit", "nit-s"])
@pytest.mark.parametrize("steps", [1, 2])
def test_steps_of_spikes_among_others_are_no_spikes(
    rule: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an input counts as spikes, whose silence has a sign, is told from all of it."""
    x = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(2)) - 0.5
    x[:2] = (x[:2] > 0).float()
    monkeypatch.setattr(nit_snn.dynamics.torch_executor, "_AT_ONCE", steps * 24 * 7)
    found = gradients(rule, x)
    monkeypatch.undo()
    torch.testing.assert_close(found, gradients(rule, x))
