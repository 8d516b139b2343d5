"""A surrogate of the user's own in front of a noisy layer is named."""

from __future__ import annotations

import warnings

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import surrogate
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import BiasWarning


class OwnSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        return gradient / (1 + (3 * u) ** 2)


class OwnLif(nn.Module):
    """A neuron written by hand, with a surrogate of any kind."""

    def __init__(self, spike=OwnSpike.apply) -> None:
        super().__init__()
        self.spike = spike

    def forward(self, current: Tensor, mem: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        mem = 0.8 * mem + current
        spk = self.spike(mem - 1)
        return spk, mem - spk


class Net(nn.Module):
    """`first` and `second` in any order, three steps."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.fc1, self.first = nn.Linear(4, 6), first
        self.fc2, self.second, self.fc3 = nn.Linear(6, 6), second, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = {"first": (), "second": ()}
        for name in state:
            if isinstance(getattr(self, name), snn.Leaky):
                state[name] = (getattr(self, name).reset_mem(),)
        total = 0
        for _ in range(3):
            spk, *state["first"] = self.first(self.fc1(x), *state["first"])
            spk, *state["second"] = self.second(self.fc2(spk), *state["second"])
            total = total + self.fc3(spk)
        return total


def said(net: nn.Module, passes: int = 2, **options: object) -> list[str]:
    learner = NITLearner(net, replicas=4, seed=0, **options)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(passes):
            with learner.record():
                xr, yr = learner.expand(torch.rand(5, 4), torch.randint(3, (5,)))
                losses = F.cross_entropy(net(xr), yr, reduction="none")
            learner.backward(losses)
    assert all(w.filename == __file__ for w in found)
    return [str(w.message) for w in found if w.category is BiasWarning]


def leaky() -> snn.Leaky:
    return snn.Leaky(beta=0.8)


@pytest.mark.parametrize("credit", ["auto", "none", "time"])
def test_a_home_made_neuron_in_front_is_named_once(credit: str) -> None:
    (found,) = said(swap_neurons(Net(OwnLif(), leaky()), sigma=0.5), credit=credit)
    assert "OwnSpike in first (OwnLif) in front of second" in found


def test_surrogates_called_by_hand_are_named() -> None:
    by_hand = {
        surrogate.atan(): "ATan",
        surrogate.fast_sigmoid(): "FastSigmoid",
        sj_surrogate.sigmoid.apply: "sigmoid",
    }
    for spike, name in by_hand.items():
        own = OwnLif((lambda u, s=spike: s(u, 4.0)) if name == "sigmoid" else spike)
        (found,) = said(swap_neurons(Net(own, leaky()), sigma=0.5), passes=1)
        assert name in found and "first (OwnLif)" in found


def test_between_two_noisy_layers_with_weights_of_its_own() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.own = nn.Linear(6, 6), OwnLif()

        def forward(self, x: Tensor) -> Tensor:
            return self.own(self.fc(x))[0]

    net = swap_neurons(Net(leaky(), leaky()), sigma=0.5)
    net.fc2 = nn.Sequential(Between(), nn.Linear(6, 6))
    (found,) = said(net, credit="none")
    assert "OwnSpike in fc2.0.own (OwnLif) in front of second" in found


def test_behind_the_last_noisy_layer_it_may_stand() -> None:
    assert said(swap_neurons(Net(leaky(), OwnLif()), sigma=0.5)) == []


def test_a_kept_neuron_in_front_of_a_noisy_one_is_named() -> None:
    net = swap_neurons(Net(leaky(), leaky()), sigma=0.5, keep="first")
    (found,) = said(net)
    assert "ATan in first (Leaky) in front of second" in found
    assert said(swap_neurons(Net(leaky(), leaky()), sigma=0.5, keep="second")) == []


def test_a_kept_node_of_spikingjelly_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 6), neuron.LIFNode(), nn.Linear(6, 3), neuron.LIFNode())
    swap_neurons(net, sigma=0.5, keep="1")
    (found,) = said(net, passes=1)
    assert "in 1 (LIFNode) in front of 3" in found


def test_what_came_later_is_looked_at_too() -> None:
    net = swap_neurons(Net(leaky(), leaky()), sigma=0.5)
    learner = NITLearner(net, replicas=2, seed=0)

    def step() -> None:
        with learner.record():
            losses = net(learner.expand(torch.rand(5, 4))).square().mean(1)
        learner.backward(losses)

    step()
    net.fc1 = nn.Sequential(net.fc1, OwnLif())
    net.fc1.forward = lambda x: net.fc1[1](net.fc1[0](x))[0]
    with pytest.warns(BiasWarning, match="OwnSpike in fc1.1"):
        step()


def test_layers_of_torch_are_no_reason() -> None:
    net = swap_neurons(Net(leaky(), leaky()), sigma=0.5)
    net.fc2 = nn.Sequential(nn.BatchNorm1d(6).eval(), nn.Linear(6, 6), nn.GELU())
    assert said(net) == []
