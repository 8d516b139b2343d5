"""What a training log writes is what happened, and TensorBoard reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from torch import nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.inspect.monitoring import TrainingLog, firing, noise_levels
from nit_snn.inspect.probe import probe
from nit_snn.training.replicas import snr

NETS = {
    "snntorch": lambda: SnnTorchNet(steps=5),
    "spikingjelly, m": lambda: SpikingJellyNet(steps=5),
    "spikingjelly, s": lambda: SpikingJellyNet(steps=5, mode="s"),
}


@pytest.mark.parametrize("name", NETS)
def test_firing_rates_are_those_that_a_probe_sees(name: str) -> None:
    net = swap_neurons(NETS[name](), sigma=0.5)
    with probe(net) as layers, firing(net) as counts:
        net(torch.randn(7, 4))
    for layer, activity in layers.items():
        assert counts[layer].draws == 5 * 7
        assert torch.allclose(counts[layer].rates, torch.stack(activity.spikes).mean((0, 1)))
    assert not any(module._forward_hooks for module in net.modules())


def test_activations_do_not_fire_but_have_levels() -> None:
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), sigma=0.2)
    with firing(net) as counts:
        net(torch.randn(7, 4))
    assert counts == {} and float(noise_levels(net)["1"]) == pytest.approx(0.2)


def step(net: nn.Module, learner: NITLearner, loss: Any = None) -> torch.Tensor:
    with learner.record():
        out = net(learner.expand(torch.randn(6, 4)))
        losses = out.square().sum(1) if loss is None else loss(out)
    return learner.backward(losses)


@pytest.mark.parametrize("conditional", [False, "pathwise"])
def test_counting_changes_no_gradient(conditional: bool | str) -> None:
    """Nor does measuring the signal, on the routes that keep sums of scores otherwise."""
    gradients = []
    for watched in (False, True):
        torch.manual_seed(1)
        net = swap_neurons(SpikingJellyNet(steps=5))
        learner = NITLearner(net, replicas=4, seed=3, conditional=conditional)
        log = TrainingLog(learner, Nothing())
        if watched:
            with log.watching():
                step(net, learner)
            assert set(learner.snr) == {"body.1", "body.3"}
        else:
            step(net, learner)
            assert learner.snr == {}
        gradients.append([p.grad.clone() for p in learner.parameters()])
        assert not learner.measure_snr
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


class Nothing:
    def add_scalar(self, *_: Any) -> None: ...

    def add_histogram(self, *_: Any) -> None: ...


def test_the_ratio_by_hand() -> None:
    """Two replicas of two samples of one neuron: gradients 1 and 3, and 2 and 2."""
    shares = torch.tensor([[1.0, 2.0], [3.0, 2.0]]).unsqueeze(-1)
    # v = (2 + 0) / 2; s^2 = ((4 - 2 / 2) + (4 - 0)) / 2 = 3.5; C s^2 / v = 7
    assert snr([shares], replicas=2) == pytest.approx(7.0)
    assert snr([shares[:1]], replicas=1) is None
    assert snr([torch.zeros(2, 0, 1)], replicas=2) is None
    assert snr([torch.ones(2, 3, 1)], replicas=2) == float("inf")


def test_a_layer_that_the_loss_hears_has_more_signal_than_one_that_it_does_not() -> None:
    """A loss of noise alone: the ratio scatters around 0, and is far above it for a real loss."""
    net = swap_neurons(SnnTorchNet(steps=1), sigma=0.5)
    learner = NITLearner(net, replicas=256, seed=0)
    learner.measure_snr = True
    step(net, learner)
    heard = learner.snr["lif2"]
    step(net, learner, loss=lambda out: torch.randn(len(out)))
    assert heard > 5
    assert abs(learner.snr["lif2"]) < 1  # variance of the ratio is about 2 / (6 * 3)


def test_auto_replicas_are_chosen_as_before_and_logged(tmp_path: Path) -> None:
    chosen = []
    for measured in (False, True):
        torch.manual_seed(0)
        net = swap_neurons(SnnTorchNet())
        learner = NITLearner(net, replicas="auto", replica_bounds=(2, 16), seed=0)
        learner.measure_snr = measured
        for _ in range(3):
            step(net, learner)
        chosen.append(learner.replicas)
    assert chosen[0] == chosen[1]


def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: the extra train")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = swap_neurons(SnnTorchNet(), sigma=0.7)
    learner = NITLearner(net, replicas=8, learn_sigma=True)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    losses, levels, ratios, rates = [], [], [], []
    with SummaryWriter(str(tmp_path)) as writer:
        log = TrainingLog(learner, writer)
        for number in range(3):
            optimizer.zero_grad()
            with log.watching():
                loss = step(net, learner)
            optimizer.step()
            log.write(10 * number, loss)
            losses.append(float(loss))
            levels.append(float(noise_levels(net)["lif1"].mean()))
            ratios.append(learner.snr["lif2"])
            rates.append(float(log._firing["lif2"].rates.mean()))
    events = EventAccumulator(str(tmp_path)).Reload()

    def read(tag: str) -> list[float]:
        found = events.Scalars(tag)
        assert [event.step for event in found] == [0, 10, 20]
        return [event.value for event in found]

    assert read("loss") == pytest.approx(losses, rel=1e-5)
    assert read("replicas") == [8, 8, 8]
    assert read("sigma/lif1") == pytest.approx(levels, rel=1e-5)
    assert read("snr/lif2") == pytest.approx(ratios, rel=1e-5)
    assert read("firing_rate/lif2") == pytest.approx(rates, rel=1e-5)
    assert len(set(levels)) == 3 and all(0 < rate < 1 for rate in rates)
    tags = events.Tags()
    assert set(tags["histograms"]) == {
        f"{kind}/{layer}" for kind in ("sigmas", "firing_rates") for layer in ("lif1", "lif2")
    }
    assert events.Histograms("firing_rates/lif1")[0].histogram_value.num == 6  # neurons
