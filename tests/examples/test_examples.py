"""The examples run on the embedded data, learn, write what they say, and resume after a kill."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ["--epochs", "2", "--batch-size", "200", "--seed", "1"]


@pytest.fixture(autouse=True)
def _embedded_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)


def run(name: str, output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Runs an example's main() and returns the results it wrote."""
    monkeypatch.setattr(sys, "argv", [name, *SHORT, "--output", str(output), *arguments])
    importlib.import_module(name).main()
    return json.loads((output / "results.json").read_text())


def few(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few images that an epoch is four batches."""
    whole = training.split

    def cut(*args: Any, **options: Any) -> Any:
        parts = whole(*args, **options)
        for part in parts:
            part.tensors = tuple(t[:700] for t in part.tensors)
        return parts

    monkeypatch.setattr(training, "split", cut)


def without_times(results: Any) -> Any:
    for row in results["rows"]:
        for entry in row["history"]:
            del entry["seconds"]
    return results["rows"]


@pytest.mark.parametrize(
    "name", ["mnist_snntorch", pytest.param("mnist_spikingjelly", marks=pytest.mark.full)]
)
def test_example_learns_and_writes_results_and_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run(name, tmp_path, monkeypatch)
    assert results["images"] == {"train": 7000, "validation": 2000, "test": 1000}
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [row["method"] for row in results["rows"]] == ["nit", "stbp", "stbp-n"]
    for row in results["rows"]:
        assert row["test"] > 40, row  # chance is 10; two short epochs reach 60 and more
        assert row["history"][1]["train_loss"] < row["history"][0]["train_loss"]
    for picture in ("accuracy.png", "inside.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param("mnist_snntorch", "stbp-n", marks=pytest.mark.full),
        ("mnist_spikingjelly", "nit"),
        pytest.param("mnist_snntorch", "nit-s+", marks=pytest.mark.full),
    ],
)
def test_a_killed_run_resumes_to_the_same_numbers(
    name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = importlib.import_module("training")
    few(training, monkeypatch)
    whole = run(name, tmp_path / "whole", monkeypatch, "--methods", method)
    save = training.Run._save

    def save_and_die(self: Any) -> None:
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Run, "_save", save_and_die)
        run(name, tmp_path / "cut", patch, "--methods", method)
    resumed = run(name, tmp_path / "cut", monkeypatch, "--methods", method, "--resume")
    assert len(resumed["rows"][0]["history"]) == 2
    assert without_times(resumed) == without_times(whole)


def test_a_run_does_not_resume_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(importlib.import_module("training"), monkeypatch)
    run("mnist_snntorch", tmp_path, monkeypatch, "--methods", "stbp")
    with pytest.raises(SystemExit, match="other settings"):
        run(
            "mnist_snntorch", tmp_path, monkeypatch, "--methods", "stbp", "--resume", "--steps", "3"
        )
