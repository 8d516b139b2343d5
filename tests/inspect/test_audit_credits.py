"""Bias, variance and mean squared error of every credit and residual, against brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nit_snn import AuditReport, NITLearner, audit, swap_neurons
from nit_snn.errors import AuditError
from nit_snn.inspect.audit import Credits, estimators
from nit_snn.inspect.audit.estimators import CREDITS, Kind, errors
from nit_snn.inspect.audit.subject import Subject
from nit_snn.neurons import NoisyActivation

WHOLE = "whole network"
SIGMA, REPLICAS = 0.5, 8


class Tiny(nn.Module):
    """4-3-2, two steps, float64; the outputs are spikes, summed over time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
        self.lif1, self.lif2 = snn.Leaky(beta=0.5).double(), snn.Leaky(beta=0.5).double()
        with torch.no_grad():
            for parameter in (*self.fc1.parameters(), *self.fc2.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator).double())

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        total = x.new_zeros(())
        for _ in range(2):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
            total = total + spikes
        return total


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 4, generator=generator).double() * 2, torch.arange(8) % 2


def entropies(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="none")


def misleading(output: Tensor, y: Tensor) -> Tensor:
    """The same loss with minus its derivative: every credit is wrong, no residual is."""
    right = entropies(output, y)
    return 2 * right.detach() - right


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Limits an audit to some kinds, for its time's sake."""

    def limit(*kinds: Kind) -> None:
        monkeypatch.setattr(estimators, "kinds", lambda replicas: iter(kinds))

    yield limit


def audited(loss: Any = entropies, **options: Any) -> Credits:
    x, y = batch()
    given: dict[str, Any] = {
        "replicas": 256,
        "estimates": 16,
        "max_passes": 1,
        "credit_replicas": REPLICAS,
        "confidence": 0.999,
        **options,
    }
    report = audit(Tiny(), loss, x, y, sigma=SIGMA, surrogates={}, **given)
    assert report.credits is not None
    return report.credits


def brute_force(replicas: int, passes: int, seed: int, **options: Any) -> dict[str, Tensor]:
    """Estimates by a learner, one a pass, (passes, P) of each layer and the whole network."""
    net = swap_neurons(Tiny(), sigma=SIGMA)
    learner = NITLearner(net, replicas=replicas, seed=seed, **options)
    x, y = batch()
    drawn: dict[str, list[Tensor]] = {"fc1": [], "fc2": [], WHOLE: []}
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = entropies(net(xr), yr)
        learner.backward(losses)
        for layer, found in drawn.items():
            parts = [net.fc1, net.fc2] if layer == WHOLE else [net.get_submodule(layer)]
            found.append(torch.cat([p.grad.flatten() for m in parts for p in m.parameters()]))
    learner.close()
    return {layer: torch.stack(found) for layer, found in drawn.items()}


@pytest.fixture(scope="module")
def exact() -> dict[str, Tensor]:
    """The unbiased gradient from 16,000 replicas and no credit, (P,)."""
    return {layer: g[0] for layer, g in brute_force(16000, 1, seed=77, credit="none").items()}


@pytest.mark.montecarlo
def test_errors_are_those_of_brute_force(only: Any, exact: dict[str, Tensor]) -> None:
    """8 blocks of 6 passes each with other seeds: 5 of their standard errors and 99.9%."""
    kinds: list[Kind] = [("none", 1), ("layers", 0), ("layers", 1)]
    only(*kinds)
    found = audited()
    for credit, residual in kinds:
        drawn = brute_force(REPLICAS, 48, seed=5, credit=credit, residual=residual)
        for layer, g in exact.items():
            row = found.row(credit, residual, layer)
            of_blocks = []
            for block in drawn[layer].split(6):
                variance = block.var(0).sum()
                bias = (block.mean(0) - g).square().sum() - variance / len(block)
                of_blocks.append(torch.stack([bias, variance, bias + variance]))
            blocks = torch.stack(of_blocks) / g.square().sum()
            errors = 5 * blocks.std(0) / math.sqrt(len(blocks))
            parts = (row.squared_bias, row.variance, row.mean_squared_error)
            for part, value, error in zip(parts, blocks.mean(0), errors, strict=True):
                assert part is not None, (layer, credit)
                assert part.low - error <= value <= part.high + error, (layer, credit, residual)


@pytest.mark.montecarlo
def test_with_a_residual_of_one_there_is_no_bias(only: Any) -> None:
    """8 intervals at 99.9%, seed fixed; and the credit alone is known to have one."""
    kinds: list[Kind] = [("none", 1), ("layers", 1), ("feedback", 1), ("time", 1)]
    only(*kinds, ("layers", 0))
    found = audited(replicas=512, credit_replicas=64)
    for kind in kinds:
        for layer in (WHOLE, "fc2"):
            squared = found.row(*kind, layer).squared_bias
            assert squared is not None
            assert squared.low <= 0, (kind, layer)
            assert squared.high < 1
    biased = found.row("layers", 0).squared_bias
    assert biased is not None
    assert biased.low > 0


@pytest.mark.montecarlo
def test_a_wrong_credit_is_not_the_best_where_replicas_are_many(only: Any) -> None:
    """Minus the derivative has four times the squared norm as its bias; 99.9%."""
    only(("none", 1), ("layers", 0), ("layers", 1))
    best = audited(misleading, replicas=1024, credit_replicas=128, estimates=12).best
    assert best is not None
    assert best.residual != 0
    assert "layers, residual 0" not in best.tied
    assert audited(credit_replicas=2).best.residual == 0


def test_feedback_has_learned_before_it_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch()
    seeds = list(range(6))
    drawn = []
    for warm_up in (0, 3):
        monkeypatch.setattr(estimators, "WARM_UP", warm_up)
        subject = Subject(Tiny(), entropies, x, y, sigma=SIGMA)
        drawn.append(estimators.draw(subject, ("feedback", 0), 2, 0, seeds))
    assert not drawn[0]["fc1"].any()
    assert drawn[1]["fc1"].abs().sum(1).all()
    assert drawn[0]["fc2"].shape == (6, 8)
    assert drawn[1]["fc2"].shape == (3, 8)
    assert len(drawn[0]["fc2"].unique(dim=0)) == 6  # each from noise of its own


def test_the_formulas() -> None:
    """Deterministic estimates have no variance; of four, by hand."""
    reference = {"a": torch.zeros(4, 1), "b": torch.ones(4, 2)}
    fixed = errors({"a": torch.full((4, 1), 2.0), "b": torch.ones(4, 2)}, reference)
    assert fixed["a"].squared_bias.value == pytest.approx(4)
    assert fixed[WHOLE].squared_bias.value == pytest.approx(4)
    assert fixed[WHOLE].variance.value == pytest.approx(0)
    d = torch.tensor([[1.0], [-1.0], [3.0], [-3.0]])
    spread = errors({"a": d, "b": torch.ones(4, 2)}, reference)["a"]
    assert spread.variance.value == pytest.approx(d.var().item())
    assert spread.squared_bias.value == pytest.approx(-d.var().item() / 4)  # negative, as it may
    assert spread.mean_squared.value == pytest.approx(d.square().mean().item())
    without_last = errors(
        {"a": d[:3], "b": torch.ones(3, 2)}, {k: r[:3] for k, r in reference.items()}
    )
    assert spread.variance.left_out[3].item() == pytest.approx(without_last["a"].variance.value)
    assert spread.squared_bias.left_out[3].item() == pytest.approx(
        without_last["a"].squared_bias.value
    )


# ---- the report


@pytest.fixture(scope="module")
def report() -> AuditReport:
    x, y = batch()
    net = swap_neurons(Tiny(), sigma=SIGMA)
    net.fc1.weight.grad = torch.ones_like(net.fc1.weight)
    before = [p.clone() for p in net.parameters()]
    found = audit(
        net,
        entropies,
        x,
        y,
        surrogates={},
        replicas=256,
        estimates=4,
        max_passes=1,
        credit_replicas=2,
    )
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert torch.equal(net.fc1.weight.grad, torch.ones_like(net.fc1.weight))
    assert net.fc2.weight.grad is None
    NITLearner(net, seed=0).close()  # no learner was left behind
    return found


def test_every_credit_has_its_row(report: AuditReport) -> None:
    found = report.credits
    assert found is not None
    assert found.left_out == {}
    names = {row.name for row in found.rows}
    expected = {f"{c}, residual {r}" for c in CREDITS for r in ("0", "1", "auto")}
    assert names == {"none, residual 1", *expected}
    assert {row.layer for row in found.rows} == {WHOLE, "fc1", "fc2"}
    whole = [row.mean_squared_error for row in found.rows if row.layer == WHOLE]
    assert [error.value for error in whole if error] == sorted(e.value for e in whole if e)
    assert found.best is not None
    assert found.best.mean_squared_error == whole[0]
    assert len(found.best.leads) == 12
    with pytest.raises(KeyError, match=r"layers, residual auto.*fc2"):
        found.row("layers", 0.5)


def test_it_is_in_the_text_and_in_json(report: AuditReport) -> None:
    text = str(report)
    assert "least mean squared error: " in text
    assert "20 passes of warm-up" in text
    assert "mean squared error" in text
    assert "[-" not in report.credits.table()  # negative is shown as zero
    assert len(report.credits.table("fc1").splitlines()) == 14
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))["credits"]
    assert found["replicas"] == 2
    assert found["rows"][0]["credit"] == found["best"]["credit"]
    assert set(found["rows"][0]["squared_bias"]) == {"value", "low", "high"}


def test_it_is_left_out_unless_asked_for() -> None:
    x, y = batch()
    report = audit(Tiny(), entropies, x, y, sigma=SIGMA, surrogates={}, estimates=4, max_passes=1)
    assert report.credits is None
    assert "warm-up" not in str(report)
    with pytest.raises(AuditError, match="credit_replicas must not be negative"):
        audit(Tiny(), entropies, x, y, sigma=SIGMA, credit_replicas=-1)
    with pytest.raises(AuditError, match="credit_replicas must be an integer"):
        audit(Tiny(), entropies, x, y, sigma=SIGMA, credit_replicas=1.5)


def test_what_cannot_be_had_is_left_out_with_its_reason() -> None:
    """One replica has no residual; an activation has no credit."""
    one = audited(replicas=256, estimates=4, credit_replicas=1)
    assert {row.name for row in one.rows} == {f"{credit}, residual 0" for credit in CREDITS}
    assert "at least 2 replicas" in one.left_out["none, residual 1"]
    assert "left out: none, residual 1; readout, residual 1" in str(one)
    net = nn.Sequential(nn.Linear(4, 3), NoisyActivation(nn.Tanh(), sigma=0.5)).double()
    x, y = batch()
    found = audit(net, entropies, x, y, estimates=4, max_passes=1, credit_replicas=2).credits
    assert found is not None
    assert {row.name for row in found.rows} == {"none, residual 1"}
    assert found.best is not None
    assert found.best.tied == ()


def test_a_gradient_that_is_not_known_names_no_best(only: Any) -> None:
    only(("none", 1), ("layers", 0))
    found = audited(lambda out, _: 0 * out.sum(1), replicas=2, estimates=4, credit_replicas=2)
    assert found.best is None
    assert found.rows[0].squared_bias is None
    assert "unresolved: the unbiased gradient cannot be separated from zero" in str(found)


# ---- the weight of the residual


@pytest.mark.full
@pytest.mark.montecarlo
def test_the_weight_of_the_residual_goes_to_one_under_a_wrong_credit() -> None:
    """4 passes of 2, 64 and 4,096 replicas; the residual is twice the gradient and noise.

    All samples are the same, for the weight also counts how halves of a batch differ.
    """
    x, y = batch()
    x, y = x[:1].expand(8, -1).contiguous(), y[:1].expand(8).contiguous()
    found = []
    for replicas in (2, 64, 4096):
        net = swap_neurons(Tiny(), sigma=SIGMA)
        learner = NITLearner(net, replicas=replicas, credit="layers", residual="auto", seed=0)
        for _ in range(4):
            with learner.record():
                xr, yr = learner.expand(x, y)
                losses = misleading(net(xr), yr)
            learner.backward(losses)
        found.append(learner.residual_weights["lif2"])
    assert found[0] < 0.8, found
    assert found == sorted(found)
    assert found[2] > 0.97, found
