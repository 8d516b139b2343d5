"""Neurons that a swap leaves alone: named ones, and those that never fire."""

from __future__ import annotations

import copy

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, restore_neurons, swap_neurons
from nit_snn.errors import AttachError, SwapError
from nit_snn.neurons.snntorch import NoisyLeaky
from nit_snn.neurons.spikingjelly import NoisyIFNode


class Integrator(neuron.SimpleLIFNode):
    """The readout of SpikingJelly's examples of reinforcement learning."""

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        return self.v


class NeverFires(neuron.SimpleIFNode if hasattr(neuron, "SimpleIFNode") else neuron.IFNode):
    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + x

    def neuronal_fire(self) -> Tensor:
        return torch.zeros_like(self.v)


class Functional(neuron.LIFNode):
    """A node of the other kind whose step returns the membrane."""

    def single_step_functional_forward(self, inputs, states, **kwargs):
        v = states[0] + (inputs[0] - states[0]) / self.tau
        return (v,), (v,)


class LeakyIntegrator(snn.Leaky):
    def forward(self, input_: Tensor) -> Tensor:
        self.mem = self.beta * self.mem + input_ if self.mem.numel() else input_
        return self.mem


class HardReset(neuron.SimpleLIFNode):
    """Returns its membrane, but resets it where it fires: its derivative leaves out the jumps."""

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        self.neuronal_reset(self.neuronal_fire().detach())
        return self.v


class ByHand(neuron.SimpleLIFNode):
    def single_step_forward(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        return (self.v > 1).float()


SILENT = [
    Integrator(tau=2.0, decay_input=True),
    NeverFires(),
    Functional(),
    LeakyIntegrator(beta=0.9),
    neuron.NonSpikingLIFNode(tau=2.0, decode="mean-mem"),
    neuron.NoisyNonSpikingIFNode(4),
    snn.StateLeaky(0.9, 3, output=False),
]
FIRING = [HardReset(tau=2.0, decay_input=True), ByHand(tau=2.0, decay_input=True)]


@pytest.mark.parametrize("readout", SILENT, ids=lambda m: type(m).__name__)
def test_what_never_fires_is_left_as_it_is(readout: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.9), nn.Linear(3, 3), readout)
    kind, held = type(readout), dict(vars(readout))
    swap_neurons(net, sigma=0.5)
    assert type(net[1]) is NoisyLeaky and type(net[3]) is kind and vars(readout) == held
    NITLearner(net, replicas=2)


@pytest.mark.parametrize("readout", FIRING, ids=lambda m: type(m).__name__)
def test_what_fires_is_refused_and_the_way_out_is_named(readout: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.9), readout)
    with pytest.raises(SwapError, match=r"2 \((HardReset|ByHand)\).*keep="):
        swap_neurons(net)
    swap_neurons(net, keep=[type(readout)])
    assert type(net[1]) is NoisyLeaky and type(net[2]) is type(readout)


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif = nn.Linear(4, 6), snn.Leaky(beta=0.8)
        self.head = nn.ModuleDict(
            {"fc": nn.Linear(6, 1), "li": snn.Leaky(beta=0.8, reset_mechanism="none")}
        )

    def forward(self, x: Tensor) -> Tensor:
        mem, own = self.lif.reset_mem(), self.head["li"].reset_mem()
        for _ in range(4):
            spk, mem = self.lif(self.fc1(x), mem)
            _, own = self.head["li"](self.head["fc"](spk), own)
        return own


@pytest.mark.parametrize("how", ["name", "prefix", "class", "itself", "string"])
def test_keep_by_name_class_or_itself(how: str) -> None:
    net = Regressor()
    net.head["li"].__class__ = type("Li", (snn.Leaky,), {}) if how == "class" else snn.Leaky
    keep = {
        "name": ["head.li"],
        "prefix": ["head"],
        "class": [type(net.head["li"])],
        "itself": [net.head["li"]],
        "string": "head.li",
    }[how]
    kind = type(net.head["li"])
    swap_neurons(net, sigma={"lif": 0.3}, keep=keep)
    assert type(net.lif) is NoisyLeaky and type(net.head["li"]) is kind
    for again in (net, copy.deepcopy(net)):  # the mark travels with the module
        NITLearner(again, replicas=2).close()
    restore_neurons(net)
    swap_neurons(net.head, sigma=0.2) if how != "class" else None  # and is gone by now


def test_keep_that_names_nothing_changes_nothing() -> None:
    net = Regressor()
    with pytest.raises(SwapError, match=r"'lif2'.*lif \(Leaky\), head.li \(Leaky\)"):
        swap_neurons(net, keep=["lif2"])
    with pytest.raises(SwapError, match="got 3"):
        swap_neurons(net, keep=[3])
    assert type(net.lif) is snn.Leaky
    with pytest.raises(SwapError, match="Nothing to do"):
        swap_neurons(net, keep=[snn.Leaky])
    swap_neurons(net, keep=["head"])
    with pytest.raises(SwapError, match="restore_neurons"):
        swap_neurons(net, keep=["lif"])


def test_a_neuron_that_was_not_named_is_refused_by_the_learner() -> None:
    net = swap_neurons(Regressor(), keep=["head"])
    net.more = snn.Leaky(beta=0.5)
    with pytest.raises(AttachError, match=r"more \(Leaky\).*keep="):
        NITLearner(net)


@pytest.mark.parametrize("options", [{"credit": "none"}, {"residual": 1}, {"conditional": True}])
def test_behind_the_last_noisy_neuron_autograd_is_exact(options: dict) -> None:
    """The membrane's gradient in the readout is that of the plain sum, written out."""
    net = swap_neurons(Regressor(), sigma=0.5, keep="head")
    learner = NITLearner(net, replicas=4, seed=0, **options)
    spikes: list[Tensor] = []
    net.lif.register_forward_hook(lambda _m, _i, out: spikes.append(out[0].detach()))
    with learner.record():
        xr, yr = learner.expand(torch.rand(5, 4), torch.rand(5, 1))
        losses = (net(xr) - yr).square().mean(1)
    learner.backward(losses)
    weight = net.head["fc"].weight.detach().clone().requires_grad_()
    own = sum(
        0.8 ** (3 - t) * (s @ weight.T + net.head["fc"].bias.detach()) for t, s in enumerate(spikes)
    )
    (own - yr).square().mean().backward()
    torch.testing.assert_close(net.head["fc"].weight.grad, weight.grad)


def test_finite_differences_of_a_regression_by_membrane() -> None:
    """Expected loss of 20,000 rows with common random numbers; unbiased estimate of 200 passes."""
    net = swap_neurons(Regressor(), sigma=0.5, keep="head")
    net.fc1.weight.data *= 2
    x, y = torch.rand(4, 4), torch.rand(4, 1)
    direction = torch.randn_like(net.fc1.weight)
    learner = NITLearner(net, replicas=64, residual=1, seed=0)
    for _ in range(60):
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = (net(xr) - yr).square().mean(1)
        learner.backward(losses)
    learner.close()
    found = (net.fc1.weight.grad * direction).sum().item() / 60

    def expected(shift: float) -> float:
        torch.manual_seed(3)
        net.fc1.weight.data += shift * direction
        with torch.no_grad():
            loss = (net(x.repeat(10000, 1)) - y.repeat(10000, 1)).square().mean().item()
        net.fc1.weight.data -= shift * direction
        return loss

    truth = (expected(0.05) - expected(-0.05)) / 0.1
    assert abs(found - truth) < 0.1 * abs(truth) + 0.004, (found, truth)


def test_spikingjelly_integrator_in_both_modes() -> None:
    net = nn.Sequential(
        layer.Linear(4, 6),
        neuron.IFNode(),
        layer.Linear(6, 2),
        neuron.NonSpikingLIFNode(2.0, "mean-mem"),
    )
    functional.set_step_mode(net[:3], "m")
    swap_neurons(net, sigma=0.5)
    assert type(net[1]) is NoisyIFNode
    learner = NITLearner(net, replicas=4, seed=0)
    with learner.record():
        xr, yr = learner.expand(torch.rand(3, 5, 4), torch.rand(3, 5, 2), dim=1)
        losses = (net(xr) - yr[0]).square().mean(1)
    learner.backward(losses)
    assert all(p.grad is not None for p in net.parameters())


def test_a_swap_with_another_sigma_changes_sigma() -> None:
    net = swap_neurons(Regressor(), sigma=0.5, keep="head")
    swap_neurons(net, sigma=0.25)
    assert net.lif.sigma == 0.25 and type(net.head["li"]) is snn.Leaky
    swap_neurons(net, sigma={"lif": torch.full((6,), 0.1)})
    assert net.lif.sigma.shape == (6,)
    with pytest.raises(SwapError, match="lif9"):
        swap_neurons(net, sigma={"lif9": 0.1})
    with pytest.raises(SwapError, match="Nothing to do"):
        swap_neurons(net)
    learner = NITLearner(net, replicas=2, learn_sigma=True)
    level = net.lif.sigma
    swap_neurons(net, sigma=0.7)
    assert net.lif.sigma is level and torch.allclose(level, torch.full((6,), 0.7))
    with pytest.raises(SwapError, match="recorded in lif"), learner.record():
        swap_neurons(net, sigma=0.1)
    ann = swap_neurons(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), activations=True)
    assert swap_neurons(ann, sigma=0.3)[1].sigma == 0.3


def test_the_fallback_to_activations_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    swap_neurons(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert "1 (ReLU)" in capsys.readouterr().err
    swap_neurons(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), activations=True)
    assert capsys.readouterr().err == ""
    with pytest.raises(SwapError, match="no spiking neuron"):
        swap_neurons(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), activations=False)
    with pytest.raises(SwapError, match="lif"):
        swap_neurons(Regressor(), activations=True)
