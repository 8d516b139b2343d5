"""register_neuron: neurons of one's own are swapped, restored, and learn without a bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import AttachError, SwapError
from nit_snn.neurons import NoisyLeaky, NoisyLIFNode, NoisyNeuron, register_neuron, registry

STEPS = 3


class Saturating(snn.Leaky):
    """Leaky, but what is carried over saturates: beta * tanh(u)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(beta=0.75, **options)

    def _base_state_function(self, input_: Tensor) -> Tensor:
        return self.beta * torch.tanh(self.mem) + input_


class NoisySaturating(NoisyLeaky, Saturating):
    _lif = None
    _gain = 1.0

    def _noisy_state(self, input_: Tensor) -> Tensor:
        zeroes = self.reset_mechanism == "zero"

        def drift(current: Tensor, mem: Tensor) -> Tensor:
            carried = (1 - self.reset) * mem if zeroes else mem
            return self.beta * torch.tanh(carried) + current

        return self._charged(drift, input_)

    def why_not_pathwise(self) -> str | None:
        return "its decay depends on its membrane"


class SaturatingNode(neuron.LIFNode):
    """The same in SpikingJelly: tanh(v) + x, and a hard reset."""

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        h = torch.tanh(torch.as_tensor(states[0])) + inputs[0]
        spike = self.surrogate_function(h - self.v_threshold)
        return (spike,), (torch.where(spike > 0, torch.zeros_like(h), h),)

    multi_step_functional_forward = neuron.BaseNode.multi_step_functional_forward


class NoisySaturatingNode(NoisyLIFNode, SaturatingNode):
    _lif = None
    _gain = 1.0

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        return torch.tanh(membrane) + current

    def why_not_pathwise(self) -> str | None:
        return "its decay depends on its membrane"


@dataclass(frozen=True)
class Truth:
    """Both in the oracle, without noise and without torch."""

    beta: float
    subtracts: bool = False
    start: float = 0.0

    def drift(self, carried: Any, current: Any, threshold: float) -> Any:
        fired = carried > threshold
        kept = carried if self.subtracts else np.where(fired, 0.0, carried)
        return self.beta * np.tanh(kept) + current - (fired * threshold if self.subtracts else 0.0)

    def carry(self, u: Any, threshold: float) -> Any:
        return u


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    register_neuron(Saturating)(NoisySaturating)
    register_neuron(SaturatingNode)(NoisySaturatingNode)
    yield


class Net(nn.Module):
    """(N, 3) -> two hidden -> two output neurons; returns spikes (STEPS, N, 2)."""

    def __init__(self, *neurons: nn.Module) -> None:
        super().__init__()
        self.synapse1, self.synapse2 = nn.Linear(3, 2), nn.Linear(2, 2)
        self.neuron1, self.neuron2 = neurons
        nn.init.constant_(self.synapse2.bias, 0.9)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.neuron1, neuron.BaseNode):
            functional.reset_net(self)
            current = self.synapse1(x.expand(STEPS, *x.shape))
            if self.neuron1.step_mode == "m":
                return self.neuron2(self.synapse2(self.neuron1(current)))
            return torch.stack([self.neuron2(self.synapse2(self.neuron1(c))) for c in current])
        mem1, mem2, spikes = self.neuron1.reset_mem(), self.neuron2.reset_mem(), []
        for _ in range(STEPS):
            spike, mem1 = self.neuron1(self.synapse1(x), mem1)
            spike, mem2 = self.neuron2(self.synapse2(spike), mem2)
            spikes.append(spike)
        return torch.stack(spikes)


def nodes(step_mode: str) -> Net:
    return Net(*(SaturatingNode(tau=2.0, step_mode=step_mode) for _ in range(2)))


def leaky(reset: str) -> Net:
    return Net(*(Saturating(reset_mechanism=reset) for _ in range(2)))


@pytest.mark.parametrize("make", [lambda: leaky("subtract"), lambda: nodes("m")])
def test_swapped_it_has_noise_and_without_it_is_the_plain_neuron(make: Any) -> None:
    net, x = make(), 4 * torch.randn(200, 3)
    kinds = [type(m) for m in net.modules()]
    plain = net(x)
    assert swap_neurons(net, sigma=0.5) is net
    assert isinstance(net.neuron1, NoisySaturating | NoisySaturatingNode)
    assert not torch.equal(net(x), plain)
    with noise_off(net):
        assert torch.equal(net(x), plain)
    restore_neurons(net)
    assert [type(m) for m in net.modules()] == kinds
    assert torch.equal(net(x), plain)


LAYERS = {"credit": "layers", "residual": 1}
CASES: dict[str, tuple[Any, Truth, dict[str, Any]]] = {
    "leaky subtract": (lambda: leaky("subtract"), Truth(0.75, subtracts=True), {}),
    "leaky zero, layers": (lambda: leaky("zero"), Truth(0.75), LAYERS),
    "node, multi-step, layers, learned sigma": (
        lambda: nodes("m"),
        Truth(1.0),
        {"learn_sigma": True, **LAYERS},
    ),
}


@pytest.mark.montecarlo
@pytest.mark.parametrize("name", CASES)
def test_its_estimate_equals_the_exact_gradient(name: str) -> None:
    """20 passes of 4,096 rows against quadrature; |t| < 9 with 19 degrees of freedom."""
    make, truth, options = CASES[name]
    torch.manual_seed(1)
    net = make().double()
    with torch.no_grad():
        net.synapse2.weight.mul_(2)
    swap_neurons(net, sigma=0.8)
    x = torch.randn(1, 3, dtype=torch.float64)
    learner = NITLearner(net, replicas=16, seed=11, **{"credit": "none", **options})
    estimates = []
    for _ in range(20):
        net.zero_grad()
        with learner.record():
            spikes = net(learner.expand(x.repeat(256, 1))).sum(0)
            losses = F.cross_entropy(spikes, torch.zeros(4096).long(), reduction="none")
        learner.backward(losses)
        estimates.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    learner.close()
    names = ("synapse1.weight", "W1"), ("synapse1.bias", "b1"), ("synapse2.weight", "W2")
    names += ("synapse2.bias", "b2"), ("neuron1.sigma", "sigma1"), ("neuron2.sigma", "sigma2")
    held = {n: p.detach().numpy() for n, p in net.named_parameters()}
    theta = {theirs: held.get(ours, np.array(0.8)) for ours, theirs in names}
    network = oracle.Network(
        x=np.tile(x.numpy(), (STEPS, 1)),
        dynamics1=truth,
        dynamics2=truth,
        threshold=1.0,
        loss=oracle.count_cross_entropy(0),
    )
    gradient = oracle.gradient(network, theta)
    exact = np.concatenate([np.ravel(gradient[dict(names)[n]]) for n in held])
    stacked = torch.stack(estimates).numpy()
    error = stacked.std(0, ddof=1) / 20**0.5
    assert (np.abs(stacked.mean(0) - exact) / error).max() < 9
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(exact), "too few samples to say anything"


def test_both_step_modes_give_the_same_gradient() -> None:
    gradients = []
    for step_mode in ("s", "m"):
        torch.manual_seed(2)
        net = swap_neurons(nodes(step_mode), sigma=0.8)
        learner = NITLearner(net, replicas=64, credit="none", seed=5)
        with learner.record():
            losses = net(learner.expand(torch.ones(4, 3))).sum((0, 2))
        learner.backward(losses)
        gradients.append(net.synapse1.weight.grad)
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(*gradients)


def test_options_that_were_not_described_are_refused() -> None:
    for net in (leaky("zero"), nodes("m")):
        with pytest.raises(AttachError, match="its decay depends on its membrane"):
            NITLearner(swap_neurons(net), replicas=2, conditional=True)


def test_a_subclass_is_not_looked_up() -> None:
    class Other(Saturating):
        pass

    with pytest.raises(SwapError, match=r"0 \(Other\).*register_neuron"):
        swap_neurons(nn.Sequential(Other()))


def test_a_cell_that_is_run_again_takes_the_place_of_the_first() -> None:
    def cell() -> type[NoisyNeuron]:
        @register_neuron(Plain)
        class NoisyPlain(NoisyLeaky, Plain):
            pass

        return NoisyPlain

    class Plain(snn.Leaky):
        pass

    first, net = cell(), swap_neurons(nn.Sequential(Plain(beta=0.5)))
    second, other = cell(), swap_neurons(nn.Sequential(Plain(beta=0.5)))
    assert type(net[0]) is first is not second is type(other[0])
    for swapped in (net, other):
        assert type(restore_neurons(swapped)[0]) is Plain


class Own(nn.Module):
    """Fires, but is known to neither framework."""


class NoisyOwn(NoisyNeuron, Own):
    pass


class Plain(snn.Leaky):
    pass


class Deaf(NoisyLeaky, Saturating):
    """Has forgotten the equation of Saturating."""


class DeafNode(NoisyLIFNode, SaturatingNode):
    pass


class Careless(NoisyLIFNode, SaturatingNode):
    """Changes the drift, and leaves the factor of the current at 1 / tau."""

    _lif = None

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        return torch.tanh(membrane) + current


class Twice(NoisySaturating):
    pass


@pytest.mark.parametrize(
    ("plain", "noisy", "expected"),
    [
        (Own, NoisyOwn, "NoisyOwn has the forward pass of Own, to which no noise"),
        (NoisySaturating(), NoisySaturating, "takes the plain class, got NoisySaturating"),
        (Plain, Plain, "Plain is no NoisyNeuron"),
        (Plain, NoisyLeaky, "NoisyLeaky is no subclass of Plain"),
        (NoisyLeaky, NoisyLeaky, "NoisyLeaky is no subclass of NoisyLeaky"),
        (Saturating, Twice, "Saturating has a counterpart already: .*NoisySaturating"),
        (snn.Leaky, NoisySaturating, "Leaky has a counterpart already: .*NoisyLeaky"),
    ],
)
def test_what_cannot_be_registered(plain: Any, noisy: Any, expected: str) -> None:
    before = dict(registry._REGISTERED)
    with pytest.raises(SwapError, match=expected):
        register_neuron(plain)(noisy)
    assert before == registry._REGISTERED


def test_a_noisy_class_stands_for_one_plain_class() -> None:
    class Mine(Plain):
        pass

    class NoisyMine(NoisyLeaky, Mine):
        pass

    register_neuron(Mine)(NoisyMine)
    with pytest.raises(SwapError, match="NoisyMine is already the counterpart of Mine"):
        register_neuron(Plain)(NoisyMine)


@pytest.mark.parametrize(
    ("plain", "noisy", "expected"),
    [
        (Saturating, Deaf, "changes _base_state_function.*override _noisy_state in Deaf"),
        (SaturatingNode, Careless, r"overrides _charge.*State, too: _gain \(.*; why_not_pathwise"),
        (SaturatingNode, DeafNode, "changes single_step_functional_.*override _charge in DeafNode"),
    ],
)
def test_an_equation_that_the_noise_would_pass_over_is_found(
    plain: Any, noisy: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    with pytest.raises(SwapError, match=expected):
        register_neuron(plain)(noisy)


def test_a_noisy_neuron_that_was_not_registered_cannot_be_restored() -> None:
    net = nn.Sequential(NoisyLeaky(beta=0.5), Twice())
    with pytest.raises(SwapError, match=r"No plain counterpart for: 1 \(Twice\).*register_neuron"):
        restore_neurons(net)
    assert type(net[0]) is NoisyLeaky
