"""Membranes that are put aside, and membranes of which some rows start anew within a pass."""

from __future__ import annotations

import inspect

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import BiasWarning, RecordingError

DONE = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1.0]])  # (steps between, samples)
ESTIMATORS = {
    "none": {"credit": "none"},
    "none, conditional": {"credit": "none", "conditional": True},
    "layers, exact": {"credit": "layers", "residual": 1},
    "layers, conditional": {"credit": "layers", "residual": 1, "conditional": True},
    "time, exact": {"credit": "time", "residual": 1},
    "time, conditional": {"credit": "time", "residual": 1, "conditional": True},
    "feedback, exact": {"credit": "feedback", "residual": 1},
}


class SnnTorchNet(nn.Module):
    """Two layers, four steps; rows start anew where `done` says so, in one of many ways."""

    def __init__(self, way: str, reset: str = "zero") -> None:
        super().__init__()
        self.way = way
        self.fc1, self.fc2 = nn.Linear(3, 5), nn.Linear(5, 2)
        hidden = {"init_hidden": True} if way in ("rows", "hidden") else {}
        self.lif = snn.Leaky(beta=0.9, reset_mechanism=reset, **hidden)
        self.fc1.weight.data *= 2

    def forward(self, x: Tensor, done: Tensor) -> Tensor:
        mem, out = self.lif.reset_mem(), 0
        for t in range(4):
            if self.lif.init_hidden:
                spk = self.lif(self.fc1(x))
            else:
                spk, mem = self.lif(self.fc1(x), mem)
            out = out + (t + 1) * self.fc2(spk).square()
            if t == 3:
                break
            over = done[t][:, None]
            if self.way == "times":
                mem = mem * (1 - over)
            elif self.way == "where":
                mem = torch.where(over.bool(), torch.zeros_like(mem), mem)
            elif self.way == "fill":
                mem = mem.masked_fill(over.bool(), 0.0)
            elif self.way == "hidden":
                self.lif.mem = (1 - over) * self.lif.mem
            else:
                self.lif.reset_rows(done[t] > 0)
        return out.sum(1)


class SpikingJellyNet(nn.Module):
    def __init__(self, way: str, reset: float | None = 0.0) -> None:
        super().__init__()
        self.way = way
        self.fc1, self.fc2 = layer.Linear(3, 5), layer.Linear(5, 2)
        self.lif = neuron.LIFNode(tau=5.0, v_reset=reset, decay_input=False)
        self.fc1.weight.data *= 2

    def forward(self, x: Tensor, done: Tensor) -> Tensor:
        self.lif.reset()
        out = 0
        for t in range(4):
            out = out + (t + 1) * self.fc2(self.lif(self.fc1(x))).square()
            if t == 3:
                break
            if self.way == "times":
                self.lif.v = self.lif.v * (1 - done[t])[:, None]
            else:
                self.lif.reset_rows(done[t] > 0)
        return out.sum(1)


def found(net: nn.Module, passes: int, **options: object) -> Tensor:
    """The mean estimate of the first layer's weights, one sample of 512 replicas a pass."""
    learner = NITLearner(net, replicas=512, seed=0, **options)
    x = torch.linspace(-1, 1, 12).view(4, 3)
    net.zero_grad()
    for _ in range(passes):
        with learner.record():
            xr, done = learner.expand(x, DONE.T)
            losses = net(xr, done.T)
        learner.backward(losses)
    learner.close()
    return net.fc1.weight.grad / passes


def truth(net: nn.Module, direction: Tensor) -> float:
    """A central difference of the expected loss, 20,000 rows a sample, with the same noise."""
    x = torch.linspace(-1, 1, 12).view(4, 3).repeat(20000, 1)

    def expected(shift: float) -> float:
        torch.manual_seed(4)
        net.fc1.weight.data += shift * direction
        with torch.no_grad():
            loss = net(x, DONE.repeat(1, 20000)).mean().item()
        net.fc1.weight.data -= shift * direction
        return loss

    return (expected(0.03) - expected(-0.03)) / 0.06


NETS = {
    "snnTorch, zero": lambda way: SnnTorchNet(way),
    "snnTorch, subtract": lambda way: SnnTorchNet(way, "subtract"),
    "SpikingJelly, hard": lambda way: SpikingJellyNet(way),
    "SpikingJelly, soft": lambda way: SpikingJellyNet(way, None),
}


@pytest.mark.full
@pytest.mark.montecarlo
@pytest.mark.parametrize("kind", NETS)
def test_finite_differences_under_every_estimator(kind: str) -> None:
    """25 passes of 2,048 rows each; within 12% of a difference with 80,000 rows of common noise."""
    torch.manual_seed(1)
    net = swap_neurons(NETS[kind]("times"), sigma=0.4)
    direction = torch.randn(5, 3)
    exact = truth(net, direction)
    assert abs(exact) > 0.1
    for name, options in ESTIMATORS.items():
        estimate = (found(net, 25, **options) * direction).sum().item()
        assert abs(estimate - exact) < 0.12 * abs(exact), (name, estimate, exact)


@pytest.mark.parametrize("options", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("way", ["where", "fill", "hidden", "rows"])
def test_every_way_of_saying_so_is_the_same(
    way: str, options: dict, recwarn: pytest.WarningsRecorder
) -> None:
    def gradient(way: str) -> Tensor:
        torch.manual_seed(1)
        return found(swap_neurons(SnnTorchNet(way), sigma=0.4), 1, **options)

    torch.testing.assert_close(gradient(way), gradient("times"))
    assert not [w for w in recwarn if w.category is BiasWarning]


@pytest.mark.parametrize("options", ESTIMATORS.values(), ids=ESTIMATORS)
def test_rows_of_a_node_are_the_same(options: dict) -> None:
    def gradient(way: str) -> Tensor:
        torch.manual_seed(1)
        return found(swap_neurons(SpikingJellyNet(way), sigma=0.4), 1, **options)

    torch.testing.assert_close(gradient("rows"), gradient("times"))


@pytest.mark.parametrize("credit", ["layers", "time"])
def test_a_row_that_starts_anew_is_a_row_of_its_own(credit: str) -> None:
    """The cheap estimate of a reset row is that of two sequences, each from the start."""

    def gradient(whole: bool) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), snn.Leaky(beta=0.9), nn.Linear(5, 2))
        net[0].weight.data *= 2
        swap_neurons(net, sigma=1e-3)
        learner = NITLearner(net, replicas=1, seed=0, credit=credit, residual=0)
        x = torch.linspace(-1, 1, 6).view(2, 3)
        with learner.record():
            out, mem = 0, net[1].reset_mem()
            xr = learner.expand(x)
            for t in range(6):
                if t == 3:
                    mem = mem * torch.zeros(2, 1) if whole else net[1].reset_mem()
                spk, mem = net[1](net[0](xr), mem)
                out = out + net[2](spk)
            losses = out.square().sum(1)
        learner.backward(losses)
        return net[0].weight.grad

    assert torch.equal(gradient(True), gradient(False))


class Tutorial(nn.Module):
    """`return torch.stack(spk_rec), torch.stack(mem_rec)`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 4), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, spk_rec, mem_rec = self.lif.reset_mem(), [], []
        for _ in range(4):
            spk, mem = self.lif(self.fc(x), mem)
            mem = mem.detach()
            spk_rec.append(spk)
            mem_rec.append(mem)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def pending(net: nn.Module, **options: object):
    learner = NITLearner(
        swap_neurons(net, sigma=0.5), replicas=4, seed=0, credit="time", conditional=True, **options
    )
    with learner.record():
        xr, yr = learner.expand(torch.rand(5, 6), torch.randint(4, (5,)))
        spikes, membranes = net(xr)
        losses = F.cross_entropy(spikes.sum(0), yr, reduction="none")
    return learner, losses, membranes


def test_stacked_membranes_that_nobody_reads() -> None:
    learner, losses, membranes = pending(Tutorial())
    assert membranes.shape == (4, 20, 4) and len(membranes) == 4
    moved = [
        membranes[-1],
        membranes[:, :2].flatten(1),
        torch.cat([membranes, membranes], -1),
        membranes.detach().permute(1, 0, 2).reshape(-1, 4),
        membranes[0].T,
        *membranes.unbind(0),
    ]
    for each in moved:
        with pytest.raises(RecordingError, match="was read"):
            each.sum()
    learner.backward(losses)
    assert torch.isfinite(membranes.sum()) and membranes[-1].requires_grad is False


def test_the_error_names_the_line() -> None:
    learner, _, membranes = pending(Tutorial())
    line = inspect.currentframe().f_lineno + 2
    with pytest.raises(RecordingError) as error:
        F.cross_entropy(membranes.sum(0), torch.zeros(20, dtype=torch.long))
    assert f"{__file__}:{line}" in str(error.value)
    assert "F.cross_entropy(membranes.sum(0)" in str(error.value)
    for read in (
        lambda: membranes * membranes,
        lambda: membranes[-1] * 0.5,
        lambda: membranes.mean().item(),
        lambda: membranes > 0,
        lambda: membranes.numpy(),
        lambda: membranes.tolist(),
        lambda: torch.where(torch.ones(20, 4) > 0, membranes[0], 0.5),
        lambda: membranes[0] @ torch.rand(4, 4),
    ):
        with pytest.raises(RecordingError, match="mem \\* \\(1 - done\\)"):
            read()
    learner.reset()


def test_another_time_s_membrane_is_not_the_neuron_s_state() -> None:
    net = Tutorial()
    learner, _, membranes = pending(net)
    with pytest.raises(RecordingError, match="by another neuron"):
        net.lif(torch.zeros(20, 4), membranes[1].clone())
    learner.reset()


def test_reset_rows_needs_a_truth_value_for_each_row() -> None:
    net = swap_neurons(SnnTorchNet("rows"), sigma=0.4)
    learner = NITLearner(net, replicas=2, seed=0)
    learner.reset_rows(torch.ones(8, dtype=torch.bool))  # nothing has run
    net(torch.rand(8, 3), torch.zeros(3, 8))
    learner.reset_rows(torch.arange(8) < 4)
    assert (net.lif.mem[:4] == 0).all() and (net.lif.mem[4:] != 0).any()
    with pytest.raises(RecordingError, match=r"expand\(\)"):
        learner.reset_rows(torch.ones(4, dtype=torch.bool))
