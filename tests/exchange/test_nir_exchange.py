"""Noisy networks through NIR and back: the same spikes, the same sigma, and clear refusals."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, swap_neurons
from nit_snn.errors import ExchangeError
from nit_snn.neurons import noisy_neurons

nir = pytest.importorskip("nir", reason="NIR is not installed: pip install 'nit-snn[nir]'")
pytest.importorskip("nirtorch", reason="nirtorch is not installed: pip install 'nit-snn[nir]'")

from nit_snn.exchange import from_nir, to_nir  # noqa: E402

STEPS = 12


def leaky(**options: Any) -> nn.Module:
    return snn.Leaky(
        **{"beta": 0.8, "reset_mechanism": "zero", "init_hidden": True, "threshold": 0.7, **options}
    )


def synaptic(**options: Any) -> nn.Module:
    options = {"alpha": 0.6, "beta": 0.8, "reset_mechanism": "zero", **options}
    return snn.Synaptic(**{"init_hidden": True, "reset_delay": False, **options})


SNNTORCH = {
    "linear": lambda: nn.Sequential(nn.Linear(9, 7), leaky(), nn.Linear(7, 5, bias=False), leaky()),
    "every neuron its own": lambda: nn.Sequential(
        nn.Linear(9, 7), leaky(beta=torch.rand(7), threshold=0.5 + torch.rand(7))
    ),
    "integrates": lambda: nn.Sequential(nn.Linear(9, 7), leaky(beta=1.0), nn.Linear(7, 5), leaky()),
    "at once": lambda: nn.Sequential(nn.Linear(9, 7), leaky(reset_delay=False)),
    "synaptic": lambda: nn.Sequential(nn.Linear(9, 7), synaptic(), nn.Linear(7, 5), leaky()),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        leaky(threshold=0.2),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3, stride=(1, 2)),
        leaky(threshold=0.2),
        nn.Flatten(),
        nn.Linear(8, 5),
        leaky(threshold=0.2),
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(9, 7), leaky()), nn.Sequential(nn.Linear(7, 5), leaky())
    ),
}
SPIKINGJELLY = {
    "if": lambda: nn.Sequential(layer.Linear(9, 7), neuron.IFNode(v_threshold=0.7)),
    "lif": lambda: nn.Sequential(
        layer.Linear(9, 7), neuron.LIFNode(v_threshold=0.4), nn.Linear(7, 5), neuron.IFNode()
    ),
    "lif, its input undecayed": lambda: nn.Sequential(
        layer.Linear(9, 7), neuron.LIFNode(tau=3.0, decay_input=False)
    ),
    "another rest": lambda: nn.Sequential(
        layer.Linear(9, 7), neuron.LIFNode(tau=3.0, v_reset=-0.3, v_threshold=0.2)
    ),
    "parametric": lambda: nn.Sequential(
        layer.Linear(9, 7), neuron.ParametricLIFNode(init_tau=3.0, v_threshold=0.4)
    ),
    "conv": lambda: nn.Sequential(
        layer.Conv2d(1, 3, 3, padding=1, bias=False),
        neuron.IFNode(v_threshold=0.3),
        layer.AvgPool2d(2, 2),
        layer.Conv2d(3, 4, 3),
        neuron.LIFNode(tau=2.0, v_threshold=0.5, decay_input=False),
        layer.Flatten(),
        layer.Linear(16, 5),
        neuron.IFNode(v_threshold=0.3),
    ),
}


def inputs(name: str) -> Tensor:
    return 2 * torch.rand(STEPS, 4, *((1, 8, 8) if name == "conv" else (9,)))


def spikes(net: nn.Module, x: Tensor) -> Tensor:
    """(T, N, *), from rest, step by step and without noise."""
    functional.reset_net(net)
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    with noise_off(net), torch.no_grad():
        return torch.stack([net(step) for step in x])


def through_a_file(graph: Any, tmp_path: Path) -> Path:
    nir.write(tmp_path / "net.nir", graph)
    return tmp_path / "net.nir"


def same_both_ways(net: nn.Module, x: Tensor, framework: str, tmp_path: Path) -> nn.Module:
    """The network after a round trip, which is checked to spike alike."""
    swap_neurons(net, sigma=0.3)
    wanted = spikes(net, x)
    assert 0.05 < wanted.mean() < 0.95  # or the comparison says little
    back = from_nir(through_a_file(to_nir(net, x[0]), tmp_path), framework)
    assert torch.equal(spikes(back, x), wanted)
    return back


@pytest.mark.parametrize("name", SNNTORCH)
def test_snntorch_there_and_back(name: str, tmp_path: Path) -> None:
    net = SNNTORCH[name]()
    back = same_both_ways(net, inputs(name), "snntorch", tmp_path)
    for old, new in zip(noisy_neurons(net).values(), noisy_neurons(back).values(), strict=True):
        assert type(old) is type(new)
        assert torch.equal(new.sigma, torch.tensor(0.3))
        assert torch.allclose(new.beta, old.beta) and torch.allclose(new.threshold, old.threshold)


@pytest.mark.parametrize("name", SPIKINGJELLY)
def test_spikingjelly_there_and_back(name: str, tmp_path: Path) -> None:
    net = SPIKINGJELLY[name]()
    back = same_both_ways(net, inputs(name), "spikingjelly", tmp_path)
    for old, new in zip(noisy_neurons(net).values(), noisy_neurons(back).values(), strict=True):
        assert torch.equal(new.sigma, torch.tensor(0.3))
        assert (new.v_threshold, new.v_reset) == pytest.approx((old.v_threshold, old.v_reset))


@pytest.mark.parametrize("name", ["linear", "integrates", "conv"])
def test_from_snntorch_to_spikingjelly(name: str, tmp_path: Path) -> None:
    same_both_ways(SNNTORCH[name](), inputs(name), "spikingjelly", tmp_path)


@pytest.mark.parametrize("name", SPIKINGJELLY)
def test_from_spikingjelly_to_snntorch(name: str, tmp_path: Path) -> None:
    same_both_ways(SPIKINGJELLY[name](), inputs(name), "snntorch", tmp_path)


@pytest.mark.parametrize("name", ["lif", "conv"])
def test_spikingjelly_in_multi_step_mode(name: str) -> None:
    net, x = swap_neurons(SPIKINGJELLY[name](), sigma=0.3), inputs(name)
    wanted = spikes(net, x)
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    back = from_nir(to_nir(net, x), "spikingjelly")
    functional.set_step_mode(back, "m")
    with noise_off(back), torch.no_grad():
        assert torch.equal(back(x), wanted)


@pytest.mark.montecarlo
def test_a_scaled_membrane_has_its_noise_scaled() -> None:
    """tau = 2 with decayed input halves the current; snnTorch's Leaky doubles all else instead.

    12,000 draws for each of 7 rates on each side; a difference of 7 standard errors.
    """
    net = swap_neurons(nn.Sequential(layer.Linear(9, 7), neuron.LIFNode(tau=2.0)), sigma=0.3)
    lif = from_nir(to_nir(net, torch.rand(4, 9)), "snntorch")[1]
    assert float(lif.sigma) == pytest.approx(0.6)
    assert float(lif.threshold) == pytest.approx(2.0)
    x = torch.full((1, 9), 0.5).expand(4000, 9)
    rates = []
    for model, weight in ((net, net[0]), (nn.Sequential(nn.Linear(9, 7), lif), None)):
        if weight is None:
            model[0].load_state_dict(net[0].state_dict())
        functional.reset_net(model)
        with torch.no_grad():
            rates.append(sum(model(x) for _ in range(3)).mean(0))
    assert float((rates[0] - rates[1]).abs().max()) / 3 < 7 * math.sqrt(2 * 0.25 / 12_000)


def test_the_frameworks_own_importers_read_it(tmp_path: Path) -> None:
    from snntorch.import_nir import import_from_nir as to_snntorch
    from spikingjelly.activation_based.nir_exchange import import_from_nir as to_spikingjelly

    x = inputs("linear")
    net = swap_neurons(SNNTORCH["linear"](), sigma=0.3)
    wanted, file = spikes(net, x), through_a_file(to_nir(net, x[0]), tmp_path)
    theirs, state, seen = to_spikingjelly(file), None, []
    for step in x:
        out, state = theirs(step, state)
        seen.append(out)
    assert torch.equal(torch.stack(seen), wanted)
    theirs, state, seen = to_snntorch(nir.read(file)), None, []
    for step in x:
        out, state = theirs(step, state)
        seen.append(out[0] if isinstance(out, tuple) else out)
    assert torch.equal(torch.stack(seen), wanted)


def test_learned_levels_and_a_learner_travel_and_the_network_stays_as_it_is(tmp_path: Path) -> None:
    net = swap_neurons(SNNTORCH["linear"](), sigma=0.5)
    learner = NITLearner(net, replicas=4, learn_sigma=True)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    x = inputs("linear")
    with learner.record():
        losses = sum(net(learner.expand(step)) for step in x[:3]).sum(1)
    learner.backward(losses)
    optimizer.step()
    net(x[0])  # leaves a state with a surrogate's graph behind
    before = {name: value.clone() for name, value in net.state_dict().items()}
    back = from_nir(through_a_file(to_nir(net, x[0]), tmp_path), "snntorch")
    for name, old in noisy_neurons(net).items():
        assert old.sigma.shape and torch.equal(noisy_neurons(back)["_" + name].sigma, old.sigma)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    NITLearner(back, replicas=2)  # can be trained on


def test_a_network_without_noise_comes_back_without() -> None:
    back = from_nir(to_nir(SNNTORCH["linear"](), torch.rand(2, 9)), "snntorch")
    assert not noisy_neurons(back) and type(back[1]) is snn.Leaky


def test_another_time_step() -> None:
    net, x = swap_neurons(SNNTORCH["linear"](), sigma=0.3), inputs("linear")
    graph = to_nir(net, x[0], dt=1e-3)
    assert float(graph.nodes["_1"].tau[0]) == pytest.approx(5e-3)
    assert torch.equal(spikes(from_nir(graph, "snntorch", dt=1e-3), x), spikes(net, x))
    with pytest.raises(ExchangeError, match="dt is a duration"):
        to_nir(net, x[0], dt=0.0)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(9, 7), leaky(reset_mechanism="subtract")), "_1.*subtract"),
        (lambda: nn.Sequential(nn.Linear(9, 7), leaky(reset_mechanism="none")), "'none'"),
        (lambda: nn.Sequential(nn.Linear(9, 7), synaptic(reset_delay=True)), "reset_delay=False"),
        (lambda: nn.Sequential(nn.Linear(9, 7), leaky(init_hidden=False)), "init_hidden=True"),
        (lambda: nn.Sequential(nn.Linear(9, 7), leaky(graded_spikes_factor=2.0)), "graded"),
        (lambda: nn.Sequential(nn.Linear(9, 7), synaptic(beta=1.0)), "infinite time constant"),
        (lambda: nn.Sequential(nn.Linear(9, 7), snn.Lapicque(beta=0.5)), "like Lapicque"),
        (lambda: nn.Sequential(nn.Linear(9, 7), neuron.LIFNode(v_reset=None)), "_1.*soft"),
        (
            lambda: nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), leaky(init_hidden=False)),
            "_1: NIR has no BatchNorm1d; _2: its state",
        ),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), leaky()), "groups"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, (3, 2)), leaky()), "not square"),
        (lambda: nn.Sequential(nn.Linear(9, 7), nn.ReLU()), "no spiking neuron"),
        (lambda: leaky(), "a single neuron"),
    ],
)
def test_refusals_name_the_layer_and_the_reason(net: Any, message: str) -> None:
    with pytest.raises(ExchangeError, match=message):
        to_nir(net(), torch.rand(2, 9))


def test_a_loop_over_time_and_a_residual_sum_are_refused() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = SNNTORCH["linear"]()

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.body(x) for _ in range(3)])

    class Residual(Loop):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + x[:, :5]

    for net in (Loop(), Residual()):
        with pytest.raises(ExchangeError, match="one time step of a chain"):
            to_nir(net, torch.rand(2, 9))
    to_nir(Loop().body, torch.rand(2, 9))


def test_graphs_that_cannot_come_back() -> None:
    graph = to_nir(swap_neurons(SNNTORCH["synaptic"]()), torch.rand(2, 9))
    with pytest.raises(ExchangeError, match=r"_1: .*no noisy counterpart"):
        from_nir(graph, "spikingjelly")
    with pytest.raises(ExchangeError, match="must be one of"):
        from_nir(graph, "norse")
    del graph.nodes["_3"].metadata["sigma"]
    with pytest.raises(ExchangeError, match=r"no sigma: _3"):
        from_nir(graph, "snntorch")
    graph.nodes["_3"].v_reset = graph.nodes["_3"].v_reset - 1
    with pytest.raises(ExchangeError, match="_3: it is reset to another level"):
        from_nir(graph, "snntorch")
    graph.edges.append(("_1", "_3"))
    with pytest.raises(ExchangeError, match="not a chain"):
        from_nir(graph, "snntorch")
    own = to_nir(SNNTORCH["every neuron its own"](), torch.rand(2, 9))
    with pytest.raises(ExchangeError, match="from neuron to neuron"):
        from_nir(own, "spikingjelly")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ImportError, match=r"nit-snn\[nir\]"):
        to_nir(SNNTORCH["linear"](), torch.rand(2, 9))
