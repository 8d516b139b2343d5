"""The loop's gradient is the learner's: the same network, the same noise, to float precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.dynamics.lif import Dynamics, Lif
from nit_snn.loop import Layer, Loop, Observed, last_spikes
from nit_snn.noise.streams import ReplicaNoise

STEPS, SAMPLES, SIGMA, SEED = 5, 7, 0.3125, 3


class Theirs(nn.Module):
    """Two dense layers of snnTorch's neurons; returns spike counts, (N, 3), and keeps spikes."""

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 6), make(6)
        self.fc2, self.lif2 = nn.Linear(6, 3), make(3)
        self.spikes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        first, second = [], []
        for lif in (self.lif1, self.lif2):
            lif.reset_mem()
        for now in x:
            first.append(self.lif1(self.fc1(now)))
            second.append(self.lif2(self.fc2(first[-1])))
        found = torch.stack(second)
        self.spikes = [torch.stack(first).detach(), found.detach()]
        return found.sum(0)


class Jelly(nn.Module):
    """The same of SpikingJelly's nodes, several steps at once."""

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.fc1, self.lif1 = layer.Linear(4, 6), make(6)
        self.fc2, self.lif2 = layer.Linear(6, 3), make(3)
        functional.set_step_mode(self, "m")
        self.spikes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        first = self.lif1(self.fc1(x))
        found = self.lif2(self.fc2(first))
        self.spikes = [first.detach(), found.detach()]
        return found.sum(0)


def delayed(reset: str, decay: float = 0.75, gain: float = 1.0) -> Lif:
    return Lif(Dynamics(reset=reset, delayed=True), decay, gain)


LAPICQUE = {"C": 2.0, "R": 2.0, "time_step": 1}
#: The network's class, its neuron, what that is called here, and its current's memory.
NEURONS: dict[str, tuple[type, Callable[[int], nn.Module], Lif, float]] = {
    "Leaky, subtract": (
        Theirs,
        lambda n: snn.Leaky(beta=0.75, init_hidden=True),
        delayed("soft"),
        0.0,
    ),
    "Leaky, zero": (
        Theirs,
        lambda n: snn.Leaky(beta=0.75, init_hidden=True, reset_mechanism="zero"),
        delayed("hard"),
        0.0,
    ),
    "Leaky, none": (
        Theirs,
        lambda n: snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism="none"),
        delayed("none", 0.5),
        0.0,
    ),
    "Synaptic": (
        Theirs,
        lambda n: snn.Synaptic(alpha=0.625, beta=0.75, init_hidden=True),
        delayed("soft"),
        0.625,
    ),
    "Synaptic, zero": (
        Theirs,
        lambda n: snn.Synaptic(alpha=0.625, beta=0.75, init_hidden=True, reset_mechanism="zero"),
        delayed("whole"),
        0.625,
    ),
    "Lapicque, zero": (
        Theirs,
        lambda n: snn.Lapicque(**LAPICQUE, init_hidden=True, reset_mechanism="zero"),
        delayed("whole", 0.75, 0.5),
        0.0,
    ),
    "LIFNode, hard": (
        Jelly,
        lambda n: neuron.LIFNode(tau=2.0),
        Lif(Dynamics(reset="hard", or_equal=True), 0.5, 0.5),
        0.0,
    ),
    "LIFNode, soft": (
        Jelly,
        lambda n: neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None),
        Lif(Dynamics(reset="soft", or_equal=True), 0.5),
        0.0,
    ),
    "LIFNode, above rest": (
        Jelly,
        lambda n: neuron.LIFNode(tau=2.0, v_reset=0.2),
        Lif(Dynamics(rest=0.2, v_reset=0.2, reset="hard", or_equal=True), 0.5, 0.5),
        0.0,
    ),
    "IFNode": (Jelly, lambda n: neuron.IFNode(), Lif(Dynamics(reset="hard", or_equal=True)), 0.0),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"replicas": 4},
    "batch mean": {"replicas": 1, "baseline": "batch-mean"},
    "antithetic": {"replicas": 4, "antithetic": True},
    "conditional": {"replicas": 4, "conditional": True},
    "NIT-S": {"replicas": 4, "rule": "nit-s"},
    "sigma": {"replicas": 4, "learn_sigma": True},
    "feedback": {"replicas": 1, "credit": "feedback", "residual": 0},
    "feedback, unbiased": {"replicas": 4, "credit": "feedback", "residual": 1},
    "feedback, measured": {"replicas": 4, "credit": "feedback"},
    "feedback, conditional": {
        "replicas": 4,
        "credit": "feedback",
        "residual": 1,
        "conditional": True,
        "learn_sigma": True,
    },
}


def noise_of(options: dict[str, Any], index: int, neurons: list[int]) -> list[Tensor]:
    """The learner's own, of float64, for each layer (T, N, neurons)."""
    source = ReplicaNoise(SEED, options["replicas"], options.get("antithetic", False))
    rows, count = SAMPLES * options["replicas"], len(neurons)
    return [
        torch.stack(
            [
                source.draw((rows, n), torch.float64, index=index, layer=k, call=t, layers=count)
                for t in range(STEPS)
            ]
        )
        for k, n in enumerate(neurons)
    ]


def combinations() -> list[Any]:
    """All of them; in the fast tier each neuron, and each option."""
    fast = {("Leaky, subtract", o) for o in OPTIONS} | {(n, "conditional") for n in NEURONS}
    pairs = [(n, o) for n in NEURONS for o in OPTIONS]
    marks = [() if pair in fast else pytest.mark.full for pair in pairs]
    return [pytest.param(*pair, marks=mark) for pair, mark in zip(pairs, marks, strict=True)]


@pytest.mark.parametrize(("kind", "options"), combinations())
def test_two_layers(kind: str, options: str) -> None:
    network, make, lif, memory = NEURONS[kind]
    given = {"credit": "none", **OPTIONS[options]}
    net = swap_neurons(network(make), sigma=SIGMA).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    learner = NITLearner(net, seed=SEED, **given)
    described = {
        "hidden": Layer(4, 6, lif, sigma=SIGMA, current_decay=memory),
        "out": Layer(6, 3, lif, sigma=SIGMA, current_decay=memory),
    }
    loop = Loop(described, **given)
    feedback = given["credit"] == "feedback"
    for index in range(3):  # feedback learns from pass to pass
        x = (torch.rand(STEPS, SAMPLES, 4) < 0.6).double()
        y = torch.randint(3, (SAMPLES,))
        net.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, dim=1), learner.expand(y)
            outputs = net(xr)
            losses = nn.functional.cross_entropy(outputs, yr, reduction="none")
        learner.backward(losses)
        first, second = net.spikes
        assert 0.02 < first.mean() < 0.9
        eps = noise_of(given, index, [6, 3])
        errors = outputs.detach().softmax(-1) - nn.functional.one_hot(yr, 3)
        found = loop.gradients(
            losses.detach(),
            {
                "hidden": Observed(xr, first, eps[0], weights=net.fc1.weight, bias=net.fc1.bias),
                "out": Observed(first, second, eps[1], weights=net.fc2.weight, bias=net.fc2.bias),
            },
            errors if feedback else None,
        )
        for name, synapse, lif_ in (("hidden", net.fc1, net.lif1), ("out", net.fc2, net.lif2)):
            own = found[name]
            # Through a graph, a direction has the gain as a factor.
            signed = given.get("rule") == "nit-s" and lif.dynamics.reset == "whole"
            factor = lif.gain if signed else 1.0
            close(own.weights / factor, synapse.weight.grad)
            close(own.bias / factor, synapse.bias.grad)
            if given.get("learn_sigma"):
                close(own.sigma, lif_.sigma.grad)
            else:
                assert own.sigma is None


def close(found: Tensor, wanted: Tensor | None) -> None:
    wanted = torch.zeros_like(found) if wanted is None else wanted
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_recurrent_weights(reset: str, conditional: bool) -> None:
    """The layer's own last spikes are one more group of inputs."""
    options = {"replicas": 4, "credit": "none", "conditional": conditional}
    lif = snn.RLeaky(beta=0.75, linear_features=6, init_hidden=True, reset_mechanism=reset)
    fc = nn.Linear(4, 6)
    net = swap_neurons(nn.Sequential(fc, lif), sigma=SIGMA).double()
    lif.reset_mem()
    learner = NITLearner(net, seed=SEED, **options)
    x = (torch.rand(STEPS, SAMPLES, 4) < 0.6).double()
    with learner.record():
        spikes = torch.stack([net(now) for now in learner.expand(x, dim=1)])
    losses = (spikes.sum((0, 2)) - 4).abs()
    learner.backward(losses)
    described = delayed("soft" if reset == "subtract" else "whole")
    loop = Loop({"rec": Layer([4, 6], 6, described, sigma=SIGMA)}, **options)
    spikes = spikes.detach()
    seen = Observed(
        [learner.expand(x, dim=1), last_spikes(spikes)],
        spikes,
        noise_of(options, 0, [6])[0],
        weights=[fc.weight, lif.recurrent.weight],
        bias=fc.bias + lif.recurrent.bias,
    )
    own = loop.gradients(losses, {"rec": seen})["rec"]
    close(own.weights[0], fc.weight.grad)
    close(own.bias, fc.bias.grad)
    # snnTorch's recurrent synapse has a bias of its own, which is the same one here.
    close(own.weights[1], lif.recurrent.weight.grad)


def test_losses_per_step() -> None:
    options = {"replicas": 4, "credit": "none", "per_step_losses": True}
    net = swap_neurons(Theirs(NEURONS["Leaky, subtract"][1]), sigma=SIGMA)
    learner = NITLearner(net, seed=SEED, **options)
    x = (torch.rand(STEPS, SAMPLES, 4) < 0.6).float()
    with learner.record():
        xr = learner.expand(x, dim=1)
        net(xr)
    first, second = net.spikes
    losses = (second.sum(2) - 1).abs()
    learner.backward(losses)
    loop = Loop(
        {
            "a": Layer(4, 6, delayed("soft"), sigma=SIGMA),
            "b": Layer(6, 3, delayed("soft"), sigma=SIGMA),
        },
        seed=SEED,
        **options,
    )
    loop.noise(STEPS, SAMPLES)
    found = loop.gradients(losses, {"a": Observed(xr), "b": Observed(first)})
    assert torch.allclose(found["a"].weights, net.fc1.weight.grad, atol=1e-6)
    assert torch.allclose(found["b"].weights, net.fc2.weight.grad, atol=1e-6)


def test_noise_of_the_seed_is_the_learners() -> None:
    """NumPy goes in and comes out; every pass has other noise, the same until it was learned of."""
    net = swap_neurons(Theirs(NEURONS["Leaky, zero"][1]), sigma=SIGMA)
    learner = NITLearner(net, replicas=4, credit="none", seed=SEED)
    lif = delayed("hard")
    loop = Loop(
        {"a": Layer(4, 6, lif, sigma=SIGMA), "b": Layer(6, 3, lif, sigma=SIGMA)},
        replicas=4,
        seed=SEED,
    )
    drawn = []
    for _ in range(2):
        x = (np.random.default_rng(0).random((STEPS, SAMPLES, 4)) < 0.6).astype(np.float32)
        net.zero_grad()
        with learner.record():
            outputs = net(learner.expand(torch.from_numpy(x), dim=1))
        losses = (outputs[:, 0] - 2).abs().detach()
        learner.backward(losses)
        noise = loop.noise(STEPS, SAMPLES)
        assert np.array_equal(noise["a"], loop.noise(STEPS, SAMPLES)["a"])
        drawn.append(noise["a"])
        first, second = (s.numpy() for s in net.spikes)
        weights = [p.detach().numpy() for p in net.parameters()]
        found = loop.gradients(
            losses.numpy(),
            {
                "a": Observed(loop.expand(x, 1), first, weights=weights[0], bias=weights[1]),
                "b": Observed(first, second, weights=weights[2], bias=weights[3]),
            },
        )
        assert isinstance(found["a"].weights, np.ndarray)
        assert np.allclose(found["a"].weights, net.fc1.weight.grad, atol=1e-6)
        assert np.allclose(found["b"].bias, net.fc2.bias.grad, atol=1e-6)
    assert not np.array_equal(*drawn)


def test_events_are_spikes() -> None:
    """A list of step, row and index is the same as zeros and ones."""
    loop = Loop({"out": Layer(4, 3)}, replicas=2, seed=0)
    x = (np.random.default_rng(1).random((STEPS, 2 * SAMPLES, 4)) < 0.3) * 1
    losses = np.arange(2 * SAMPLES) / 10
    loop.noise(STEPS, SAMPLES)
    dense = loop.gradients(losses, {"out": Observed(x)})["out"]
    loop.learner.passes = 0
    loop.noise(STEPS, SAMPLES)
    events = loop.gradients(losses, {"out": Observed(np.argwhere(x))})["out"]
    assert np.array_equal(dense.weights, events.weights)
    assert np.abs(dense.weights).max() > 0


def test_a_resumed_loop_goes_on_alike() -> None:
    """Noise and what feedback has learned come back from the state."""

    def passes(loop: Loop, count: int) -> np.ndarray:
        found = np.zeros(())
        for _ in range(count):
            eps = loop.noise(STEPS, SAMPLES)
            spikes = (SIGMA * eps["a"] > 0.2) * 1.0
            out = (SIGMA * eps["b"] > 0.2) * 1.0
            seen = {
                "a": Observed(np.ones((STEPS, SAMPLES, 4)), spikes, weights=np.zeros((6, 4))),
                "b": Observed(spikes, out, weights=np.zeros((3, 6))),
            }
            errors = out.sum(0) - 1
            found = loop.gradients((errors**2).sum(1) / 2, seen, errors)["a"].weights
        return found

    def make() -> Loop:
        layers = {
            name: Layer(n, m, Lif(Dynamics(), 0.0), 0.2, SIGMA, bias=False)
            for name, n, m in (("a", 4, 6), ("b", 6, 3))
        }
        return Loop(layers, credit="feedback", residual=0, seed=5)

    first = make()
    passes(first, 2)
    state = first.state_dict()
    wanted = passes(first, 1)
    second = make()
    second.load_state_dict(state)
    assert np.abs(wanted).max() > 0
    assert np.array_equal(passes(second, 1), wanted)
