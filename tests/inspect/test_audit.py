"""The audit against gradients known by formula, its intervals, and its manners."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from conftest import SnnTorchNet, SpikingJellyNet
from scipy.stats import norm, t
from snntorch import surrogate
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import AuditError, NITError
from nit_snn.inspect.audit import AuditReport, audit, noise_density
from nit_snn.inspect.audit.statistics import (
    Interval,
    Jackknife,
    Products,
    fieller,
    gram,
    mean_product,
    t_quantile,
)
from nit_snn.inspect.audit.subject import Subject
from nit_snn.inspect.audit.surrogates import candidates
from nit_snn.inspect.audit.text import ratio
from nit_snn.inspect.probe import probe
from nit_snn.neurons import NoisyActivation

WHOLE = "whole network"
QUICK: dict[str, Any] = {"replicas": 8, "estimates": 8, "max_passes": 1}


def entropies(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="none")


def batch(rows: int = 20) -> tuple[Tensor, Tensor]:
    return torch.rand(rows, 4) * 2, torch.arange(rows) % 3


def scaled(spike: Callable[[Tensor], Tensor], factor: float) -> Callable[[Tensor], Tensor]:
    """A surrogate whose derivative is `factor` times that of another."""
    return lambda excess: factor * spike(excess) + ((1 - factor) * spike(excess)).detach()


def holds(interval: Interval | None, truth: float) -> bool:
    """Whether the interval covers it; where nothing is left to chance, up to float32's rounding."""
    rounding = 1e-5
    return interval is not None and interval.low - rounding <= truth <= interval.high + rounding


# ---- gradients known by formula


class OneStep(nn.Module):
    """One layer, one step, (N, 4) -> spikes (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x), self.lif.reset_mem())[0]


def linear(spikes: Tensor, y: Tensor) -> Tensor:
    """A loss that is linear in the spikes, (N,)."""
    return (spikes * torch.stack([y + 1.0, 2.0 - y, 0.5 * y], 1)).sum(1)


SIGMA = 0.7


@pytest.fixture(scope="module")
def one_step() -> tuple[OneStep, Tensor, Tensor, AuditReport]:
    torch.manual_seed(3)
    net = OneStep()
    x, y = batch(400)
    density = noise_density(SIGMA)
    report = audit(
        net,
        linear,
        x,
        y,
        sigma=SIGMA,
        surrogates={
            "exact": density,
            "three times": scaled(density, 3.0),
            "flipped": scaled(density, -1.0),
            "narrow": surrogate.custom_surrogate(
                lambda excess, g, _: g * (excess.abs() < 0.15).float() / 0.3
            ),
        },
        replicas=16,
        precision=1e-4,
        max_passes=2,
        confidence=0.999,
        seed=1,
    )
    return net, x, y, report


def exact_norm(net: OneStep, x: Tensor, y: Tensor) -> float:
    """Of the gradient of `E[loss] = mean_b sum_j w_bj Phi((m_bj - 1) / sigma)`."""
    drift = net.fc(x)
    expected = linear(0.5 * (1 + torch.erf((drift - 1) / (SIGMA * math.sqrt(2)))), y).mean()
    gradients = torch.autograd.grad(expected, [net.fc.weight, net.fc.bias])
    return torch.cat([g.flatten() for g in gradients]).norm().item()


def test_the_yardstick_has_the_exact_norm(one_step: tuple[OneStep, Tensor, Tensor, Any]) -> None:
    """One interval at 99.9%."""
    *case, report = one_step
    assert report.passes == 2
    found = report.norms["fc"]
    assert found.half_width < 0.05 * found.value
    assert holds(found, exact_norm(*case))


@pytest.mark.parametrize(
    ("name", "noise", "cosine", "ratio"),
    [
        ("exact", False, 1.0, 1.0),
        ("three times", False, 1.0, 3.0),
        ("flipped", False, -1.0, 1.0),
        ("narrow", True, 1.0, 1.0),  # with noise a narrow surrogate is smoothed to the density
    ],
)
def test_known_cosines_and_norm_ratios(
    one_step: Any, name: str, noise: bool, cosine: float, ratio: float
) -> None:
    """Intervals at 99.9%, seed fixed."""
    row = one_step[-1].row(name, noise=noise)
    assert holds(row.cosine, cosine)
    assert row.cosine.half_width < 0.02
    assert holds(row.norm_ratio, ratio)
    assert row.norm_ratio.half_width < 0.15 * ratio


def test_a_scaled_surrogate_has_the_same_cosine_and_a_scaled_norm(one_step: Any) -> None:
    for noise in (True, False):
        one, three, minus = (
            one_step[-1].row(name, noise=noise) for name in ("exact", "three times", "flipped")
        )
        assert three.cosine.value == pytest.approx(one.cosine.value, rel=1e-4)
        assert three.norm_ratio.value == pytest.approx(3 * one.norm_ratio.value, rel=1e-4)
        assert minus.cosine.value == pytest.approx(-one.cosine.value, rel=1e-4)


def test_with_noise_the_density_is_smoothed_once_more() -> None:
    """One weight: the ratio of two normal densities, of variance 2 and 1; 99.9% interval."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), snn.Leaky(beta=0.5, init_hidden=True))
    nn.init.constant_(net[0].weight, 1.8)
    x, y = torch.ones(400, 1), torch.zeros(400)
    report = audit(
        net,
        lambda spikes, _: spikes[:, 0],
        x,
        y,
        sigma=1.0,
        surrogates={"density": noise_density(1.0)},
        max_passes=2,
        confidence=0.999,
    )
    row = report.row("density")
    assert row.norm_ratio is not None
    assert row.norm_ratio.half_width < 0.1
    assert holds(row.norm_ratio, norm.pdf(0.8, scale=math.sqrt(2)) / norm.pdf(0.8))
    assert holds(report.norms["0"], norm.pdf(0.8))


def test_a_smooth_activation_with_noise_has_an_exact_own_derivative() -> None:
    """Reparametrised noise: the pathwise gradient is unbiased; 99.9%, seed fixed."""
    net = nn.Sequential(nn.Linear(4, 3), NoisyActivation(nn.Tanh(), sigma=0.5))
    report = audit(net, entropies, *batch(100), precision=0.02, confidence=0.999)
    assert report.surrogates == ("own",)
    row = report.row("own")
    assert holds(row.cosine, 1.0)
    assert holds(row.norm_ratio, 1.0)
    with pytest.raises(AuditError, match="No noisy neuron of this network has a surrogate"):
        audit(net, entropies, *batch(), surrogates={"atan": surrogate.atan()})


# ---- statistics


@pytest.mark.parametrize("dof", [1, 2, 3, 7, 15, 16, 100])
def test_t_quantile(dof: int) -> None:
    for confidence in (0.5, 0.95, 0.999):
        assert t_quantile(confidence, dof) == pytest.approx(t.ppf(0.5 + confidence / 2, dof))


def test_products_come_from_different_estimates_only() -> None:
    a, b = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    found = mean_product(gram(a, b))
    assert found.value == pytest.approx(sum((a[i] @ b[j]).item() for i, j in pairs) / 20)
    left = [(a[i] @ b[j]).item() for i, j in pairs if 2 not in (i, j)]
    assert found.left_out[2].item() == pytest.approx(sum(left) / 12)
    fixed = mean_product(gram(a, b[:1]))
    assert fixed.value == pytest.approx((a.mean(0) @ b[0]).item())
    assert fixed.left_out[2].item() == pytest.approx((a[[0, 1, 3, 4]].mean(0) @ b[0]).item())


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(9, 1).double()
    found = mean_product(gram(values, torch.ones(1, 1)))
    assert found.error() == pytest.approx((values.std() / 3).item())


def test_a_quotient_by_what_may_be_zero_is_unbounded() -> None:
    noisy = Jackknife(1.0, torch.tensor([3.0, -1.0, 1.0]).double())
    assert fieller(noisy, noisy, 2.0).high == math.inf


def estimates(mean: Tensor, noise: float, n: int) -> Tensor:
    return mean + noise * torch.randn(n, len(mean), dtype=torch.float64)


@pytest.mark.montecarlo
@pytest.mark.parametrize("cosine", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("fixed", [True, False])
def test_coverage(cosine: float, fixed: bool) -> None:
    """Of 95% intervals over 400 draws of 12 estimates each: at least 92%; 4 standard errors are 4%.

    The jackknife errs on the wide side, so there is no upper bound here but that on the width.
    """
    n, size, draws = 12, 20, 400
    g = F.normalize(torch.randn(size, dtype=torch.float64), dim=0)
    e = torch.randn(size, dtype=torch.float64)
    e = F.normalize(e - (e @ g) * g, dim=0)
    s = 2 * (cosine * g + math.sqrt(1 - cosine**2) * e)
    quantile = t_quantile(0.95, n - 1)
    hits = {"cosine": 0, "ratio": 0, "norm": 0}
    widths, naive = [], []
    for _ in range(draws):
        a = estimates(g, 0.35, n)
        b = s[None] if fixed else estimates(s, 0.3, n)
        products = Products.of_grams(gram(a, a), gram(a, b), gram(b, b))
        found = products.cosine(quantile)
        assert found is not None
        hits["cosine"] += holds(found, min(cosine, 1 - 1e-12))
        hits["ratio"] += holds(products.norm_ratio(quantile), 2.0)
        hits["norm"] += holds(products.norm(quantile), 1.0)
        widths.append(found.half_width)
        naive.append(F.cosine_similarity(a.mean(0), b.mean(0), dim=0).item())
    assert all(count >= 0.92 * draws for count in hits.values()), hits
    assert sum(widths) / draws < 0.3
    if cosine:  # what is avoided here: the cosine of two means is too small
        assert sum(naive) / draws < cosine - 0.02


@pytest.mark.montecarlo
def test_coverage_of_the_lead_and_of_nothing_at_all() -> None:
    """400 draws at 95%: differences of two cosines, and gradients that are zero."""
    n, size, draws = 12, 20, 400
    g = torch.zeros(size, dtype=torch.float64)
    g[0] = 1.0
    near, far = g.clone(), g.clone()
    near[1], far[2] = 0.5, 1.0
    truth = 1 / math.sqrt(1.25) - 1 / math.sqrt(2)
    quantile = t_quantile(0.95, n - 1)
    hits = found_in_nothing = 0
    for _ in range(draws):
        a = estimates(g, 0.35, n)
        one, two = (
            Products.of_grams(gram(a, a), gram(a, b), gram(b, b))
            for b in (estimates(near, 0.2, n), estimates(far, 0.2, n))
        )
        hits += holds(one.lead(two, quantile), truth)
        zero = estimates(0 * g, 0.35, n)
        nothing = Products.of_grams(gram(zero, zero), gram(zero, a), gram(a, a))
        found_in_nothing += nothing.obstacle(quantile) is None
        assert (nothing.cosine(quantile) is None) == (nothing.obstacle(quantile) == "unresolved")
    assert hits >= 0.92 * draws
    assert found_in_nothing <= 0.05 * draws


# ---- surrogates


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_every_snntorch_gradient_is_the_frameworks_own(reset: str) -> None:
    net, (x, y) = SnnTorchNet(reset), batch()
    subject = Subject(net, entropies, x, y, sigma=1.0)
    compared, own = candidates(subject.net, None)
    assert own == "atan"
    found = subject.surrogate(compared, 0, noise=False)
    for name in ("atan", "fast_sigmoid", "triangular", "straight_through_estimator"):
        net.zero_grad()
        net.lif1.spike_grad = net.lif2.spike_grad = getattr(surrogate, name)()
        entropies(net(x), y).mean().backward()
        for module in ("fc1", "fc2"):
            theirs = [p.grad.flatten() for p in getattr(net, module).parameters()]
            assert torch.allclose(found[name][module], torch.cat(theirs), atol=1e-6), name


@pytest.mark.parametrize("mode", ["m", "s"])
def test_every_spikingjelly_gradient_is_the_frameworks_own(mode: str) -> None:
    net, (x, y) = SpikingJellyNet(mode=mode), batch()
    net(x)  # SpikingJelly now remembers which modules of this network to reset
    subject = Subject(net, entropies, x, y, sigma=1.0)
    compared, own = candidates(subject.net, None)
    assert own == "Sigmoid"
    found = subject.surrogate(compared, 0, noise=False)
    for name in ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "Erf"):
        net.zero_grad()
        net.body[1].surrogate_function = net.body[3].surrogate_function = getattr(
            sj_surrogate, name
        )()
        entropies(net(x), y).mean().backward()
        for module in ("body.0", "body.2"):
            theirs = [p.grad.flatten() for p in net.get_submodule(module).parameters()]
            assert torch.allclose(found[name][module], torch.cat(theirs), atol=1e-6), name


def test_with_noise_all_surrogates_see_the_same_spikes() -> None:
    subject = Subject(SnnTorchNet(), entropies, *batch(), sigma=1.0)
    compared, _ = candidates(
        subject.net, {"again": surrogate.atan(2.0), "other": surrogate.fast_sigmoid()}
    )
    assert list(compared) == ["again", "other"]  # its own is the first under another name
    alone = subject.surrogate({"again": compared["again"]}, 5, noise=True)["again"]
    both = subject.surrogate(dict(reversed(compared.items())), 5, noise=True)
    assert all(torch.equal(alone[layer], both["again"][layer]) for layer in alone)
    assert not torch.equal(alone["fc1"], both["other"]["fc1"])


def test_own_surrogates_may_differ_from_layer_to_layer_or_be_missing() -> None:
    net = SnnTorchNet()
    net.lif1.spike_grad = surrogate.atan(5.0)
    report = audit(net, entropies, *batch(), sigma=1.0, **QUICK)
    assert report.own == "own"
    assert "atan" in report.surrogates
    net = SnnTorchNet(surrogate_disable=True)
    report = audit(net, entropies, *batch(), sigma=1.0, **QUICK)
    assert report.own is None
    assert "own" not in report.surrogates
    with pytest.raises(AuditError, match="Nothing to compare"):
        audit(net, entropies, *batch(), sigma=1.0, surrogates={})


def test_a_derivative_that_overflows_is_named() -> None:
    """snnTorch's sigmoid divides infinity by infinity 3.6 thresholds below the threshold."""
    net, (x, y) = OneStep(), batch()
    nn.init.constant_(net.fc.bias, -6.0)
    compared = {"sigmoid": surrogate.sigmoid()}
    report = audit(net, linear, x, y, sigma=2.0, surrogates=compared, precision=0.9)
    assert report.row("sigmoid").obstacle == "not finite"
    assert report.row("sigmoid").norm_ratio is None
    assert report.row("own").cosine is not None
    assert "NaN or infinite" in str(report)
    assert report.precise


def test_a_derivative_that_is_zero_is_named() -> None:
    report = audit(
        OneStep(),
        linear,
        *batch(),
        sigma=SIGMA,
        surrogates={"dead": scaled(surrogate.atan(), 0.0)},
    )
    row = report.row("dead", noise=False)
    assert (row.obstacle, row.cosine) == ("surrogate ~ 0", None)
    assert row.norm_ratio == Interval(0.0, 0.0, 0.0)
    assert "dead" in str(report)
    assert report.precise


# ---- networks


def test_time_first_input_is_the_same_network_as_static_input() -> None:
    net, (x, y) = SpikingJellyNet(), batch()
    body = nn.Sequential(*net.body)
    one = audit(net, entropies, x, y, sigma=1.0, seed=2, **QUICK)
    two = audit(
        body,
        lambda spikes, y: entropies(spikes.sum(0), y),
        x.unsqueeze(0).repeat(3, 1, 1),
        y,
        sigma=1.0,
        dim=1,
        seed=2,
        **QUICK,
    )
    assert one.samples == two.samples == len(y)
    for a, b in zip(one.rows, two.rows, strict=True):
        if a.cosine is not None and b.cosine is not None:
            assert a.cosine.value == pytest.approx(b.cosine.value, abs=1e-3)


def test_forward_runs_the_users_own_loop_and_states_are_reset() -> None:
    body = nn.Sequential(layer.Linear(4, 3), neuron.LIFNode(), layer.Dropout(0.5))
    x, y = batch()

    def loop(net: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([net(x) for _ in range(3)]).sum(0)  # no reset: the audit does it

    report = audit(body, entropies, x, y, sigma=1.0, forward=loop, surrogates={}, **QUICK)
    assert report.layers == (WHOLE, "0")
    subject = Subject(body, entropies, x, y, sigma=1.0, forward=loop)
    first, again, other = (
        subject.surrogate(candidates(subject.net, {})[0], seed, noise=False)["own"]["0"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # SpikingJelly's dropout keeps its mask until a reset


def test_dropout_is_averaged_over_without_noise_too() -> None:
    """Its mean changes nothing in a linear loss: cosine and ratio are 1; 99.9%, seed fixed."""
    net = nn.Sequential(OneStep(), nn.Dropout(0.5))
    report = audit(
        net,
        linear,
        *batch(10),
        sigma=SIGMA,
        surrogates={"exact": noise_density(SIGMA)},
        replicas=16,
        precision=1e-3,
        max_passes=4,
        confidence=0.999,
        seed=1,
    )
    row = report.row("exact", noise=False)
    assert report.passes == 4
    assert holds(row.cosine, 1.0)
    assert holds(row.norm_ratio, 1.0)


class Readout(nn.Module):
    """A hidden layer, and a readout of its spikes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lif = snn.Leaky(beta=0.5, **options)

    def forward(self, x: Tensor) -> Tensor:
        mem, total = self.lif.reset_mem(), 0
        for _ in range(3):
            spikes, mem = self.lif(self.fc1(x), mem)
            total = total + self.fc2(spikes)
        return total


def test_what_the_noise_does_not_reach_is_left_out() -> None:
    report = audit(Readout(), entropies, *batch(), sigma=1.0, **QUICK)
    assert set(report.left_out) == {"fc2.weight", "fc2.bias"}
    assert report.layers == (WHOLE, "fc1")
    assert report.credit == "layers"
    assert "fc2.weight" in str(report)


def test_the_yardstick_does_without_a_credit_where_it_has_to() -> None:
    """Neurons that inhibit each other; not yet for a loss on membranes alone."""
    assert audit(SnnTorchNet(), entropies, *batch(), sigma=1.0, **QUICK).credit == "layers"
    with pytest.warns(UserWarning, match="Inhibition"):
        net = Readout(inhibition=True)
    assert audit(net, entropies, *batch(), sigma=1.0, **QUICK).credit == "none"


def test_an_unbiased_gradient_that_is_zero_is_unresolved() -> None:
    report = audit(Readout(), lambda out, _: 0 * out.sum(1), *batch(), sigma=1.0, **QUICK)
    assert {row.obstacle for row in report.rows} == {"unresolved"}
    assert set(report.norms.values()) == {None}
    assert report.best is None
    assert not report.precise
    assert "cannot be separated from zero" in str(report)
    assert "max_passes" in str(report)


# ---- manners


@pytest.mark.filterwarnings("ignore:A gradient came from autograd")
def test_the_network_is_left_as_it_was() -> None:
    net, (x, y) = Readout(), batch()
    swap_neurons(net, sigma=0.8)
    learner = NITLearner(net, replicas=4, seed=0)
    net.lif.init_hidden = False
    entropies(net(x), y).sum().backward()  # the membrane keeps a graph, the parameters a gradient
    net.eval()
    membrane, spike_grad, sigma = net.lif.mem, net.lif.spike_grad, net.lif.sigma
    before = {n: (p, p.clone(), p.grad, p.grad.clone()) for n, p in net.named_parameters()}
    random = torch.get_rng_state()
    with noise_off(net):
        report = audit(net, entropies, x, y, **QUICK)
        assert net.lif.noise is False
    assert report.row("atan").surrogate == "atan"
    assert torch.equal(torch.get_rng_state(), random)
    assert net.lif.mem is membrane
    assert membrane.grad_fn is not None
    assert net.lif.spike_grad is spike_grad
    assert net.lif.sigma is sigma
    assert not net.training
    for name, (parameter, value, grad, copy) in before.items():
        now = dict(net.named_parameters())[name]
        assert now is parameter
        assert now.grad is grad
        assert torch.equal(now, value)
        assert torch.equal(grad, copy)
    assert learner.passes == 0
    with learner.record():
        xr, yr = learner.expand(x, y)
        losses = entropies(net(xr), yr)
    learner.backward(losses)
    learner.close()


def test_a_plain_network_stays_plain() -> None:
    net = SpikingJellyNet()
    audit(net, entropies, *batch(), sigma=1.0, **QUICK)
    assert type(net.body[1]) is neuron.LIFNode
    functional.reset_net(net)


def test_the_seed_decides_and_nothing_else_does() -> None:
    net, (x, y) = Readout(), batch()
    with torch.no_grad():
        one = audit(net, entropies, x, y, sigma=1.0, seed=4, **QUICK)
    torch.manual_seed(99)
    two = audit(net, entropies, x, y, sigma=1.0, seed=4, **QUICK)
    three = audit(net, entropies, x, y, sigma=1.0, seed=5, **QUICK)
    assert replace(one, seconds=0.0) == replace(two, seconds=0.0)
    assert one.rows != three.rows


def test_it_stops_at_the_precision_asked_for() -> None:
    net, (x, y) = Readout(), batch()
    rough = audit(net, entropies, x, y, sigma=1.0, surrogates={}, precision=0.9, replicas=8)
    fine = audit(net, entropies, x, y, sigma=1.0, surrogates={}, precision=0.008, replicas=4)
    short = audit(
        net, entropies, x, y, sigma=1.0, surrogates={}, precision=1e-6, max_passes=3, replicas=4
    )
    assert (rough.passes, rough.precise) == (1, True)
    assert fine.passes in (2, 4, 8)
    assert fine.precise
    widths = [row.cosine.half_width for row in fine.rows if row.layer == WHOLE and row.cosine]
    assert len(widths) == 2
    assert max(widths) <= 0.008
    assert (short.passes, short.precise) == (3, False)


def unregistered() -> nn.Module:
    net = swap_neurons(Readout())
    net.late = snn.Leaky(beta=0.5)
    return net


def frozen() -> nn.Module:
    net = swap_neurons(Readout())
    net.fc1.requires_grad_(False)
    net.lif.threshold.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (Readout, {}, "Pass sigma"),
        (Readout, {"sigma": 0.0}, "must be finite and positive"),
        (lambda: swap_neurons(Readout()), {"sigma": 1.0}, "noisy already"),
        (lambda: nn.Linear(4, 3), {"sigma": 1.0}, "Nothing to do"),
        (unregistered, {}, "not noisy"),
        (frozen, {}, "reaches no parameter"),
        (Readout, {"sigma": 1.0, "loss": F.cross_entropy}, r"\(20,\), got \(\)"),
        (Readout, {"sigma": 1.0, "loss": lambda out, y: 1.0}, "got float"),
        (Readout, {"sigma": 1.0, "loss": lambda o, y: (o.argmax(1) != y).float()}, "no graph"),
        (Readout, {"sigma": 1.0, "y": torch.zeros(7).long()}, "as many of both"),
        (Readout, {"sigma": 1.0, "dim": 2}, "as many of both"),
        (Readout, {"sigma": 1.0, "x": [[1.0]]}, "must be tensors"),
        (Readout, {"sigma": 1.0, "estimates": 3}, "at least 4"),
        (Readout, {"sigma": 1.0, "replicas": 1}, "at least 2 replicas"),
        (Readout, {"sigma": 1.0, "precision": 0.0}, "precision"),
        (Readout, {"sigma": 1.0, "max_passes": 0}, "max_passes"),
        (Readout, {"sigma": 1.0, "confidence": 1.0}, "confidence"),
        (Readout, {"sigma": 1.0, "surrogates": {"own": surrogate.atan()}}, "own surrogate"),
        (Readout, {"sigma": 1.0, "surrogates": {"step": lambda v: (v > 0) * 1.0}}, "'step' has no"),
    ],
)
def test_refusals(build: Callable[[], nn.Module], options: dict[str, Any], message: str) -> None:
    x, y = batch()
    given = {"loss": entropies, "x": x, "y": y, **options}
    with pytest.raises(NITError, match=message):
        audit(build(), **given)


@pytest.mark.filterwarnings("ignore:No gradient will reach")
def test_a_network_that_is_being_recorded_is_refused() -> None:
    net = swap_neurons(Readout())
    with probe(net), pytest.raises(AuditError, match="recorded or probed"):
        audit(net, entropies, *batch())
    with NITLearner(net, replicas=2).record(), pytest.raises(AuditError, match="recorded"):
        audit(net, entropies, *batch())
    restore_neurons(net)


# ---- the report


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0.0, "0"),
        (3e-3, "3.00e-03 [2.70e-03, 3.30e-03]"),
        (0.05, "0.0500 [0.0450, 0.0550]"),
        (2.0, "2.00 [1.80, 2.20]"),
        (300.0, "300 [270, 330]"),
    ],
)
def test_norm_ratios_are_shown_with_three_digits(size: float, shown: str) -> None:
    assert ratio(Interval(size, 0.9 * size, 1.1 * size)) == shown


@pytest.fixture(scope="module")
def report() -> AuditReport:
    torch.manual_seed(0)
    net = SpikingJellyNet()
    return audit(net, entropies, *batch(), sigma=1.0, precision=0.2)


def test_the_report_prints_an_aligned_table(report: AuditReport) -> None:
    lines = str(report).splitlines()
    assert "95% intervals" in lines[0]
    assert "20 samples; 16 estimates" in lines[1]
    start = next(i for i, line in enumerate(lines) if line.startswith("surrogate"))
    body = lines[start + 1 : start + 1 + 6 * 3]  # 6 surrogates, 2 layers and both together
    column = lines[start].index("norm ratio")
    assert all(line.ljust(column)[column - 1] == " " for line in body)
    assert body[0].startswith(report.surrogates[0])
    assert any(line.startswith("Sigmoid (own)") for line in body)
    assert any(line.startswith("closest with noise: ") for line in lines)


def test_the_closest_has_the_highest_cosine_and_names_its_ties(report: AuditReport) -> None:
    best = report.best
    whole = [row for row in report.rows if row.layer == WHOLE and row.cosine is not None]
    assert best is not None
    assert best.cosine.value == max(row.cosine.value for row in whole if row.cosine)
    assert best.cosine == report.row(best.surrogate, noise=best.noise).cosine
    assert all(best.leads[name].low <= 0 for name in best.tied)
    assert ("not distinguishable" in str(best)) == bool(best.tied)
    alone = replace(best, leads={"other": Interval(0.3, 0.1, 0.5)})
    assert alone.tied == ()
    tied = replace(best, leads={"other": Interval(0.3, -0.1, 0.7)})
    assert str(tied).endswith("not distinguishable from other")


def test_a_tie_is_found_between_equals() -> None:
    twice = {"a": surrogate.atan(3.0), "b": surrogate.atan(3.0)}
    closest = audit(
        Readout(), entropies, *batch(), sigma=1.0, surrogates=twice, **QUICK
    ).closest_without_noise
    assert closest is not None
    assert closest.surrogate == "own" or closest.tied


def test_the_report_goes_into_json(report: AuditReport) -> None:
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["rows"][0]["layer"] == WHOLE
    assert set(found["rows"][0]["cosine"]) == {"value", "low", "high"}
    assert found["closest_with_noise"]["surrogate"] == report.closest_with_noise.surrogate
    assert found["seed"] == 0


def test_a_row_that_is_not_there_is_an_error_that_lists_what_is(report: AuditReport) -> None:
    with pytest.raises(KeyError, match=r"Sigmoid.*body\.0"):
        report.row("Sigmoid", "nonsense")


def test_the_picture(report: AuditReport, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = report.plot(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 5
    mine = Figure()
    axes = mine.subplots()
    assert report.plot(axes) is mine
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        report.label(name) for name in report.surrogates
    ]


def test_a_quotient_lies_in_its_interval_however_narrow() -> None:
    """Equal statistics but for one factor: the interval has no width but rounding's."""
    generator = torch.Generator().manual_seed(0)
    for factor in torch.rand(200, generator=generator, dtype=torch.float64).tolist():
        values = 1 + 1e-9 * torch.randn(5, generator=generator, dtype=torch.float64)
        bottom = Jackknife(float(values.mean()), values)
        found = fieller(bottom.scaled(factor), bottom, 3.0)
        assert found.low <= found.value <= found.high


def test_the_picture_of_one_layer_and_of_obstacles(one_step: Any) -> None:
    assert len(one_step[-1].plot().axes) == 1
    empty = audit(Readout(), lambda out, _: 0 * out.sum(1), *batch(), sigma=1.0, **QUICK)
    assert "unresolved" in [text.get_text() for text in empty.plot().axes[0].texts]


def test_matplotlib_and_tqdm_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    report = audit(Readout(), entropies, *batch(), sigma=1.0, **QUICK)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"nit-snn\[train\]"):
        report.plot()


# ---- the example


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    return importlib.import_module("audit_surrogates")


@pytest.mark.full
def test_the_example_writes_numbers_and_a_picture(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--steps", "0", "2", "--batch-size", "8", "--replicas", "4", "--max-passes", "1"]
    monkeypatch.setattr(sys, "argv", ["audit_surrogates.py", *options, "--output", str(tmp_path)])
    example.main()
    found = json.loads((tmp_path / "audit.json").read_text())
    cases = [(audit["network"], audit["steps"]) for audit in found["audits"]]
    assert cases == [("784-50-10", 0), ("784-50-10", 2), ("784-50-50-10", 0), ("784-50-50-10", 2)]
    assert found["seed"] == 0
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {row["layer"] for row in found["audits"][-1]["rows"]} == {WHOLE, "fc1", "fc2"}
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"estimates": 4.5}, "estimates must be an integer"),
        ({"max_passes": 1.5}, "max_passes must be an integer"),
        ({"replicas": True}, "replicas must be an integer"),
        ({"seed": "x"}, "seed must be an integer"),
        ({"seed": 2**70}, "seed must be an integer of 64 bits"),
        ({"confidence": "x"}, "confidence must be a number"),
        ({"precision": None}, "precision must be a number"),
        ({"surrogates": {"a": 3}}, "no functions: a"),
        ({"surrogates": ["atan"]}, "surrogates must be a dict"),
        ({"loss": None}, "loss must be a function"),
        ({"forward": 3}, "forward must be a function"),
        ({"dim": "x"}, "dim must be an integer"),
    ],
)
def test_options_are_looked_at_first(options: dict[str, Any], told: str) -> None:
    net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5, init_hidden=True))
    before, x, y = torch.get_rng_state(), torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(AuditError, match=told):
        audit(net, x=x, y=y, sigma=0.5, **{"loss": entropies, **options})
    assert torch.equal(torch.get_rng_state(), before)
