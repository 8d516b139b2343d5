"""The residual's weight: fixed, measured, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import oracle
import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.estimators import residual, surrogate
from nit_snn.estimators.residual import WienerResidual

X = torch.linspace(-1, 2, 24, dtype=torch.float64).view(6, 4)


class Memory(nn.Module):
    """A synaptic current, which the loss reads as well as the membranes; (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lif1 = snn.Leaky(beta=0.7)
        self.lif2 = snn.Synaptic(alpha=0.6, beta=0.7)

    def forward(self, x: Tensor) -> Tensor:
        mem1, (syn, mem2) = self.lif1.reset_mem(), self.lif2.reset_mem()
        total = torch.zeros(len(x), 3, dtype=x.dtype)
        for _ in range(3):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, syn, mem2 = self.lif2(self.fc2(spikes), syn, mem2)
            total = total + spikes + syn.tanh()
        return total


class Between(nn.Module):
    """Two layers with a normalisation that learns between them; (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.lif1, self.lif2 = (snn.Leaky(beta=0.7) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        total = torch.zeros(())
        for _ in range(3):
            spikes, mem1 = self.lif1(self.norm(self.fc1(x)), mem1)
            spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
            total = total + spikes
        return total


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "spikingjelly, sequences": SpikingJellyNet,
    "spikingjelly, steps": lambda: SpikingJellyNet(mode="s", v_reset=None),
    "general route": Between,
    "synaptic": Memory,
}


def gradients(build: Callable[[], nn.Module], **options: Any) -> dict[str, Tensor]:
    """Of one pass, by parameter, and that of the input."""
    torch.manual_seed(2)
    net = swap_neurons(build(), sigma=0.6).double()
    given = {"replicas": 4, "seed": 3, "learn_sigma": True, **options}
    learner = NITLearner(net, **given)
    x = X.clone().requires_grad_()
    with learner.record():
        out = net(learner.expand(x))
        losses = -out.log_softmax(1)[:, 0] + 0.1 * out.square().sum(1)
    learner.backward(losses)
    learner.close()
    found = {n: p.grad for n, p in net.named_parameters()}
    assert x.grad is not None
    return {**found, "x": x.grad}


CREDITS = [
    {"credit": credit, "conditional": conditional}
    for credit in ("readout", "layers", "time")
    for conditional in (False, True)
]


@pytest.mark.parametrize("options", CREDITS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_half_is_the_average_of_none_and_all(name: str, options: dict[str, Any]) -> None:
    build = NETWORKS[name]
    none, half, every = (gradients(build, residual=r, **options) for r in (0, 0.5, 1))
    assert any((none[n] - every[n]).abs().max() > 1e-3 for n in none)
    for parameter, found in half.items():
        torch.testing.assert_close(found, (none[parameter] + every[parameter]) / 2)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("options", CREDITS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_that_measures_gives_what_any_other_gives(
    name: str, options: dict[str, Any], weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With lambda = 1 the unbiased gradient; also of what lies outside of the noise's reach."""
    measured = []
    own = WienerResidual.update
    monkeypatch.setattr(WienerResidual, "weight", lambda self, layer: weight)
    monkeypatch.setattr(
        WienerResidual, "update", lambda self, *args: (measured.append(args), own(self, *args))[1]
    )
    found = gradients(NETWORKS[name], residual="auto", **options)
    assert measured
    wanted = gradients(NETWORKS[name], residual=weight, **options)
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(
            found[parameter], gradient, msg=lambda text, p=parameter: f"{p}: {text}"
        )


def test_a_measure_is_of_the_halves_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`<r_1, r_2>` and `|(r_1 + r_2) / 2|^2`, of r = U - K with the other half's losses at zero."""
    seen: dict[str, tuple[float, float]] = {}
    monkeypatch.setattr(
        WienerResidual, "update", lambda self, layer, *numbers: seen.update({layer: numbers})
    )

    def of(rows: slice | None, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(2)
        net = swap_neurons(SnnTorchNet(), sigma=0.6).double()
        learner = NITLearner(net, replicas=4, seed=3, credit="layers", **options)
        with learner.record():
            losses = net(learner.expand(X)).tanh().sum(1).view(4, 6)
        if rows is not None:
            kept = torch.zeros(6, dtype=torch.float64)
            kept[rows] = 1
            losses = losses * kept
        learner.backward(losses.flatten())
        return {n: p.grad for n, p in net.named_parameters()}

    of(None, residual="auto")
    for layer, names in (
        ("lif1", ("fc1.weight", "fc1.bias")),
        ("lif2", ("fc2.weight", "fc2.bias")),
    ):
        halves = []
        for rows in (slice(0, 3), slice(3, 6)):
            exact, cheap = of(rows, residual=1), of(rows, residual=0)
            halves.append(torch.cat([(exact[n] - cheap[n]).flatten() for n in names]))
        one, other = halves
        product, square = seen[layer]
        assert product == pytest.approx(float(one @ other), rel=1e-9)
        assert square == pytest.approx(float(((one + other) / 2).square().sum()), rel=1e-9)


def one_neuron(framework: str) -> nn.Module:
    if framework == "snntorch":
        return nn.Sequential(nn.Linear(4, 1), snn.Leaky(beta=0.5, init_hidden=True))
    return nn.Sequential(nn.Linear(4, 1), neuron.LIFNode(2.0, decay_input=False))


@pytest.mark.parametrize("credit", ["readout", "layers", "time"])
@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
def test_one_spike_in_a_linear_loss_has_no_bias(framework: str, credit: str) -> None:
    """Of one neuron and one step the cheap estimate is the exact gradient, whatever the draw."""
    net = swap_neurons(one_neuron(framework), sigma=0.6).double()
    net[1].sigma.fill_(0.6)
    dynamics = oracle.Leaky(0.5, "subtract") if framework == "snntorch" else oracle.LIF(2.0, False)
    learner = NITLearner(net, replicas=1, seed=1, credit=credit, residual=0, learn_sigma=True)
    with learner.record():
        spikes = net(learner.expand(X))
    learner.backward(3.0 * spikes[:, 0] - 1.0)

    def expected(current: float, sigma: float) -> float:
        return 3.0 * float(
            oracle.pattern_probabilities(oracle.Neuron(dynamics, sigma), [current])[1]
        )

    currents = net[0](X).detach().flatten().tolist()
    step, by_current, by_sigma = 1e-5, [], []
    for current in currents:
        ends = [expected(current + s, 0.6) - expected(current - s, 0.6) for s in (step,)]
        by_current.append(ends[0] / (2 * step))
        by_sigma.append(
            (expected(current, 0.6 + step) - expected(current, 0.6 - step)) / (2 * step)
        )
    slopes = torch.tensor(by_current, dtype=torch.float64)
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(net[0].weight.grad[0], (slopes[:, None] * X).mean(0), **close)
    torch.testing.assert_close(net[0].bias.grad, slopes.mean()[None], **close)
    level = torch.tensor(by_sigma, dtype=torch.float64).mean()
    torch.testing.assert_close(net[1].sigma.grad.sum(), level, **close)


def learned_weight(replicas: int, monkeypatch: pytest.MonkeyPatch, wrong: str) -> float:
    """lambda of one noisy layer after 60 passes that all measure.

    Args:
        replicas: C.
        monkeypatch: For the credit.
        wrong: "sign" turns the cheap estimate around, "nothing" leaves it: exact for this loss,
            linear in the spikes of one step, to which something random is added.
    """
    monkeypatch.setattr(residual, "_FIRST", 10**9)
    own = surrogate.walk_back

    def turned(*args: Any) -> Any:
        *args, take, known = args

        def turn(layer: Any, chunk: Any) -> None:
            take(layer, replace(chunk, values=-chunk.values))

        return own(*args, turn, known)

    if wrong == "sign":
        monkeypatch.setattr(surrogate, "walk_back", turned)
    torch.manual_seed(0)
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5, init_hidden=True)), 0.6)
    learner = NITLearner(net, replicas=replicas, seed=1, credit="layers", residual="auto")
    generator = torch.Generator().manual_seed(4)
    for _ in range(60):
        learner.reset()
        x = 1 + 0.2 * torch.randn(8, 4, generator=generator)
        with learner.record():
            spikes = net(learner.expand(x))
        anything = torch.randn(len(spikes), generator=generator)
        learner.backward(spikes @ torch.tensor([1.0, -2.0, 0.5]) + anything)
    monkeypatch.undo()
    (found,) = learner.residual_weights.values()
    return found


@pytest.mark.montecarlo
def test_the_weight_is_what_the_residual_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 passes each, with 2, 16 and 256 replicas: where the credit points the wrong way, lambda
    tends to 1, less two standard errors; where it is exact, and the residual is nothing but
    noise, it is 0."""
    worth = [learned_weight(c, monkeypatch, "sign") for c in (2, 16, 256)]
    assert worth[0] < worth[1] < worth[2] and worth[2] > 0.85, worth
    noise = [learned_weight(c, monkeypatch, "nothing") for c in (2, 16, 256)]
    assert max(noise) < 0.05, noise


def test_nothing_is_known_before_the_first_pass_and_a_single_replica_tells_nothing() -> None:
    for replicas in (1, 4):
        net = swap_neurons(SnnTorchNet())
        learner = NITLearner(net, replicas=replicas, credit="layers")
        assert set(learner.residual_weights.values()) == {0.0}
        with learner.record():
            losses = net(learner.expand(X.float())).square().sum(1)
        learner.backward(losses)
        wiener = learner._choice.wiener
        assert wiener is not None and wiener.passes == (0 if replicas == 1 else 1)
        learner.close()


def test_after_the_first_few_every_sixteenth_pass_measures() -> None:
    found = WienerResidual()
    measuring = []
    for passes in range(40):
        found.passes = passes
        measuring += [passes] if found.measures() else []
    assert measuring == [0, 1, 2, 3, 16, 32]


def test_a_weight_lies_between_0_and_1_and_a_negligible_one_is_0() -> None:
    found = WienerResidual()
    for layer, product in (("a", 2.0), ("b", -1.0), ("c", 0.01), ("d", 0.4)):
        for _ in range(4):
            found.update(layer, product, 1.0)
    weights = [found.weight(layer) for layer in "abcde"]
    assert weights == pytest.approx([1.0, 0.0, 0.0, 0.4, 0.0])


def test_a_weight_is_two_standard_errors_below_what_was_measured() -> None:
    """Of a mean that weighs the k-th last measure by 0.95 ** k; with fewer than 4 it is 0."""
    found, measures = WienerResidual(), torch.tensor([0.9, 0.5, 0.7, 0.6, 0.8], dtype=torch.float64)
    for number, product in enumerate(measures.tolist(), start=1):
        found.update("a", product, 2.0)
        if number < 4:
            assert found.weight("a") == 0.0
    shares = 0.95 ** torch.arange(4, -1, -1, dtype=torch.float64)
    shares /= shares.sum()
    mean = (shares * measures).sum()
    spread = (shares * (measures - mean).square()).sum() / (1 / shares.square().sum() - 1)
    assert found.weight("a") == pytest.approx(float(mean - 2 * spread.sqrt()) / 2)
