"""Weights scaled to data: every hidden layer fires at the rate that was asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, calibrate, noise_off, swap_neurons
from nit_snn.errors import CalibrationError
from nit_snn.inspect.probe import probe


def steps(net: nn.Module, x: Tensor, count: int = 6) -> Tensor:
    return sum(net(x) for _ in range(count))


class Explicit(nn.Module):
    """snnTorch with membranes handed on, pooling by a function, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(1, 6, 3), snn.Leaky(beta=0.7)
        self.fc, self.lif2 = nn.Linear(6 * 9, 40), snn.Synaptic(alpha=0.5, beta=0.7)
        self.out = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        mem1, (syn, mem2) = self.lif1.reset_mem(), self.lif2.reset_mem()
        out = torch.zeros(())
        for _ in range(6):
            spikes, mem1 = self.lif1(F.max_pool2d(self.conv(x), 2), mem1)
            spikes, syn, mem2 = self.lif2(self.fc(spikes.flatten(1)), syn, mem2)
            out = out + self.out(spikes)
        return out


class Recurrent(nn.Module):
    """Two synapses feed one layer, one of them with the layer's own spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(64, 30), snn.Leaky(beta=0.7)
        self.feedback, self.out = nn.Linear(30, 30), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        mem, spikes, out = self.lif.reset_mem(), x.new_zeros(len(x), 30), torch.zeros(())
        for _ in range(6):
            spikes, mem = self.lif(self.fc(x.flatten(1)) + self.feedback(spikes), mem)
            out = out + self.out(spikes)
        return out


class Jelly(nn.Module):
    """conv-BN-IF twice, with a spiking output, step by step or all steps at once."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.body = nn.Sequential(
            layer.Conv2d(1, 6, 3, bias=False),
            layer.BatchNorm2d(6),
            neuron.IFNode(),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Linear(54, 40),
            neuron.LIFNode(),
            layer.Linear(40, 3),
            neuron.IFNode(),
        )
        functional.set_step_mode(self, mode)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        if self.mode == "s":
            return steps(self.body, x)
        return self.body(x.expand(6, *x.shape)).mean(0)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, list[str]]]] = {
    "membranes handed on": (Explicit, {"lif1": ["conv"], "lif2": ["fc"]}),
    "recurrent": (Recurrent, {"lif": ["fc", "feedback"]}),
    "BatchNorm": (lambda: Jelly("m"), {"body.2": ["body.1"], "body.6": ["body.5"]}),
    "step by step": (lambda: Jelly("s"), {"body.2": ["body.1"], "body.6": ["body.5"]}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_layers_fire_at_the_rate_and_nothing_else_changes(name: str) -> None:
    make, scaled = NETWORKS[name]
    torch.manual_seed(0)
    net, x = swap_neurons(make()), torch.rand(100, 1, 8, 8)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    found = {row.layer: row for row in calibrate(net, x, rate=0.35)}
    assert torch.equal(torch.get_rng_state(), generator)
    learned = dict(net.named_parameters())
    for key, value in net.state_dict().items():
        gains = [found[each].gain for each, own in scaled.items() if key.rpartition(".")[0] in own]
        factor = gains[0] if gains and key in learned else 1  # statistics are as they were
        torch.testing.assert_close(value, state[key] * factor)
    with probe(net) as seen, noise_off(net), torch.no_grad():
        net(x)
    for row in found.values():
        fired = torch.stack(seen[row.layer].spikes).mean().item()
        assert fired == pytest.approx(row.after, rel=0.01)
        if row.layer in scaled:
            assert row.after == pytest.approx(0.35, rel=0.06) and row.gain != 1
        else:
            assert row.gain == 1


def test_it_wakes_a_deep_network_that_a_learner_is_attached_to() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(
            part
            for _ in range(5)
            for part in (nn.Linear(30, 30), snn.Leaky(beta=0.5, init_hidden=True))
        ),
        nn.Linear(30, 3),
    )
    learner = NITLearner(swap_neurons(net), seed=0)
    x = torch.rand(64, 30)
    found = calibrate(net, lambda: steps(net, x))
    assert [row.layer for row in found] == ["1", "3", "5", "7", "9"]
    assert all(row.gain > 1 for row in found[1:])
    assert all(row.after > 0.028 for row in found)
    with learner.record():
        out = steps(net, learner.expand(x))
    learner.backward(out.square().sum(1))
    assert net[0].weight.grad.count_nonzero() > 0


def small(*parts: nn.Module) -> nn.Module:
    leaky = snn.Leaky(beta=0.5, init_hidden=True)
    return swap_neurons(nn.Sequential(*parts, leaky, nn.Linear(4, 2)))


def with_bias(value: float) -> nn.Linear:
    dense = nn.Linear(4, 4)
    nn.init.zeros_(dense.weight)
    nn.init.constant_(dense.bias, value)
    return dense


class Own(nn.Module):
    """A synapse that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


@pytest.mark.parametrize(
    ("make", "rate", "said"),
    [
        (lambda: nn.Linear(4, 4), 0.1, "no noisy neuron"),
        (lambda: small(nn.Linear(4, 4)), 1.5, "between 0 and 1, got 1.5"),
        (lambda: small(nn.Linear(4, 4)), "much", "got 'much'"),
        (lambda: small(with_bias(-50.0)), 0.1, "1 fires at a rate of 0, and no gain of 0 makes"),
        (lambda: small(with_bias(float("nan"))), 0.1, "1 are not finite"),
        (lambda: small(Own()), 0.1, "feeds: 1. Scale"),
        (
            lambda: small(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
            0.4,
            "affine",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    make: Callable[[], nn.Module], rate: float, said: str
) -> None:
    torch.manual_seed(0)
    net = make()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(CalibrationError, match=said):
        calibrate(net, torch.rand(50, 4), rate=rate)
    for parameter, value in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0, equal_nan=True)


def test_a_layer_that_fires_is_left_alone_and_one_that_always_does_is_not() -> None:
    torch.manual_seed(0)
    net, x = small(nn.Linear(4, 4)), 3 * torch.rand(50, 4)
    (row,) = calibrate(net, x)
    assert row.gain == 1 and 0.03 < row.before == row.after
    with torch.no_grad():
        net[0].bias.add_(3)
    (row,) = calibrate(net, x)
    assert row.before > 0.9 and row.after == pytest.approx(0.5, abs=0.03) and row.gain < 1


def test_a_frozen_layer_and_a_shared_weight_are_left_alone() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(4, 4)
    dense.requires_grad_(False)
    (row,) = calibrate(small(dense), torch.rand(50, 4))
    assert row.gain == 1
    twice = nn.Linear(4, 4)
    net = small(twice, snn.Leaky(beta=0.5, init_hidden=True), twice)
    first, second = calibrate(net, lambda: steps(net, torch.ones(50, 4)), rate=0.4)
    assert first.gain != 1 and second.gain == 1


def test_it_is_refused_while_a_learner_records() -> None:
    net = small(nn.Linear(4, 4))
    learner = NITLearner(net)
    with learner.record(), pytest.raises(CalibrationError, match="recording or probing 1"):
        calibrate(net, torch.rand(50, 4))
