"""The accuracy benchmark runs on a few embedded images, writes all it says, and resumes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHORT = ["--limit", "300", "--epochs", "2", "--replicas", "4", "--steps", "3"]


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    return importlib.import_module("accuracy")


def run(accuracy: Any, output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Runs the benchmark's main() and returns the results it wrote."""
    places = ["--output", str(output), "--checkpoints", str(output / "checkpoints")]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *SHORT, *places, *arguments])
    accuracy.main()
    names = [output / f"accuracy_{name}.json" for name in ("mnist", "fashion-mnist")]
    found = [json.loads(name.read_text()) for name in names if name.exists()]
    return {**found[0], "rows": [row for results in found for row in results["rows"]]}


def without_times(results: Any) -> Any:
    for row in results["rows"]:
        del row["seconds"]
        for epoch in row["history"]:
            del epoch["seconds"]
    return results["rows"]


def test_every_method_is_measured_on_both_data_sets(
    accuracy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = run(accuracy, tmp_path, monkeypatch, "--seeds", "3")
    assert results["command"].startswith("python ") and results["seeds"] == [3]
    assert {"versions", "machine", "network"} <= set(results)
    assert [(row["dataset"], row["method"]) for row in results["rows"]] == [
        (dataset, method)
        for dataset in ("mnist", "fashion-mnist")
        for method in ("stbp", "stbp-n", "nit", "nit-s", "nit-s+")
    ]
    table = capsys.readouterr().out
    for row in results["rows"]:
        assert row["images"] == {"train": 210, "validation": 60, "test": 30}
        assert row["seconds"] > 0 and row["validation"] > 10  # chance
        assert {"lr", "weight_decay", "epochs", "split_seed", "center"} <= set(row["settings"])
        noisy = row["method"] != "stbp"
        assert noisy == ("test_mean_of_16_draws" in row) == ("test_noise_off" in row)
        assert f"{row['test']:.2f}" in table
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_benchmark_resumes_to_the_same_rows(
    accuracy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--dataset", "mnist", "--methods", "stbp", "nit-s+", "--seeds", "0", "1")
    whole = run(accuracy, tmp_path / "whole", monkeypatch, *asked)
    one_run, ran = accuracy.one_run, []

    def one_run_and_note(dataset: str, method: str, seed: int, *rest: Any) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append((method, seed))
        return one_run(dataset, method, seed, *rest)

    monkeypatch.setattr(accuracy, "one_run", one_run_and_note)
    with pytest.raises(KeyboardInterrupt):
        run(accuracy, tmp_path / "cut", monkeypatch, *asked)
    assert ran == [("stbp", 0), ("nit-s+", 0)]
    monkeypatch.setattr(accuracy, "one_run", one_run)
    resumed = run(accuracy, tmp_path / "cut", monkeypatch, *asked, "--resume")
    assert without_times(resumed) == without_times(whole)
    with pytest.raises(SystemExit, match="other settings"):
        run(accuracy, tmp_path / "cut", monkeypatch, *asked, "--resume", "--sign-share", "0.5")


def test_nit_s_plus_is_nit_s_first_and_nit_then(
    accuracy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_class = accuracy.training.Run
    step, seen = run_class.step, []

    def step_and_note(self: Any, x: Any, y: Any) -> float:
        now = (self.learner.rule, id(self.optimizer))
        if now not in seen:
            seen.append(now)
        return step(self, x, y)

    monkeypatch.setattr(run_class, "step", step_and_note)
    asked = ("--dataset", "mnist", "--methods", "nit-s+", "--seeds", "0", "--sign-share", "0.5")
    run(accuracy, tmp_path, monkeypatch, *asked)
    assert [now[0] for now in seen] == ["nit-s", "nit"]
    assert seen[0][1] != seen[1][1]  # the moments of the one direction mislead the other
