"""What people do by habit: it is said, or it works."""

from __future__ import annotations

import warnings
from collections import namedtuple

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, MisuseWarning


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 6), snn.Leaky(beta=0.8, init_hidden=True), nn.Linear(6, 3))
    net[0].weight.data *= 3
    return swap_neurons(net, sigma=0.5)


def recorded(net: nn.Module, learner: NITLearner) -> Tensor:
    learner.reset()
    with learner.record():
        xr, yr = learner.expand(torch.rand(5, 4), torch.randint(3, (5,)))
        return F.cross_entropy(net(xr), yr, reduction="none")


@pytest.mark.parametrize("credit", ["auto", "none"])
@pytest.mark.parametrize("clear", [True, False])
def test_backward_by_habit_is_told_once(credit: str, clear: bool) -> None:
    net = network()
    learner = NITLearner(net, replicas=2, seed=0, credit=credit)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            if clear:
                optimizer.zero_grad()
            losses = recorded(net, learner)
            losses.mean().backward()
            optimizer.step()
    (only,) = [w for w in found if w.category is MisuseWarning]
    assert "learner.backward(losses)" in str(only.message) and only.filename == __file__


@pytest.mark.filterwarnings("error::nit_snn.errors.MisuseWarning")
@pytest.mark.parametrize("to_none", [True, False])
def test_passes_that_are_dropped_on_purpose_are_no_habit(to_none: bool) -> None:
    net = network()
    learner = NITLearner(net, replicas=2, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad(set_to_none=to_none)
        losses = recorded(net, learner)  # evaluated, and dropped
        with pytest.raises(ZeroDivisionError), learner.record():
            raise ZeroDivisionError
        losses = recorded(net, learner)
        if step != 1:
            learner.backward(losses)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        net(torch.rand(3, 4))
    recorded(net, learner)


def test_options_of_earlier_versions_are_named() -> None:
    for option, today in {
        "control": "credit=",
        "nonfinite": "on_nonfinite",
        "memory": "recompute",
        "replica": "replicas",
        "something": "replicas, credit, residual",
    }.items():
        with pytest.raises(TypeError, match=f"no option '{option}'.*{today}"):
            NITLearner(network(), **{option: 1})
    with pytest.raises(AttachError, match=r"pathwise.*Today it is True"):
        NITLearner(network(), conditional="pathwise")


def test_expand_takes_whatever_holds_tensors() -> None:
    learner = NITLearner(network(), replicas=2)
    pair = namedtuple("pair", "a b")
    x, y = torch.rand(3, 4), torch.arange(3)
    batch = {"x": x, "more": [y, (x, y)], "pair": pair(x, y)}
    found, labels = learner.expand(batch, y)
    assert torch.equal(found["x"], x.repeat(2, 1)) and torch.equal(labels, y.repeat(2))
    assert torch.equal(found["more"][1][1], labels) and type(found["pair"]) is pair
    assert torch.equal(learner.expand(batch)["more"][0], labels)
    with pytest.raises(TypeError, match="str"):
        learner.expand({"x": x, "name": "no tensor"})
    with pytest.raises(ValueError, match="3, 2"):
        learner.expand([x, x[:2]])


@pytest.mark.parametrize("dim", [0, 1])
def test_expand_finds_time_first_input_beside_labels(dim: int) -> None:
    learner = NITLearner(network(), replicas=2)
    x, y = torch.rand(7, 3, 4), torch.arange(3)
    xr, yr = learner.expand(x, y, dim=dim)
    assert torch.equal(xr, x.repeat(1, 2, 1)) and torch.equal(yr, y.repeat(2))
    square = torch.rand(3, 3, 4)  # which of the two is the batch cannot be seen
    assert learner.expand(square, y)[0].shape == (6, 3, 4)


def test_a_batch_size_in_the_forward_pass_is_hinted_at() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.8)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.fc(x.view(5, 4)), torch.zeros(5, 3))[0]

    net = swap_neurons(Written(), sigma=0.5)
    learner = NITLearner(net, replicas=4, seed=0)
    with pytest.raises(RuntimeError) as error, learner.record():
        net(learner.expand(torch.rand(5, 4)))
    assert "4 replicas of 5 samples" in error.value.__notes__[0]


def test_reset_forgets_all_that_the_network_remembers() -> None:
    net = nn.Sequential(
        layer.Linear(4, 4), neuron.LIFNode(), layer.Dropout(0.5), layer.Linear(4, 4),
        neuron.IFNode(), snn.Leaky(beta=0.5, init_hidden=True),
    )  # fmt: skip
    swap_neurons(net, sigma=0.5, keep=["4", "5"])
    learner = NITLearner(net, replicas=2, seed=0)
    net(torch.rand(3, 4))
    assert net[2].mask is not None and isinstance(net[4].v, Tensor)
    net[5](torch.ones(3, 4))
    learner.reset_rows(torch.tensor([True, False, False]))
    assert not net[5].mem[0].any() and not net[4].v[0].any()
    learner.reset()
    assert net[2].mask is None and net[4].v == 0.0 and not net[5].mem.any()
    net.meter = nn.Identity()
    net.meter.reset = lambda: None
    assert any("meter" in note and "reset()" in note for note in learner.notes())


def test_the_same_noise_within_a_closure() -> None:
    """L-BFGS asks for the loss several times a step; the number of the pass names its noise."""
    net = network()
    learner = NITLearner(net, replicas=4, seed=0)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3, lr=0.01)
    x, y, passes, seen = torch.rand(5, 4), torch.randint(3, (5,)), 3, []

    def closure() -> Tensor:
        optimizer.zero_grad()
        learner.passes = passes
        learner.reset()
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        seen.append(learner.backward(losses).item())
        return torch.tensor(seen[-1])

    optimizer.step(closure)
    assert len(seen) >= 3
    before = closure()
    assert closure() == before


class Written(nn.Module):
    """Eight rows, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.8)
        swap_neurons(self, sigma=0.5)

    def forward(self, x: Tensor) -> Tensor:
        mem, total = torch.zeros(8, 3), torch.zeros(8, 3)
        for _ in range(3):
            spikes, mem = self.lif(self.fc(x.view(8, 4)), mem)
            total = total + spikes
        return total


def test_a_batch_size_that_is_written_into_the_forward_pass() -> None:
    """The error says what to do, and each way that it names works."""
    net, x = Written(), torch.rand(8, 4)
    learner = NITLearner(net, replicas=4, credit="none", seed=0)
    with pytest.raises(RuntimeError) as caught, learner.record():
        net(learner.expand(x))
    (note,) = caught.value.__notes__
    assert "32 rows, 4 replicas of 8 samples" in note and "expand 2 samples at a time" in note
    for part in x.split(2):
        with learner.record():
            losses = net(learner.expand(part)).sum(1)
        learner.backward(losses / 4)
    learner.close()
    assert net.fc.weight.grad.abs().sum() > 0
    learner = NITLearner(net, seed=0)
    with learner.record():
        losses = net(learner.expand(x)).square().sum(1)
    learner.backward(losses)


def test_autograd_in_the_place_of_a_learner_is_told_once() -> None:
    """A surrogate gradient, before anything was recorded; snnTorch's BPTT does the same."""
    net = network()
    learner = NITLearner(net, replicas=2, seed=0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            learner.reset()
            F.cross_entropy(net(torch.rand(5, 4)), torch.randint(3, (5,))).backward()
    (only,) = [w for w in found if w.category is MisuseWarning]
    assert "surrogate" in str(only.message) and "learner.record()" in str(only.message)
    learner.close()
    plain = NITLearner(network(), replicas=2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MisuseWarning)
        losses = recorded(plain.net, plain)
        plain.backward(losses)
        plain.reset()
        plain.net(torch.rand(5, 4)).sum().backward()  # on purpose, by now
