"""Layers that cannot learn: their gradient is exactly zero, and they are named once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import SilentLayerWarning
from nit_snn.estimators.baselines import advantages


class TwoLayers(nn.Module):
    """6-8-3 of snnTorch; the loss reads a readout, or what a last neuron leaves."""

    def __init__(self, bias: float | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(beta=0.8)
        self.fc2, self.last = nn.Linear(8, 3), last
        with torch.no_grad():
            self.fc1.weight.mul_(3)
            if bias is not None:
                self.fc1.weight.zero_()
                self.fc1.bias.fill_(bias)

    def forward(self, x: Tensor, membranes: bool = False) -> Tensor:
        mem, total = self.lif1.reset_mem(), torch.zeros(())
        left = None if self.last is None else self.last.reset_mem()
        for _ in range(5):
            spikes, mem = self.lif1(self.fc1(x), mem)
            out = self.fc2(spikes)
            if self.last is not None:
                spikes, left = self.last(out, left)
                out = left if membranes else spikes
            total = total + out
        return total


class Jelly(nn.Module):
    """The same of SpikingJelly, all steps at once."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.body = nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(), layer.Linear(8, 3))
        functional.set_step_mode(self, "m")
        with torch.no_grad():
            self.body[0].weight.zero_()
            self.body[0].bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.body(x.expand(5, *x.shape)).mean(0)


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y, reduction="none")


def wrong(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (net(x).argmax(1) != y).float()


def passes(
    net: nn.Module,
    learner: NITLearner,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = cross_entropy,
    count: int = 1,
    samples: int = 16,
) -> list[str]:
    """What a learner says of silence in some passes, without an optimizer's step."""
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(count):
            x = torch.rand(samples, 6, generator=generator)
            y = torch.randint(3, (samples,), generator=generator)
            with learner.record():
                losses = loss(net, *learner.expand(x, y))
            learner.backward(losses)
            learner.reset()
    said = [w for w in found if w.category is SilentLayerWarning]
    assert all(w.filename == __file__ for w in said)
    return [str(w.message) for w in said]


OPTIONS = [
    {},
    {"credit": "none"},
    {"credit": "none", "antithetic": True},
    {"credit": "none", "rule": "nit-s"},
    {"credit": "none", "conditional": True, "learn_sigma": True},
    {"credit": "feedback", "residual": 0},
    *({"credit": c, "residual": r} for c in ("readout", "layers", "time") for r in (0, 1, 0.5)),
    {"credit": "layers", "residual": 1, "learn_sigma": True},
    {"credit": "layers", "residual": 0, "learn_sigma": True},
    {"credit": "time", "residual": 1, "conditional": True},
    {"credit": "time", "residual": 0, "learn_sigma": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("make", "bias"), [(TwoLayers, -8.0), (Jelly, -50.0)])
def test_a_silent_layer_gets_a_gradient_of_exactly_zero_and_is_named_once(
    make: Callable[[float], nn.Module], bias: float, options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    net = swap_neurons(make(bias))
    learner = NITLearner(net, replicas=8, seed=0, **options)
    (said,) = passes(net, learner, count=2)
    name = "lif1" if make is TwoLayers else "body.1"
    assert said.startswith(f"No neuron fired in this pass in: {name}.") and "calibrate" in said
    first = net.fc1 if make is TwoLayers else net.body[0]
    assert first.weight.grad.count_nonzero() == first.bias.grad.count_nonzero() == 0
    level = dict(net.named_parameters()).get(f"{name}.sigma")
    assert level is None or level.grad.count_nonzero() == 0


@pytest.mark.parametrize("credit", ["none", "layers", "time"])
@pytest.mark.parametrize("make", [TwoLayers, Jelly])
def test_a_layer_that_always_fires_is_named(
    make: Callable[[float], nn.Module], credit: str
) -> None:
    net = swap_neurons(make(20.0))
    said = passes(net, NITLearner(net, replicas=16, seed=0, credit=credit), samples=40)
    assert len(said) == 1 and said[0].startswith("Every neuron fired at every step")


@pytest.mark.parametrize("credit", ["auto", "none"])
def test_nothing_is_said_of_layers_that_learn(credit: str) -> None:
    """One that happens to be silent, within reach; and an integrator that is only read."""
    torch.manual_seed(0)
    quiet = swap_neurons(TwoLayers(0.0, snn.Leaky(beta=0.8)))
    assert passes(quiet, NITLearner(quiet, seed=0, credit=credit), samples=2) == []
    integrator = snn.Leaky(beta=0.8, threshold=1e9, reset_mechanism="none")
    net = swap_neurons(TwoLayers(last=integrator), sigma=0.25)

    def read(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x, membranes=True), y, reduction="none")

    def misread(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (net(x, membranes=True).argmax(1) != y).float()

    for loss in (read, misread):
        learner = NITLearner(net, seed=0, credit=credit)
        assert passes(net, learner, loss, count=3) == []
        learner.close()


def test_equal_losses_are_named_once_they_are_no_accident() -> None:
    net = swap_neurons(TwoLayers(-1.0, snn.Leaky(beta=0.8)), sigma=0.05)
    learner = NITLearner(net, seed=0, replicas=4, credit="none")

    def unmoved(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return 0 * net(x).sum(1).detach() + 1

    said = [s for s in passes(net, learner, unmoved, count=12) if "All losses" in s]
    assert len(said) == 1 and "calibrate" in said[0]
    learner.close()
    # Losses that vary once may be equal later: all images may be recognised.
    net = swap_neurons(TwoLayers())
    learner = NITLearner(net, seed=0, replicas=4, credit="none")
    assert passes(net, learner, wrong) == []
    assert passes(net, learner, unmoved, count=12) == []


def test_few_passes_are_looked_at() -> None:
    net = swap_neurons(TwoLayers())
    learner = NITLearner(net, seed=0, replicas=2)
    looked = []
    for _ in range(101):
        with learner.record():
            net(learner.expand(torch.rand(1, 6)))
        looked.append(learner._session.recorder.trace.census is not None)
    assert [n for n, yes in enumerate(looked, 1) if yes] == [1, 2, 100]


@pytest.mark.parametrize("baseline", ["leave-one-out", "batch-mean"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 2.3025851])
def test_equal_losses_have_no_advantage(baseline: str, value: float) -> None:
    losses = torch.full((7, 5), value)
    assert advantages(losses, baseline).count_nonzero() == 0

    class Four:  # processes, each with these replicas
        sharers = 4

        def sum(self, values: Tensor) -> Tensor:
            return values + values + values + values

    found = advantages(losses, baseline, ranks=Four())  # type: ignore[arg-type]
    assert found.count_nonzero() == 0 and found.dtype == losses.dtype
