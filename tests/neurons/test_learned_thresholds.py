"""Learnable thresholds of every neuron, by differences of the expected loss with common noise.

Leaky, LIF and IF have exact gradients in `tests/learner/test_unbiased.py`, and the cheap estimate
its formula in `tests/estimators/test_cheap_estimate.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, swap_neurons
from nit_snn.errors import UnreachedParameterWarning

STEPS = 4
X = torch.linspace(-1, 1, 12).view(4, 3)


class Net(nn.Module):
    """A layer of four neurons with a threshold each, and an exact readout."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fc1, self.cell, self.fc2 = nn.Linear(3, 4), cell, nn.Linear(4, 2)
        self.fc1.weight.data *= 3
        name = "threshold" if hasattr(cell, "threshold") else "v_threshold"
        cell._buffers.pop(name, None)
        setattr(cell, name, nn.Parameter(torch.tensor([0.6, 0.8, 1.0, 0.7])))
        swap_neurons(self, sigma=0.4)

    @property
    def threshold(self) -> nn.Parameter:
        return next(p for n, p in self.cell.named_parameters() if n.endswith("threshold"))

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        if isinstance(self.cell, snn.SpikingNeuron):
            self.cell.reset_mem()
        total = torch.zeros(len(x), 2)
        for step in range(STEPS):
            out = self.cell(self.fc1(x))
            spikes = out[0] if isinstance(out, tuple) else out
            total = total + (step + 1) * self.fc2(spikes)
        return (total - 4).square().sum(1)


def hidden(kind: Any, reset: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(init_hidden=True, output=True, reset_mechanism=reset, **options)


CELLS: dict[str, Callable[[], nn.Module]] = {
    "Synaptic subtract": hidden(snn.Synaptic, "subtract", alpha=0.5, beta=0.8),
    "Synaptic zero": hidden(snn.Synaptic, "zero", alpha=0.5, beta=0.8),
    "Alpha subtract": hidden(snn.Alpha, "subtract", alpha=0.8, beta=0.6),
    "Alpha zero": hidden(snn.Alpha, "zero", alpha=0.8, beta=0.6),
    "RLeaky subtract": hidden(snn.RLeaky, "subtract", beta=0.8, linear_features=4),
    "RLeaky zero": hidden(snn.RLeaky, "zero", beta=0.8, linear_features=4),
    "Lapicque zero": hidden(snn.Lapicque, "zero", R=4.0, C=1.0),
    "PLIF soft": lambda: neuron.ParametricLIFNode(v_reset=None),
}
if hasattr(neuron, "QIFNode"):
    CELLS["QIF soft"] = lambda: neuron.QIFNode(tau=1.5, v_reset=None)
    CELLS["QIF"] = lambda: neuron.QIFNode(tau=1.5)
    CELLS["CUBA LIF soft"] = lambda: neuron.CUBALIFNode(v_reset=None, v_decay=0.5)


def estimates(net: Net, passes: int, replicas: int, **options: Any) -> Tensor:
    """(passes, 4): of the threshold."""
    learner = NITLearner(net, replicas=replicas, seed=0, **options)
    found = []
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            losses = net(learner.expand(X))
        learner.backward(losses)
        found.append(net.threshold.grad.clone())
    learner.close()
    return torch.stack(found)


def difference(net: Net, direction: Tensor) -> float:
    """Along a direction, from 20,000 rows of each sample with the same noise."""
    ends = []
    for shift in (0.04, -0.04):
        torch.manual_seed(4)
        net.threshold.data += shift * direction
        with torch.no_grad():
            ends.append(net(X.repeat(20000, 1)).double().mean().item())
        net.threshold.data -= shift * direction
    return (ends[0] - ends[1]) / 0.08


@pytest.mark.montecarlo
@pytest.mark.parametrize("name", CELLS)
def test_finite_differences(name: str) -> None:
    """12 passes of 2,048 rows each, within 4 standard errors and 3% of the difference.

    Along the gradient, about, there is most to see.
    """
    net = Net(CELLS[name]())
    about = estimates(net, 2, 512, credit="layers", residual=1).mean(0)
    direction = about / about.norm()
    truth = difference(net, direction)
    for options in ({"credit": "none"}, {"credit": "layers", "residual": 1}):
        values = estimates(net, 12, 512, **options) @ direction
        error = (values.std() / len(values) ** 0.5).item()
        apart = abs(values.mean().item() - truth)
        assert apart < 4 * error + 0.03 * abs(truth) + 0.01, (options, values.mean(), truth, error)
        assert error < 0.1 * abs(truth), (options, truth, error)


class Handed(nn.Module):
    """Membranes that are handed from step to step, some rows of which start anew."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.fc, self.how = nn.Linear(3, 4), how
        self.lif = snn.Leaky(beta=0.8, threshold=0.5, learn_threshold=True, reset_mechanism="zero")
        swap_neurons(self, sigma=0.4)

    def forward(self, x: Tensor, done: Tensor) -> Tensor:
        mem, total = self.lif.reset_mem(), torch.zeros(len(x))
        for step in range(STEPS):
            spikes, mem = self.lif(self.fc(x), mem)
            total = total + (step + 1) * spikes.sum(1)
            if step == 1 and self.how == "rows":
                self.lif.reset_rows(done)
                mem = self.lif.mem
            elif step == 1:
                mem = mem * (1 - done.float()[:, None])
        return (total - 9).square()


@pytest.mark.parametrize(
    "options",
    [
        {"credit": "none"},
        {"credit": "none", "conditional": True},
        {"credit": "layers", "residual": 1},
        {"credit": "time", "residual": 0},
    ],
    ids=str,
)
def test_rows_that_start_anew(options: dict[str, Any]) -> None:
    """However it is said, and without any warning."""
    found = []
    for how in ("rows", "times"):
        net = Handed(how)
        if how == "times" and options.get("conditional"):
            continue  # nobody may read a membrane
        learner = NITLearner(net, replicas=4, seed=0, **options)
        with warnings.catch_warnings(), learner.record():
            warnings.simplefilter("error")
            xr, done = learner.expand(X, torch.tensor([True, False, True, False]))
            losses = net(xr, done)
        learner.backward(losses)
        assert net.lif.threshold.grad.abs() > 0
        found.append(net.lif.threshold.grad)
    torch.testing.assert_close(found[0], found[-1])


def test_both_step_modes_are_the_same() -> None:
    found = []
    for mode in ("s", "m"):
        torch.manual_seed(5)
        node = neuron.LIFNode(v_reset=None, step_mode=mode)
        node.v_threshold = nn.Parameter(torch.tensor(0.5))
        net = swap_neurons(nn.Sequential(nn.Linear(3, 4), node), sigma=0.3)
        learner = NITLearner(net, replicas=4, seed=0, credit="time", residual=1)
        with learner.record():
            xr = learner.expand(X + 1)
            if mode == "m":
                spikes = net(xr.expand(STEPS, *xr.shape))
            else:
                spikes = torch.stack([net(xr) for _ in range(STEPS)])
            losses = (spikes.sum((0, 2)) - 3).square()
        learner.backward(losses)
        found.append(node.v_threshold.grad)
    torch.testing.assert_close(*found)
    assert found[0] != 0


def test_a_recorded_pass_computes_what_any_other_does() -> None:
    """The threshold's part of the graph is zero, to the bit."""
    net = Net(snn.Leaky(beta=0.8, init_hidden=True, output=True))
    plain = Net(snn.Leaky(beta=0.8, init_hidden=True, output=True))
    plain.threshold.requires_grad_(False)
    found = []
    for each in (net, plain):
        learner = NITLearner(each, replicas=2, seed=0, credit="none")
        with learner.record():
            found.append(each(learner.expand(X)))
    torch.testing.assert_close(*found)
    with noise_off(net), noise_off(plain):
        torch.testing.assert_close(net(X), plain(X))


def test_what_the_noise_does_not_reach_says_why() -> None:
    with pytest.warns(UnreachedParameterWarning, match="threshold .it resets without delay"):
        NITLearner(swap_neurons(snn.Leaky(beta=0.5, learn_threshold=True, reset_delay=False)))
    node = neuron.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False))
    node.v_threshold = nn.Parameter(torch.tensor(1.0))
    with pytest.warns(UnreachedParameterWarning, match="v_threshold .its surrogate function"):
        NITLearner(swap_neurons(node))
