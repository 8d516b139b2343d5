"""Networks that torch does not run, and an environment: the examples learn, briefly, and write."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _embedded_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)


def needs(package: str, extra: str) -> None:
    """Skips where a package is missing, or cannot be imported beside the others."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"{error}: pip install 'nit-snn[{extra}]'")


def run(name: str, output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Runs an example's main() and returns the results it wrote."""
    monkeypatch.setattr(sys, "argv", [name, "--output", str(output), *arguments])
    with warnings.catch_warnings():
        importlib.import_module(name).main()
    return json.loads((output / "results.json").read_text())


def test_mismatched_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ("--epochs=1", "--more-epochs=1", "--chips=1", "--recordings=60", "--batch-size=20")
    results = run("mismatched_chip", tmp_path, monkeypatch, *short)
    (row,) = results["rows"]
    assert {"software", "copied", "rounded", "loop"} <= row.keys()
    assert all(0 <= row[way] <= 100 for way in ("software", "copied", "rounded", "loop"))
    assert (tmp_path / "recovered.png").read_bytes().startswith(b"\x89PNG")


def test_a_chip_deviates_and_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("mismatched_chip")
    chip = module.Chip(0.2, 4, 0)
    assert 0.1 < chip.thresholds[0].std() < 0.3
    w = torch.randn(100, 81).numpy()
    chip.write([w, w[:10]])
    assert len(set(chip.weights[0].flatten().tolist())) == 15
    assert module.Chip(0.0, None, 0).thresholds[0].std() == 0


def test_brian2_runs_the_network_that_was_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop checks each spike against the description: Brian2 integrates the same equations."""
    needs("brian2", "brian2")
    short = ("--epochs=1", "--recordings=20", "--batch-size=10", "--hidden=12")
    results = run("brian2_in_the_loop", tmp_path, monkeypatch, *short)
    assert [row["method"] for row in results["rows"]] == [
        "Brian2, in the loop",
        "torch, NITLearner",
    ]
    assert all(row["of"] == 20 and 0 <= row["test"] <= 100 for row in results["rows"])


def test_nest_runs_the_network_that_was_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise."""
    needs("nest", "nest")
    short = ("--passes=2", "--batch-size=4")
    results = run("nest_in_the_loop", tmp_path, monkeypatch, *short)
    assert results["chance"] == 25.0 and 0 <= results["test"] <= 100


def test_cartpole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("gymnasium", "gymnasium")
    short = ("--passes=2", "--seeds=0", "--environments=4", "--hidden=8")
    results = run("cartpole", tmp_path, monkeypatch, *short)
    assert [row["method"] for row in results["rows"]] == ["NIT", "REINFORCE"]
    for row in results["rows"]:
        assert row["environment_steps"] == 2 * 64 * 4
        assert 0 < row["episodes"] < 128 and not row["solved"]


def test_returns_end_with_their_episode() -> None:
    needs("gymnasium", "gymnasium")
    rewards = [torch.ones(1)] * 4
    done = [torch.tensor([t == 1]) for t in range(4)]
    found = importlib.import_module("cartpole").returns_to_go(rewards, done, 0.5)
    assert found.flatten().tolist() == [1.5, 1.0, 1.5, 1.0]
