"""More nodes of SpikingJelly: the framework's own without noise, and an unbiased gradient with."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import AttachError

if not hasattr(neuron, "SimpleIFNode"):
    pytest.skip("an older SpikingJelly has other nodes", allow_module_level=True)

NODES = {
    "simple IF": lambda: neuron.SimpleIFNode(),
    "simple IF, soft": lambda: neuron.SimpleIFNode(v_reset=None),
    "simple LIF": lambda: neuron.SimpleLIFNode(tau=2.0, decay_input=False),
    "simple LIF, decayed": lambda: neuron.SimpleLIFNode(tau=1.5, decay_input=True, v_reset=-0.2),
    "half threshold IF": lambda: neuron.HalfThresholdIFNode(),
    "QIF": lambda: neuron.QIFNode(tau=1.5),
    "QIF, soft": lambda: neuron.QIFNode(tau=1.5, v_reset=None),
    "EIF": lambda: neuron.EIFNode(tau=1.5),
    "CUBA LIF": lambda: neuron.CUBALIFNode(),
    "CUBA LIF, soft": lambda: neuron.CUBALIFNode(v_reset=None, v_decay=0.5),
}

TESTED = ["simple LIF, decayed", "half threshold IF", "QIF", "EIF", "CUBA LIF"]


class Net(nn.Module):
    def __init__(self, node: nn.Module, mode: str) -> None:
        super().__init__()
        self.fc1, self.node, self.fc2 = layer.Linear(3, 4), node, layer.Linear(4, 2)
        self.fc1.weight.data *= 3
        for module in self.children():
            module.step_mode = mode
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        if self.mode == "m":
            out = self.fc2(self.node(self.fc1(x.expand(4, *x.shape)))).square().cumsum(0).sum(0)
        else:
            steps = [self.fc2(self.node(self.fc1(x))).square() for _ in range(4)]
            out = torch.stack(steps).cumsum(0).sum(0)
        return out.sum(1)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("kind", NODES)
def test_without_noise_it_is_the_framework_s_own(kind: str, mode: str) -> None:
    node = NODES[kind]()
    node.step_mode = mode
    x = torch.randn(6, 5, 3) * 2
    plain = node(x) if mode == "m" else torch.stack([node(each) for each in x])
    left = node.v.clone()
    node.reset()
    swap_neurons(node, sigma=0.5)
    with noise_off(node):
        found = node(x) if mode == "m" else torch.stack([node(each) for each in x])
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(node.v, left)
    assert type(restore_neurons(node)) is type(NODES[kind]())
    assert 0 < plain.mean() < 1


@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "kind", ["simple LIF, decayed", "half threshold IF", "QIF", "EIF", "CUBA LIF"]
)
def test_finite_differences(kind: str) -> None:
    """12 passes of 2,048 rows each; within 15% of a difference with 80,000 rows of common noise."""
    x = torch.linspace(-1, 1, 12).view(4, 3)
    direction = torch.randn(4, 3)
    net = swap_neurons(Net(NODES[kind](), "s"), sigma=0.4)

    def expected(shift: float) -> float:
        torch.manual_seed(4)
        net.fc1.weight.data += shift * direction
        with torch.no_grad():
            loss = net(x.repeat(20000, 1)).mean().item()
        net.fc1.weight.data -= shift * direction
        return loss

    truth = (expected(0.03) - expected(-0.03)) / 0.06
    for options in ({"credit": "none"}, {"credit": "layers", "residual": 1}):
        learner = NITLearner(net, replicas=512, seed=0, **options)
        net.zero_grad()
        for _ in range(12):
            with learner.record():
                losses = net(learner.expand(x))
            learner.backward(losses)
        learner.close()
        found = (net.fc1.weight.grad * direction).sum().item() / 12
        assert abs(found - truth) < 0.15 * abs(truth) + 0.02, (options, found, truth)


@pytest.mark.parametrize("kind", NODES)
def test_both_step_modes_give_the_same_gradient(kind: str) -> None:
    def gradient(mode: str) -> Tensor:
        torch.manual_seed(3)
        net = swap_neurons(Net(NODES[kind](), mode), sigma=0.4)
        learner = NITLearner(net, replicas=4, seed=0, credit="layers", residual=1)
        with learner.record():
            losses = net(learner.expand(torch.rand(5, 3)))
        learner.backward(losses)
        return net.fc1.weight.grad

    torch.testing.assert_close(gradient("s"), gradient("m"), rtol=1e-4, atol=1e-5)


def test_curved_drifts_are_refused_where_the_estimate_would_be_biased() -> None:
    net = swap_neurons(Net(neuron.QIFNode(), "s"), sigma=0.4)
    with pytest.raises(AttachError, match="not linear"):
        NITLearner(net, replicas=4, conditional=True)
