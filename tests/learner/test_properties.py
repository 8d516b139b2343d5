"""What must hold for every network, loss and option: the algebra of the estimators, round trips."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import reset_nodes
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.dynamics.executor import Steps
from nit_snn.dynamics.lif import MembraneRule
from nit_snn.dynamics.needs import Needs
from nit_snn.dynamics.torch_executor import TorchExecutor
from nit_snn.estimators.baselines import Sharing, advantages
from nit_snn.gradients.synapses.linear import linear_gradient
from nit_snn.neurons import NoisyActivation
from nit_snn.noise.streams import ReplicaNoise
from nit_snn.recording import bits
from nit_snn.recording.memory_budget import MemoryBudget

BATCH, REPLICAS = 3, 8
few = settings(max_examples=15, deadline=None, derandomize=True)
many = settings(max_examples=80, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
resets = st.sampled_from(["zero", "subtract", "none"])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"baseline": "batch-mean"},
    {"baseline": "none"},
    {"rule": "nit-s"},
    {"antithetic": True},
    {"conditional": True},
    {"learn_sigma": True},
    {"noise_reuse": True},
]
options = st.sampled_from(OPTIONS)
credits = st.fixed_dictionaries(
    {
        "credit": st.sampled_from(["readout", "layers", "time"]),
        "residual": st.sampled_from([0.0, 0.5, 1.0]),
        "conditional": st.booleans(),
        "learn_sigma": st.booleans(),
    }
)


class Net(nn.Module):
    """Layers of any of the neurons, run for some steps; gives out summed spikes, (N, last)."""

    def __init__(self, layers: list[nn.Module], steps: int) -> None:
        super().__init__()
        self.layers, self.steps = nn.Sequential(*layers), steps

    def forward(self, x: Tensor) -> Tensor:
        reset_nodes(self)
        for module in self.modules():
            if isinstance(module, snn.SpikingNeuron):
                module.reset_mem()
        return torch.stack([self.layers(x) for _ in range(self.steps)]).sum(0)


@st.composite
def networks(draw: st.DrawFn, recurrent: bool = True) -> Net:
    """One to three layers, dense, normalised or behind a bias-free synapse, over 1 to 4 steps."""
    torch.manual_seed(draw(seeds))
    widths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers.append(nn.Linear(inputs, outputs, bias=draw(st.booleans())))
        if draw(st.booleans()):
            layers.append(nn.LayerNorm(outputs))
        layers.append(draw(spiking(outputs, recurrent)))
    return Net(layers, draw(st.integers(1, 4))).double()


@st.composite
def spiking(draw: st.DrawFn, width: int, recurrent: bool) -> nn.Module:
    """A neuron of either framework."""
    kinds = ["Leaky", "Synaptic", "IFNode", "LIFNode"] + ["RLeaky"] * recurrent
    kind = draw(st.sampled_from(kinds))
    if kind == "IFNode":
        return neuron.IFNode(v_reset=draw(st.sampled_from([None, 0.0])))
    if kind == "LIFNode":
        v_reset = draw(st.sampled_from([None, 0.0, -0.25]))
        return neuron.LIFNode(tau=2.0, decay_input=draw(st.booleans()), v_reset=v_reset)
    shared = {"beta": 0.75, "reset_mechanism": draw(resets), "init_hidden": True}
    if kind == "RLeaky":
        return snn.RLeaky(linear_features=width, **shared)
    if kind == "Synaptic":
        return snn.Synaptic(alpha=0.5, **shared)
    return snn.Leaky(**shared)


def inputs(net: Net) -> Tensor:
    return torch.randn(BATCH, net.layers[0].in_features, dtype=torch.float64)


def numbers() -> Tensor:
    return torch.randn(REPLICAS * BATCH, dtype=torch.float64)


def gradients(net: Net, x: Tensor, losses: Tensor, seed: int, **chosen: Any) -> list[Tensor]:
    """The estimate of a pass whose losses are these, whatever the network did."""
    net = swap_neurons(copy.deepcopy(net), sigma=0.7)
    learner = NITLearner(net, replicas=REPLICAS, credit="none", seed=seed, **chosen)
    with learner.record():
        net(learner.expand(x))
    learner.backward(losses)
    return [p.grad for p in net.parameters() if p.grad is not None]


def same(first: list[Tensor], second: list[Tensor], scale: float = 1.0) -> None:
    assert first and len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, scale * b, rtol=1e-6, atol=1e-8)


def scores(noise: Tensor, sigma: Tensor, signs: bool = False) -> tuple[TorchExecutor, Steps]:
    """The noise of one step, (N, *), and who weighs it."""
    steps = Steps([0], noise.shape, noise.dtype, False, MembraneRule(), noise=noise)
    return TorchExecutor(None, sigma, Needs(signs=signs), MemoryBudget(), True), steps


def weighted_score(noise: Tensor, weight: Tensor, sigma: Tensor, signs: bool = False) -> Tensor:
    """`A * score / sigma`, or `A * sign(score)`."""
    executor, steps = scores(noise, sigma, signs)
    ((_, found),) = executor.weighted_scores(steps, weight, 1.0, False)
    return found[0]


def sigma_gradient(noise: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """`sum A * (eps^2 - 1) / sigma`."""
    executor, steps = scores(noise, sigma)
    return executor.sigma_scores(steps, weight).sum_to_size(sigma.shape) / sigma


@few
@given(networks(), options, seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_the_gradient_is_linear_in_the_losses(
    net: Net, chosen: dict[str, Any], seed: int, a: float, b: float
) -> None:
    x, one, two = inputs(net), numbers(), numbers()
    parts = zip(
        gradients(net, x, one, seed, **chosen),
        gradients(net, x, two, seed, **chosen),
        strict=True,
    )
    expected = [a * g + b * h for g, h in parts]
    same(gradients(net, x, a * one + b * two, seed, **chosen), expected)


@few
@given(networks(), options, seeds)
def test_a_baseline_takes_off_what_all_replicas_share(
    net: Net, chosen: dict[str, Any], seed: int
) -> None:
    """A constant for each sample; with the batch's mean, one for all; with none it is left."""
    x, losses = inputs(net), numbers()
    baseline = chosen.get("baseline", "leave-one-out")
    shift = torch.randn(1 if baseline == "batch-mean" else BATCH, dtype=torch.float64) + 10
    shifted = losses + shift.expand(BATCH).repeat(REPLICAS)
    found = [gradients(net, x, values, seed, **chosen) for values in (losses, shifted)]
    if baseline == "none":
        assert any(not torch.allclose(a, b) for a, b in zip(*found, strict=True))
    else:
        same(*found)


@few
@given(networks(), options, seeds)
def test_both_routes_agree_on_any_network(net: Net, chosen: dict[str, Any], seed: int) -> None:
    if chosen.get("rule") == "nit-s":
        chosen = {}  # the general route has no presynaptic factor to take the sign of
    x, losses = inputs(net), numbers()
    fast = gradients(net, x, losses, seed, **chosen)
    same(fast, gradients(net, x, losses, seed, route="general", **chosen))


@few
@given(networks(), seeds, st.sampled_from([{}, {"learn_sigma": True}]))
def test_all_ways_to_remember_a_pass_agree(net: Net, seed: int, chosen: dict[str, Any]) -> None:
    x, losses = inputs(net), numbers()
    found = [gradients(net, x, losses, seed, recompute=again, **chosen) for again in (False, True)]
    same(*found)


def learned(net: Net, x: Tensor, seed: int, **chosen: Any) -> list[Tensor]:
    """The estimate of a pass whose losses are a smooth function of the output spikes."""
    net = swap_neurons(copy.deepcopy(net), sigma=0.7)
    learner = NITLearner(net, replicas=REPLICAS, seed=seed, **chosen)
    with learner.record():
        out = net(learner.expand(x))
    learner.backward((0.7 * out).sin().sum(1) + out.square().sum(1) / 5)
    return [p.grad for p in net.parameters() if p.grad is not None]


@few
@given(networks(), credits, seeds)
def test_all_ways_agree_on_a_credit(net: Net, chosen: dict[str, Any], seed: int) -> None:
    """The general route, and noise that is drawn again."""
    x = inputs(net)
    expected = learned(net, x, seed, **chosen)
    same(learned(net, x, seed, route="general", **chosen), expected)
    if not chosen["conditional"]:
        same(learned(net, x, seed, recompute=True, **chosen), expected)


@few
@given(networks(), credits, seeds, st.floats(0.1, 0.9))
def test_the_residual_is_added_by_its_weight(
    net: Net, chosen: dict[str, Any], seed: int, weight: float
) -> None:
    x = inputs(net)
    parts = zip(
        *(learned(net, x, seed, **{**chosen, "residual": r}) for r in (0.0, 1.0)), strict=True
    )
    expected = [(1 - weight) * cheap + weight * exact for cheap, exact in parts]
    same(learned(net, x, seed, **{**chosen, "residual": weight}), expected)


@few
@given(resets, seeds, st.sampled_from([0.25, 2.0, 8.0]), st.booleans())
def test_the_unit_of_the_membrane_is_free(reset: str, seed: int, k: float, given: bool) -> None:
    """Weights, thresholds and noise k times as large: the same spikes, the gradient over k."""
    chosen = {"conditional": given, "credit": "none", "learn_sigma": True}
    found = []
    for unit in (1.0, k):
        torch.manual_seed(seed)
        lif = snn.Leaky(beta=0.75, threshold=unit, reset_mechanism=reset, init_hidden=True)
        net = Net([nn.Linear(3, 4), lif], 3).double()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(unit)
        x, losses = inputs(net), numbers()
        swap_neurons(net, sigma=0.5 * unit)
        learner = NITLearner(net, replicas=REPLICAS, seed=seed, **chosen)
        with learner.record():
            spikes = net(learner.expand(x))
        learner.backward(losses)
        found.append((spikes, [p.grad for p in net.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert len(found[0][1]) == 3
    same(found[0][1], found[1][1], scale=k)


@many
@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 3), seeds)
def test_replicas_have_no_order(replicas: int, samples: int, width: int, seed: int) -> None:
    """Their advantages move with them, and the gradient is the same."""
    torch.manual_seed(seed)
    losses, order = torch.randn(replicas, samples).double(), torch.randperm(replicas)
    moved = advantages(losses[order], "leave-one-out")
    torch.testing.assert_close(moved, advantages(losses, "leave-one-out")[order])
    eps = torch.randn(replicas, samples, width).double()
    activity = torch.randn(replicas, samples, 2).double()
    layer, found = nn.Linear(2, width).double(), []
    for way in (torch.arange(replicas), order):
        weight = advantages(losses[way], "leave-one-out").flatten()
        score = weighted_score(eps[way].flatten(0, 1), weight, torch.tensor(0.5))
        found.append(list(linear_gradient(layer, activity[way].flatten(0, 1), score).values()))
    same(*found)


@many
@given(st.integers(2, 5), st.integers(1, 4), seeds)
def test_a_pair_is_left_out_together_and_may_be_turned_round(
    half: int, samples: int, seed: int
) -> None:
    torch.manual_seed(seed)
    losses, pairs = torch.randn(2 * half, samples).double(), Sharing(antithetic=True)
    found = advantages(losses, "leave-one-out", pairs)
    turned = advantages(losses.roll(half, 0), "leave-one-out", pairs)
    torch.testing.assert_close(turned, found.roll(half, 0))
    means = (losses[:half] + losses[half:]) / 2
    of_pairs = advantages(means, "leave-one-out")
    torch.testing.assert_close((found[:half] + found[half:]) / 2, of_pairs)


@many
@given(st.integers(1, 4), st.integers(1, 3), seeds, st.integers(0, 9))
def test_noise_has_a_name_and_pairs_have_its_mirror(
    half: int, rows: int, seed: int, call: int
) -> None:
    """A replica's noise does not depend on how many there are, and its partner has minus it."""
    where = {"index": 3, "layer": 0, "call": call, "layers": 1}
    few = ReplicaNoise(seed, half).draw((half * rows, 2), **where)
    pairs = ReplicaNoise(seed, 2 * half, antithetic=True).draw((2 * half * rows, 2), **where)
    assert torch.equal(pairs[half * rows :], -pairs[: half * rows])
    if call == 0:
        assert torch.equal(pairs[: half * rows], few)
    other = ReplicaNoise(seed + 1, half).draw((half * rows, 2), **where)
    assert not torch.equal(few, other)


@few
@given(seeds, st.floats(0.1, 3))
def test_pairs_cancel_what_is_even_in_the_noise(seed: int, sigma: float) -> None:
    """A loss that is even in it has no gradient, to the last pair; an odd one has."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 2), NoisyActivation(nn.Identity(), sigma=sigma)).double()
    x = torch.randn(BATCH, 3, dtype=torch.float64)
    chosen = {"credit": "none", "antithetic": True, "baseline": "none"}
    learner = NITLearner(net, replicas=REPLICAS, seed=seed, **chosen)
    for power, vanishes in ((2, True), (1, False)):
        net.zero_grad()
        with learner.record():
            u = net(learner.expand(x))
        losses = ((u - net[0](learner.expand(x))) ** power).sum(1)
        learner.backward(losses.detach())
        assert (float(net[0].weight.grad.abs().max()) < 1e-10) == vanishes


@many
@given(st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 4), st.floats(0.25, 4), seeds)
def test_scores_scale_with_the_noise_level(
    rows: int, width: int, sigma: float, k: float, seed: int
) -> None:
    """The gradients of weights and of sigma go with 1 / sigma; the sign direction does not."""
    torch.manual_seed(seed)
    score, weight = torch.randn(rows, width).double(), torch.randn(rows).double()
    level, more = torch.tensor(sigma).double(), torch.tensor(k * sigma).double()
    for gradient in (weighted_score, sigma_gradient):
        same([gradient(score, weight, level)], [gradient(score, weight, more)], scale=k)
    same(*([weighted_score(score, weight, s, signs=True)] for s in (level, more)))
    same([weighted_score(-score, -weight, level)], [weighted_score(score, weight, level)])
    each = sigma_gradient(score, weight, level.expand(width))
    torch.testing.assert_close(each.sum(), sigma_gradient(score, weight, level))


@few
@given(networks(), st.sampled_from([{}, {"conditional": True}, {"route": "general"}]), seeds)
def test_a_step_is_charged_with_what_comes_later(
    net: Net, chosen: dict[str, Any], seed: int
) -> None:
    """A loss of the last step charges every step alike; one of the first step the first alone."""
    x, step, steps = inputs(net), numbers(), net.steps
    losses = torch.zeros(steps, len(step), dtype=torch.float64)
    losses[-1] = step
    found = gradients(net, x, losses, seed, per_step_losses=True, **chosen)
    same(found, gradients(net, x, step, seed, **chosen))
    losses = losses.roll(1, 0)
    found = gradients(net, x, losses, seed, per_step_losses=True, **chosen)
    net.steps = 1
    same(found, gradients(net, x, step, seed, **chosen))


@many
@given(seeds, st.integers(1, 20), st.lists(st.integers(0, 3), max_size=3))
def test_bits_however_they_were_packed(seed: int, steps: int, shape: list[int]) -> None:
    torch.manual_seed(seed)
    spikes = torch.randint(2, (steps, *shape)).bool()
    packed = bits.pack(spikes)
    one_by_one = bits.empty(steps, shape)
    for t in torch.randperm(steps).tolist():
        bits.pack_into(one_by_one, spikes[t], t)
    assert torch.equal(packed, one_by_one)
    assert torch.equal(packed, bits.pack(spikes.double()))
    some = range(steps // 3, steps, 2)
    assert torch.equal(bits.unpack(packed, some, torch.bool), spikes[steps // 3 :: 2])


@few
@given(networks(), seeds)
def test_swap_and_restore_bring_the_network_back(net: Net, seed: int) -> None:
    net, x = net.float(), inputs(net).float()  # snnTorch's own spikes are float32, whatever it gets
    before, kinds = net(x).detach(), [type(m) for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    swap_neurons(net, sigma=0.5)
    with noise_off(net):
        torch.testing.assert_close(net(x), before)
    restore_neurons(net)
    assert [type(m) for m in net.modules()] == kinds
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    torch.testing.assert_close(net(x), before)


@few
@given(networks(), options, seeds)
def test_a_checkpoint_goes_on_with_the_same_noise(
    net: Net, chosen: dict[str, Any], seed: int
) -> None:
    """Network and learner, through a file that holds tensors and numbers alone."""
    x, losses = inputs(net), numbers()

    def attached(seed: int) -> tuple[nn.Module, NITLearner]:
        mine = swap_neurons(copy.deepcopy(net), sigma=0.7)
        return mine, NITLearner(mine, replicas=REPLICAS, credit="none", seed=seed, **chosen)

    def another(mine: nn.Module, learner: NITLearner) -> list[Tensor]:
        mine.zero_grad()
        with learner.record():
            mine(learner.expand(x))
        learner.backward(losses)
        return [p.grad.clone() for p in mine.parameters() if p.grad is not None]

    first, learner = attached(seed)
    another(first, learner)
    file = io.BytesIO()
    torch.save({"net": first.state_dict(), "learner": learner.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, resumed = attached(seed + 1)
    second.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["learner"])
    same(another(second, resumed), another(first, learner))


def test_a_property_can_fail() -> None:
    with pytest.raises(AssertionError):
        same([torch.ones(1)], [torch.zeros(1)])
