"""Artificial networks: NoisyActivation, its swap, and the same learner on them.

The truth of the unbiasedness tests is NumPy alone: the expected loss of a 2-3-2 network as a
Gauss-Hermite sum over the noise of its three hidden neurons (a sum over their eight patterns
for a hard step) and of the difference of its two logits; then central differences.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import (
    AttachError,
    NonFiniteLossError,
    RecordingError,
    SwapError,
    UnreachedParameterWarning,
)
from nit_snn.inspect.probe import probe
from nit_snn.neurons import NoisyActivation
from nit_snn.noise.streams import ReplicaNoise

Array = NDArray[np.float64]

PASSES, REPLICAS, COPIES, NODES = 40, 16, 250, 24
X, Y = np.array([[0.8, -1.1], [-0.4, 0.6]]), (0, 1)
SIGMA = 0.7


def step(v: Tensor) -> Tensor:
    return (v > 0).to(v.dtype)


class Sharpened(nn.Module):
    """tanh(slope * v): smooth, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.3))

    def forward(self, v: Tensor) -> Tensor:
        return (self.slope * v).tanh()


# --- the truth --------------------------------------------------------------------------------


def hermite(nodes: int) -> tuple[Array, Array]:
    """Nodes and weights for expectations over a standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return x, w / w.sum()


def expected_loss(
    theta: dict[str, Array], case: Case, hidden_level: float, logit_level: float
) -> float:
    """The mean over the samples of the exact expected loss; learned levels are in `theta`."""
    total = 0.0
    for x, y in zip(X, Y, strict=True):
        drift = theta["0.weight"] @ x + theta["0.bias"]
        sigma = np.broadcast_to(theta.get("1.sigma", hidden_level), 3)
        if case.activation is step:
            hidden = np.array(list(product((0.0, 1.0), repeat=3)))
            fires = ndtr(drift / sigma)
            weights = np.where(hidden == 1, fires, 1 - fires).prod(1)
        else:
            nodes, one = hermite(NODES)
            grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3)
            weights = np.einsum("i,j,k->ijk", one, one, one).ravel()
            slope = theta.get("1.activation.slope", 1.0)
            hidden = NUMPY[case.activation](slope * (drift + sigma * grid))
        logits = hidden @ theta["2.weight"].T + theta["2.bias"]
        behind = logits[:, 1 - y] - logits[:, y]  # by how much the right answer lies behind
        spread = np.sqrt((np.broadcast_to(theta.get("3.sigma", logit_level), 2) ** 2).sum())
        if case.loss == "0-1":
            losses = ndtr(behind / spread)
        else:
            nodes, one = hermite(NODES)
            losses = np.logaddexp(0, behind[:, None] + spread * nodes) @ one
        total += float(weights @ losses)
    return total / len(X)


def exact_gradient(net: nn.Module, case: Case, level: float = SIGMA) -> Tensor:
    theta = {n: p.detach().numpy().copy() for n, p in net.named_parameters()}
    gradient = []
    for values in theta.values():
        levels = [level, level if case.noisy_logits else 0.0]
        for i in range(values.size):
            kept, ends = values.flat[i], []
            for h in (-1e-4, 1e-4):
                values.flat[i] = kept + h
                ends.append(expected_loss(theta, case, *levels))
            values.flat[i] = kept
            gradient.append((ends[1] - ends[0]) / 2e-4)
    return torch.tensor(gradient, dtype=torch.float64)


@dataclass
class Case:
    """A hidden activation, a loss, and the options of the learner."""

    activation: Any
    loss: str = "cross-entropy"
    noisy_logits: bool = True
    options: dict[str, Any] = field(default_factory=dict)


NUMPY: dict[Any, Callable[[Array], Array]] = {
    torch.tanh: np.tanh,
    torch.sigmoid: lambda v: 1 / (1 + np.exp(-v)),
    Sharpened: np.tanh,
}
CASES = {
    "tanh": Case(torch.tanh),
    "sigmoid, learned sigma": Case(torch.sigmoid, options={"learn_sigma": True}),
    "hard step": Case(step),
    "hard step, 0-1 loss, learned sigma": Case(step, "0-1", options={"learn_sigma": True}),
    "tanh, 0-1 loss, antithetic": Case(torch.tanh, "0-1", options={"antithetic": True}),
    "tanh, general route, no baseline": Case(
        torch.tanh, options={"route": "general", "baseline": "none"}
    ),
    "hard step, batch-mean, drawn again": Case(
        step, options={"baseline": "batch-mean", "recompute": True}
    ),
    "hard step, logits without noise": Case(step, noisy_logits=False),
    "tanh, logits without noise, one learned sigma": Case(
        torch.tanh, noisy_logits=False, options={"learn_sigma": "shared"}
    ),
    "an activation with a parameter": Case(Sharpened, "0-1"),
    "an activation with a parameter, logits without noise": Case(Sharpened, noisy_logits=False),
}


@pytest.mark.montecarlo
@pytest.mark.parametrize("name", CASES)
def test_estimate_equals_the_exact_gradient(name: str) -> None:
    """40 estimates of 16 replicas of two samples that are in the batch 250 times, 320,000 rows in
    all: a t statistic with 39 degrees of freedom for each of 17 to 22 parameters. |t| < 8 fails by
    chance with probability below 1e-7 per case. The estimate must also be sharp to 10% of the
    gradient's norm."""
    case = CASES[name]
    torch.manual_seed(2)
    activation = case.activation() if case.activation is Sharpened else case.activation
    net = nn.Sequential(nn.Linear(2, 3), NoisyActivation(activation, SIGMA), nn.Linear(3, 2))
    with torch.no_grad():
        net[2].weight.mul_(2)
    if case.noisy_logits:
        net.append(NoisyActivation(nn.Identity(), SIGMA))
    net.double()
    learner = NITLearner(net, replicas=REPLICAS, seed=11, **case.options)
    x, y = torch.from_numpy(X).repeat(COPIES, 1), torch.tensor(Y).repeat(COPIES)
    estimates = []
    for _ in range(PASSES):
        net.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, y)
            out = net(xr)
        wrong = (out.argmax(1) != yr).double()
        learner.backward(
            wrong if case.loss == "0-1" else F.cross_entropy(out, yr, reduction="none")
        )
        estimates.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    found = torch.stack(estimates)
    exact = exact_gradient(net, case)
    error = found.std(0) / PASSES**0.5
    statistic = (found.mean(0) - exact) / (error + 1e-8)  # 1e-8: the differences' rounding
    assert statistic.abs().max() < 8, statistic
    assert error.norm() < 0.1 * exact.norm(), "too few samples to say anything"


def test_the_truth_agrees_with_a_plain_network_where_there_is_no_noise() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    F.cross_entropy(net(torch.from_numpy(X)), torch.tensor(Y)).backward()
    expected = torch.cat([p.grad.flatten() for p in net.parameters()])
    exact = exact_gradient(net, Case(torch.tanh, noisy_logits=False), level=0.0)
    torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-8)


# --- the rules, by their formulas -------------------------------------------------------------


def one_pass(net: nn.Sequential, x: Tensor, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of both Linear layers, and A * Z without x for each: weight_n * eps, by layer."""
    replicas, inputs = 4, []
    handles = [
        net[i].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
        for i in (0, 2)
    ]
    learner = NITLearner(net, replicas=replicas, seed=5, **options)
    with learner.record():
        losses = net(learner.expand(x)).sin().sum(1)
    learner.backward(losses)
    learner.close()
    for handle in handles:
        handle.remove()
    by_replica = losses.detach().view(replicas, -1)
    others = (by_replica.sum(0) - by_replica) / (replicas - 1)
    weight = (by_replica - others).flatten() / losses.numel()
    source = ReplicaNoise(5, replicas)
    noise = [
        source.draw((len(losses), n), x.dtype, index=0, layer=i, call=0, layers=2)
        for i, n in enumerate((6, 3))
    ]
    return inputs, [torch.diag(weight) @ eps for eps in noise]


def two_layers() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 6), NoisyActivation(torch.tanh, SIGMA), nn.Linear(6, 3))
    return net.append(NoisyActivation(nn.Identity(), SIGMA)).double()


def test_nit_is_equation_1() -> None:
    """`(1/N) sum A * x_j * eps_i / sigma_i`, and `A * (eps_i^2 - 1) / sigma_i`."""
    net, x = two_layers(), torch.randn(5, 4, dtype=torch.float64)
    inputs, weighted = one_pass(net, x)
    for i, layer in enumerate((net[0], net[2])):
        torch.testing.assert_close(layer.weight.grad, weighted[i].T @ inputs[i] / SIGMA)
        torch.testing.assert_close(layer.bias.grad, weighted[i].sum(0) / SIGMA)


def test_nit_s_is_equation_3() -> None:
    """`(1/N) sum A * sign(Z)` with Z = x_j * eps_i / sigma_i, sign(Z) written out; the bias has
    x_0 = 1. sigma keeps its own estimator."""
    net, x = two_layers(), torch.randn(5, 4, dtype=torch.float64)
    inputs, weighted = one_pass(net, x, rule="nit-s", learn_sigma=True)
    noise = [
        ReplicaNoise(5, 4).draw((20, n), x.dtype, index=0, layer=i, call=0, layers=2)
        for i, n in enumerate((6, 3))
    ]
    for i, layer in enumerate((net[0], net[2])):
        weight = (weighted[i] / noise[i])[:, 0]
        z = noise[i].unsqueeze(2) * inputs[i].unsqueeze(1) / SIGMA
        sign_z = torch.where(z >= 0, 1.0, -1.0).double()
        torch.testing.assert_close(layer.weight.grad, torch.einsum("n,nij->ij", weight, sign_z))
        of_bias = torch.where(noise[i] >= 0, 1.0, -1.0).double()
        torch.testing.assert_close(layer.bias.grad, weight @ of_bias)
        of_sigma = weight @ (noise[i] ** 2 - 1) / SIGMA
        torch.testing.assert_close(net[2 * i + 1].sigma.grad, of_sigma)


# --- NoisyActivation --------------------------------------------------------------------------


def plain_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)
    )


def gradients(net: nn.Module, x: Tensor, loss: Any = None, **options: Any) -> dict[str, Tensor]:
    """Those of one pass, by parameter name."""
    net.zero_grad()
    learner = NITLearner(net, **{"replicas": 4, "seed": 9, **options})
    with learner.record():
        out = net(learner.expand(x))
    learner.backward(out.sin().flatten(1).sum(1) if loss is None else loss(out))
    learner.close()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_without_noise_it_is_the_plain_network_bit_for_bit() -> None:
    plain, x = plain_net(), torch.randn(7, 4)
    expected = plain(x)
    silent = swap_neurons(copy.deepcopy(plain), sigma=0.0)
    assert torch.equal(silent(x), expected)
    loud = swap_neurons(copy.deepcopy(plain), sigma=2.0)
    assert not torch.equal(loud(x), expected)
    with noise_off(loud):
        assert torch.equal(loud(x), expected)
    with pytest.raises(AttachError, match="positive in: 1, 3"):
        NITLearner(silent, replicas=2)


def test_little_noise_is_nearly_the_plain_network_and_its_gradient() -> None:
    """At sigma = 1e-3 the smoothed loss is the plain one to 1e-5, and so is its gradient by
    autograd through the noise, in the mean over 4,000 draws, to a few standard errors."""
    plain, x = plain_net().double(), torch.randn(7, 4, dtype=torch.float64)
    plain(x).sin().sum().backward()
    noisy = swap_neurons(copy.deepcopy(plain), sigma=1e-3)
    noisy.zero_grad()
    (noisy(x.repeat(4_000, 1)).sin().sum() / 4_000).backward()
    for expected, found in zip(plain.parameters(), noisy.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-3)


def test_outside_of_record_autograd_runs_through_the_noise() -> None:
    act = NoisyActivation(torch.tanh, 0.5).double()
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    out = act(x)
    torch.manual_seed(3)
    noisy = x.detach() + 0.5 * torch.randn_like(x)
    torch.testing.assert_close(out.detach(), noisy.tanh())
    out.sum().backward()
    torch.testing.assert_close(x.grad, 1 - noisy.tanh() ** 2)


def test_noise_is_there_in_evaluation_and_only_once_per_call() -> None:
    act = NoisyActivation(lambda v: torch.stack([v, v], -1)).eval()
    pair = act(torch.zeros(1000, 5))
    assert torch.equal(pair[..., 0], pair[..., 1])
    assert 0.9 < pair.std() < 1.1  # 5,000 draws: 10 standard errors


@pytest.mark.parametrize("route", ["auto", "general"])
def test_activations_in_place_change_nothing_else(route: str) -> None:
    x = torch.randn(5, 4)
    nets = [
        swap_neurons(nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace), nn.Linear(6, 3)))
        for inplace in (False, True)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    apart, inplace = (gradients(net, x, route=route) for net in nets)
    assert all(torch.equal(apart[n], inplace[n]) for n in apart)
    with probe(nets[1]) as layers:
        nets[1](x)
    seen = layers["1"]
    assert torch.equal(seen.membranes[0], seen.drifts[0] + seen.noises[0])
    assert (seen.membranes[0] < 0).any() and torch.equal(seen.membranes[0].relu(), seen.spikes[0])


class LateWrite(nn.Module):
    """Writes to the current after the activation has seen it, or to a copy of it."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.fc1, self.act1 = nn.Linear(4, 4), nn.Tanh()
        self.fc2, self.act2 = nn.Linear(4, 3), nn.Tanh()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc1(x)
        hidden = self.act1(current)
        scaled = current if self.inplace else current.clone()
        scaled *= 2.0
        return self.act2(self.fc2(hidden) + scaled[:, :3])


@pytest.mark.parametrize("route", ["auto", "general"])
def test_writing_to_the_current_later_changes_no_gradient(route: str) -> None:
    x = torch.randn(5, 4)
    net, written = swap_neurons(LateWrite(False)), swap_neurons(LateWrite(True))
    written.load_state_dict(net.state_dict())
    expected, found = (gradients(n, x, route=route) for n in (net, written))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_function_or_a_module_but_not_a_class() -> None:
    assert "tanh" in repr(NoisyActivation(torch.tanh))
    pickle.loads(pickle.dumps(NoisyActivation(torch.tanh)))
    for wrong in (nn.ReLU, 3):
        with pytest.raises(SwapError, match=r"such as nn\.ReLU"):
            NoisyActivation(wrong)
    with pytest.raises(SwapError, match="sigma of its own"):
        NoisyActivation(NoisyActivation(nn.ReLU()))
    with pytest.raises(SwapError, match="negative"):
        NoisyActivation(nn.ReLU(), sigma=-1.0)


@pytest.mark.parametrize("option", [{"conditional": True}, {"credit": "readout", "residual": 1}])
def test_what_needs_a_spike_is_refused_with_the_reason(option: dict[str, Any]) -> None:
    with pytest.raises(AttachError, match=r"1 \(it is an activation"):
        NITLearner(swap_neurons(plain_net()), replicas=2, **option)


def test_a_loss_that_is_not_finite_writes_nothing() -> None:
    net = swap_neurons(plain_net())
    learner = NITLearner(net, replicas=2)
    with learner.record():
        losses = net(learner.expand(torch.randn(5, 4))).sum(1)
    losses[3] = float("nan")
    with pytest.raises(NonFiniteLossError, match="row 3"):
        learner.backward(losses)
    assert all(p.grad is None for p in net.parameters())


def test_recording_needs_grad_mode_also_here() -> None:
    net = swap_neurons(plain_net())
    learner = NITLearner(net, replicas=2)
    with learner.record(), torch.no_grad(), pytest.raises(RecordingError, match="grad mode"):
        net(learner.expand(torch.randn(5, 4)))


# --- routes, noise levels, parameters ---------------------------------------------------------


class Block(nn.Module):
    """A residual block with one activation for two widths, as torchvision's are written."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(self.relu(self.fc1(x)))
        y += x
        return self.out(self.relu(y))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4).eval(),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.PReLU(),
        nn.Linear(5, 3),
        nn.LogSoftmax(1),
    )


@pytest.mark.parametrize(
    ("build", "shape"),
    [(plain_net, (4,)), (Block, (4,)), (conv_net, (1, 8, 8))],
    ids=["dense", "residual", "conv"],
)
def test_both_routes_agree(build: Any, shape: tuple[int, ...]) -> None:
    net, x = swap_neurons(build().double(), 0.8), torch.randn(5, *shape, dtype=torch.float64)
    general = gradients(net, x, route="general")
    assert set(general) == {name for name, _ in net.named_parameters()}
    for fast in (gradients(net, x), gradients(net, x, recompute=True)):
        for name in general:
            assert general[name].abs().sum() > 0
            torch.testing.assert_close(fast[name], general[name], rtol=1e-9, atol=1e-12)


def test_a_convolution_learns_a_noise_level_per_channel_and_keeps_it() -> None:
    net = swap_neurons(conv_net(), 0.5)
    learner = NITLearner(net, replicas=4, learn_sigma=True, sigma_bounds=(0.1, 0.6))
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        with learner.record():
            losses = net(learner.expand(torch.randn(6, 1, 8, 8)))[:, 0]
        learner.backward(losses)
        optimizer.step()
    sigmas = {name: net[int(name)].sigma for name in ("1", "5", "8")}
    assert [tuple(s.shape) for s in sigmas.values()] == [(3, 1, 1), (4, 1, 1), (5,)]
    assert all((s >= 0.1).all() and (s <= 0.6).all() for s in sigmas.values())
    assert all((s != 0.5).any() for s in sigmas.values())
    other = swap_neurons(conv_net())
    other.load_state_dict(net.state_dict())
    assert all(torch.equal(other[int(name)].sigma, s) for name, s in sigmas.items())
    assert torch.equal(other[8].activation.weight, net[8].activation.weight)


def test_one_activation_called_for_two_widths_cannot_learn_a_level_per_neuron() -> None:
    learner = NITLearner(swap_neurons(Block()), replicas=2, learn_sigma=True)
    with learner.record(), pytest.raises(RecordingError, match="shared by layers of different"):
        learner.net(learner.expand(torch.randn(5, 4)))


def test_antithetic_pairs_reach_the_activations() -> None:
    net = nn.Sequential(nn.Linear(4, 3), NoisyActivation(nn.Identity()))
    learner = NITLearner(net, replicas=4, antithetic=True)
    x = torch.randn(5, 4)
    with learner.record():
        noise = (net(learner.expand(x)) - net[0](learner.expand(x))).detach().view(4, 5, 3)
    torch.testing.assert_close(noise[:2], -noise[2:])


def test_noise_on_the_logits_makes_them_learn_from_any_loss() -> None:
    """Without it they need a loss with a graph, and the learner says so."""
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

    def wrong(out: Tensor) -> Tensor:
        return (out.argmax(1) != 0).float()

    x = torch.randn(50, 4)
    with pytest.warns(UnreachedParameterWarning, match=r"2\.weight, 2\.bias"):
        found = gradients(swap_neurons(copy.deepcopy(body)), x, wrong)
    assert set(found) == {"0.weight", "0.bias"}
    noisy = swap_neurons(copy.deepcopy(body)).append(NoisyActivation(nn.Identity()))
    assert len(gradients(noisy, x, wrong)) == 4


def test_slopes_behind_the_last_noise_need_a_loss_with_a_graph() -> None:
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), nn.PReLU()))
    with pytest.warns(UnreachedParameterWarning, match=r"1\.activation\.weight"):
        gradients(net, torch.randn(5, 4), lambda out: out.detach().sum(1))
    assert "1.activation.weight" in gradients(net, torch.randn(5, 4))


# --- the swap ---------------------------------------------------------------------------------


class Nested(nn.Module):
    """Activations in every container; one stands in several places, one is part of a weight."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.PReLU()
        self.first = nn.Sequential(nn.Linear(4, 4), shared, nn.Sequential(nn.Linear(4, 2), shared))
        self.list = nn.ModuleList([nn.GELU(), nn.Softmax(1), nn.GLU()])
        self.dict = nn.ModuleDict({"relu": nn.ReLU6(), "none": nn.Identity()})
        self.positive = nn.Linear(2, 2)
        parametrize.register_parametrization(self.positive, "weight", nn.Softplus())
        self.missing = None


def test_every_place_gets_noise_of_its_own_and_restore_undoes_it() -> None:
    net = Nested().double().eval()
    modules = dict(net.named_modules(remove_duplicate=False))
    state = copy.deepcopy(net.state_dict())
    expected = {"first.1", "first.2.1", "list.0", "dict.relu"}
    sigma = {name: 0.1 * (i + 1) for i, name in enumerate(sorted(expected))}
    assert swap_neurons(net, sigma) is net
    found = {
        name: m
        for name, m in net.named_modules(remove_duplicate=False)
        if isinstance(m, NoisyActivation)
    }
    assert set(found) == expected
    assert {name: m.sigma.item() for name, m in found.items()} == pytest.approx(sigma)
    assert all(m.sigma.dtype == torch.float64 and not m.training for m in found.values())
    assert net.first[1].activation is net.first[2][1].activation
    assert list(net.state_dict()) == list(state)
    net.load_state_dict(state)
    Nested().double().load_state_dict(net.state_dict())
    assert restore_neurons(net) is net
    assert dict(net.named_modules(remove_duplicate=False)) == modules


def test_every_elementwise_activation_of_torch_is_found() -> None:
    mixing = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    for name in set(torch.nn.modules.activation.__all__) - mixing:
        options = {"Threshold": (0.1, 0.0)}.get(name, ())
        net = nn.Sequential(getattr(nn, name)(*options))
        assert isinstance(swap_neurons(net)[0], NoisyActivation), name
    for name in mixing - {"MultiheadAttention"}:
        with pytest.raises(SwapError, match="no activation of torch"):
            swap_neurons(nn.Sequential(getattr(nn, name)()))


def test_a_network_that_spikes_keeps_its_activations() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), snn.Leaky(beta=0.5, init_hidden=True))
    swap_neurons(net)
    assert type(net[1]) is nn.ReLU
    by_hand = nn.Sequential(NoisyActivation(nn.Tanh()), nn.Linear(4, 4), net)
    found = gradients(by_hand, torch.randn(5, 4))
    assert len(found) == 4
    restore_neurons(by_hand)
    assert type(by_hand[0]) is nn.Tanh and type(net[2]) is snn.Leaky


def test_a_bare_activation_is_refused_with_what_to_do() -> None:
    with pytest.raises(SwapError, match=r"itself an activation \(ReLU\).*NoisyActivation\(net\)"):
        swap_neurons(nn.ReLU())
    with pytest.raises(SwapError, match="take its `activation`"):
        restore_neurons(NoisyActivation(nn.ReLU()))
    with pytest.raises(SwapError, match="Noisy activations found: 0"):
        swap_neurons(swap_neurons(nn.Sequential(nn.ReLU())))
    with pytest.raises(SwapError, match="no activation of torch"):
        restore_neurons(nn.Sequential(nn.Linear(2, 2)))


def test_a_swap_with_the_wrong_sigma_changes_nothing() -> None:
    net = plain_net()
    for sigma in (-1.0, {"0": 1.0}):
        with pytest.raises(SwapError, match="sigma"):
            swap_neurons(net, sigma)
        assert type(net[1]) is nn.Tanh


def test_restore_refuses_while_a_learner_is_attached() -> None:
    net = swap_neurons(plain_net())
    learner = NITLearner(net, replicas=2)
    with pytest.raises(SwapError, match=r"attached to 1, 3\. Call learner\.close"):
        restore_neurons(net)
    learner.close()
    assert type(restore_neurons(net)[1]) is nn.Tanh


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_fused_inference_of_a_transformer_does_not_skip_the_noise() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=nn.GELU()).eval()
    net, x = nn.TransformerEncoder(layer, 2), torch.randn(3, 5, 8)
    fused = [m.activation_relu_or_gelu for m in net.layers]
    swap_neurons(net)
    with torch.inference_mode():
        assert not torch.equal(net(x), net(x))
    assert len(gradients(net.train(), x)) == len(list(net.parameters()))
    restore_neurons(net.eval())
    assert [m.activation_relu_or_gelu for m in net.layers] == fused == [2, 2]
    with torch.inference_mode():
        assert torch.equal(net(x), net(x))
