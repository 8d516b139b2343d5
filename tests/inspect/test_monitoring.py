"""What a training log writes is what happened, and TensorBoard reads it back."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from torch import nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.inspect.monitoring import TrainingLog, firing, noise_levels
from nit_snn.inspect.probe import probe

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


@pytest.mark.parametrize(
    "options",
    [{"credit": "none"}, {"credit": "none", "conditional": True}, {"credit": "layers"}],
    ids=str,
)
def test_counting_changes_no_gradient(options: dict[str, Any]) -> None:
    gradients = []
    for watched in (False, True):
        torch.manual_seed(1)
        net = swap_neurons(SpikingJellyNet(steps=5))
        learner = NITLearner(net, replicas=4, seed=3, **options)
        log = TrainingLog(learner, Nothing())
        with log.watching() if watched else nullcontext():
            step(net, learner)
        log.write(0)
        gradients.append([p.grad.clone() for p in learner.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class Nothing:
    def add_scalar(self, *_: Any) -> None: ...

    def add_histogram(self, *_: Any) -> None: ...


def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: the extra train")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = swap_neurons(SnnTorchNet(), sigma=0.7)
    options = {"credit": "layers", "residual": 0.5}
    learner = NITLearner(net, replicas=8, learn_sigma=True, seed=0, **options)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    losses, levels, weights, rates = [], [], [], []
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
            weights.append(learner.residual_weights)
            rates.append(float(log._firing["lif1"].rates.mean()))
    events = EventAccumulator(str(tmp_path)).Reload()

    def read(tag: str) -> list[float]:
        found = events.Scalars(tag)
        assert [event.step for event in found] == [0, 10, 20]
        return [event.value for event in found]

    assert read("loss") == pytest.approx(losses, rel=1e-5)
    assert read("replicas") == [8, 8, 8]
    assert read("sigma/lif1") == pytest.approx(levels, rel=1e-5)
    for layer in ("lif1", "lif2"):
        assert read(f"residual/{layer}") == pytest.approx([w[layer] for w in weights], rel=1e-5)
    assert set(weights[-1].values()) == {0.5}
    assert read("firing_rate/lif1") == pytest.approx(rates, rel=1e-5)
    assert len(set(levels)) == 3 and all(0 < rate < 1 for rate in rates)
    tags = events.Tags()
    assert set(tags["histograms"]) == {
        f"{kind}/{layer}" for kind in ("sigmas", "firing_rates") for layer in ("lif1", "lif2")
    }
    assert events.Histograms("firing_rates/lif1")[0].histogram_value.num == 6  # neurons
