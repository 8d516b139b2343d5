"""NumPy's numbers are numbers, and what is kept of them are Python's; truth values are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_robust_inputs import IMAGES, LABELS, network
from torch.nn.functional import cross_entropy

from nit_snn import NITLearner, NITSPlus, audit
from nit_snn.errors import AttachError
from nit_snn.robustness import (
    EOTPGD,
    AdversarialExpand,
    Defender,
    NAttack,
    NoisyClassifier,
    adaptive,
    certify_noise,
    certify_smoothing,
    check,
    loss_of_mean,
    paper,
)
from nit_snn.robustness.inputs import check_counts, check_positive, check_radius
from nit_snn.training.batches import Batches
from nit_snn.training.checkpoints import Checkpoints
from nit_snn.validation.to_python_scalar import is_number, is_whole, to_python_scalar

TWO, HALF = np.int64(2), np.float32(0.5)


def plain_kinds(state: Any) -> bool:
    """Whether everything in it is one of Python's own kinds."""
    if isinstance(state, dict):
        return all(plain_kinds(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(plain_kinds(value) for value in state)
    return type(state) in (int, float, str, bool, type(None))


def test_kinds() -> None:
    for value in (3, np.int64(3), np.uint8(3)):
        assert is_whole(value) and is_number(value) and type(to_python_scalar(value)) is int
    for value in (0.5, np.float16(0.5), np.float64(0.5)):
        assert is_number(value) and not is_whole(value) and type(to_python_scalar(value)) is float
    for value in (True, np.True_, "3", None, np.ones(1), torch.tensor(3), 3j):
        assert not is_number(value) and not is_whole(value) and to_python_scalar(value) is value
    found = to_python_scalar({"a": [np.int32(1), (HALF, "x")], "b": True})
    assert found == {"a": [1, (0.5, "x")], "b": True} and plain_kinds(found)


@pytest.mark.parametrize(
    "options",
    [
        {"replicas": np.int64(4)},
        {"replicas": 4, "seed": np.int32(3)},
        {"replicas": 4, "learn_sigma": True, "sigma_bounds": (HALF / 4, np.float64(2))},
        {"replicas": 4, "weight_bounds": [np.float32(-1), np.float32(1)]},
        {"replicas": 4, "memory_budget": np.int64(10**9)},
        {"replicas": 4, "credit": "layers", "residual": HALF},
    ],
)
def test_a_learner_takes_them_and_keeps_its_own(options: dict[str, Any]) -> None:
    """The same estimate, and a state that another learner goes on from."""

    def learned(given: dict[str, Any]) -> tuple[torch.Tensor | None, NITLearner]:
        torch.manual_seed(0)
        net = network()
        learner = NITLearner(net, **{"seed": 1, **given})
        with learner.record():
            images, labels = learner.expand(IMAGES, LABELS)
            losses = cross_entropy(net(images), labels, reduction="none")
        learner.backward(losses)
        return net[1].weight.grad, learner

    gradient, learner = learned(options)
    expected, own = learned({name: to_python_scalar(value) for name, value in options.items()})
    assert gradient is not None and expected is not None and torch.equal(gradient, expected)
    state = learner.state_dict()
    assert plain_kinds(state) and state == own.state_dict()
    own.load_state_dict(state)
    learner.passes = np.int64(7)
    assert plain_kinds(learner.state_dict()) and learner.passes == 7


def test_a_dimension_may_be_numpys() -> None:
    learner = NITLearner(network(), replicas=2)
    expanded = learner.expand(torch.ones(3, 5), dim=np.int64(1))
    assert expanded.shape == (3, 10)


def test_truth_values_and_tensors_are_no_numbers() -> None:
    for options in (
        {"replicas": np.True_},
        {"replicas": torch.tensor(4)},
        {"replicas": np.array([4, 4])},
        {"replicas": 4, "seed": np.float64(3)},
        {"replicas": 4, "seed": 2**64},
        {"replicas": 4, "weight_bounds": (False, True)},
        {"replicas": 4, "residual": True},
    ):
        with pytest.raises(AttachError, match="must be"):
            NITLearner(network(), **options)
    for call in (
        lambda: check_counts(steps=np.True_),
        lambda: check_counts(steps=True),
        lambda: check_radius(True),
        lambda: check_positive(alpha=np.True_),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()


@pytest.mark.parametrize(
    "option", ["baseline", "conditional", "credit", "learn_sigma", "recompute"]
)
def test_choices_are_compared_with_nothing_that_cannot_be(option: str) -> None:
    for value in (torch.ones(2), np.ones(2), ["none"], 1):
        with pytest.raises(AttachError, match=option):
            NITLearner(network(), replicas=4, **{option: value})


def test_batches_checkpoints_and_schedules(tmp_path: Path) -> None:
    batches = Batches(np.int64(5), TWO)
    assert [len(rows) for rows in batches] == [2, 2, 1]
    assert plain_kinds({k: v for k, v in batches.state_dict().items() if k != "order"})
    for wrong in ((5, 2.5), (5.0, 2), (5, True)):
        with pytest.raises(ValueError, match="must be an integer"):
            Batches(*wrong)  # type: ignore[arg-type]
    assert type(Checkpoints(tmp_path, keep=TWO).keep) is int
    learner = NITLearner(network(), replicas=2)
    schedule = NITSPlus(learner, after=TWO)
    schedule.step()
    schedule.step()
    assert learner.rule == "nit"
    with pytest.raises(ValueError, match="positive integer"):
        NITSPlus(learner, after=True)


@pytest.mark.parametrize("loss", ["x", torch.ones(2), None, float("nan"), [1.0]])
def test_a_schedule_that_was_given_no_loss_counts_no_step(loss: Any) -> None:
    schedule = NITSPlus(NITLearner(network(), replicas=2), patience=2)
    schedule.step(torch.tensor(1.0))
    before = schedule.state_dict()
    with pytest.raises(ValueError, match="finite loss"):
        schedule.step(loss)
    assert schedule.state_dict() == before


def test_attacks_keep_their_own() -> None:
    """Also NumPy's on the left of a tensor, where it would make an array of it."""
    model = NoisyClassifier(network(), draws=np.int64(1), seed=np.int64(3))
    attack = EOTPGD(
        model, eps=np.float64(0.1), alpha=np.float64(0.01), steps=TWO, draws=1, restarts=1
    )
    assert attack(IMAGES, LABELS).dtype == IMAGES.dtype
    tried = NAttack(model, eps=HALF, iterations=TWO, samples=TWO, sigma=np.float64(0.1), lr=HALF)
    assert tried(IMAGES, LABELS).dtype == IMAGES.dtype
    assert plain_kinds([v for v in vars(attack).values() if v is not model])
    assert plain_kinds([v for v in vars(tried).values() if v is not model])
    learner = NITLearner(network(), replicas=2)
    expand = AdversarialExpand(learner, eps=HALF, steps=TWO, draws=TWO, alpha=np.float64(0.5))
    assert expand(IMAGES, LABELS)[0].dtype == IMAGES.dtype
    logits = torch.zeros(4, 3)
    assert loss_of_mean(logits, LABELS[:2].repeat(2), TWO).shape == (4,)


def test_certificates_take_them() -> None:
    votes = {"draws": np.int64(20), "select": TWO, "batch_size": np.int64(8), "alpha": HALF}
    assert len(certify_smoothing(network(), IMAGES, np.float64(0.5), **votes).radius) == 5
    assert len(certify_noise(NoisyClassifier(network()), IMAGES, **votes).radius) == 5
    for wrong in ({"sigma": "x"}, {"sigma": True}, {"sigma": 0.5, "alpha": "x"}):
        with pytest.raises(ValueError, match="must"):
            certify_smoothing(network(), IMAGES, **wrong)


def test_a_verdict_can_be_written_to_a_file() -> None:
    pytest.importorskip("torchattacks")
    defender = Defender(network(), draws=TWO)
    tried = {"eps": np.float64(0.1), "iterations": TWO, "samples": TWO}
    verdict = paper(defender, IMAGES, LABELS, **tried, alpha=np.float64(0.05), steps=TWO)
    json.dumps(verdict.row("paper"))
    queries = {"apgd_steps": TWO, "queries": TWO, "query_draws": TWO, "seed": np.int64(0)}
    counts = {"steps": TWO, "draws": TWO, "restarts": np.int64(1)}
    verdict = adaptive(defender, IMAGES, LABELS, **tried, **queries, **counts)
    check(verdict, defender, IMAGES, LABELS, epsilons=np.array([0.1, 1.0]))  # type: ignore[arg-type]
    json.dumps(verdict.row("adaptive"))
    with pytest.raises(ValueError, match="alpha must be"):
        paper(defender, IMAGES, LABELS, alpha="x")  # type: ignore[arg-type]


def test_an_audit_takes_them() -> None:
    report = audit(
        network(),
        lambda out, y: cross_entropy(out, y, reduction="none"),
        IMAGES,
        LABELS,
        replicas=np.int64(4),
        estimates=np.int64(4),
        max_passes=np.int64(1),
        precision=HALF,
        confidence=np.float64(0.9),
        seed=np.int64(0),
        surrogates={},
    )
    kept = (report.replicas, report.estimates, report.seed, report.confidence, report.precision)
    assert plain_kinds(kept)
