"""The adversarial example and its search on a few embedded images: they train, judge, resume."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SHORT = ["--hidden", "6", "--epochs", "2", "--images", "4", "--seed", "1"]
SHORT += ["--decision-draws", "2", "--attack-draws", "2", "--attack-steps", "1"]
SHORT += ["--apgd-steps", "2", "--queries", "2"]


@pytest.fixture(autouse=True)
def _embedded_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)


def few(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few images that an epoch is two batches."""
    whole = module.split

    def cut(*args: Any, **options: Any) -> Any:
        parts = whole(*args, **options)
        for part in parts:
            part.tensors = tuple(t[:300] for t in part.tensors)
        return parts

    monkeypatch.setattr(module, "split", cut)


def run(work: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    module = importlib.import_module("adversarial_training")
    few(module, monkeypatch)
    places = ["--work", str(work), "--output", str(work)]
    monkeypatch.setattr(sys, "argv", ["adversarial_training.py", *SHORT, *places, *arguments])
    module.main()
    return json.loads((work / "adversarial_mnist_6.json").read_text())


def test_all_methods_are_trained_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(tmp_path, monkeypatch)
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [row["method"] for row in found["rows"]] == ["NIT", "ReLU", "STBP-N"]
    for row in found["rows"]:
        assert row["protocol"] == "adaptive"
        assert row["worst"] <= min(row["attacks"].values())
        assert row["training"]["method"] == row["method"]
        epochs = 6 if row["method"] == "ReLU" else 2
        assert len(row["history"]) == row["training"]["epochs"] == epochs


@pytest.mark.parametrize("method", ["NIT", "STBP-N"])
def test_a_killed_run_resumes_to_the_same_weights(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("adversarial_training")
    splits = module.split(*module.load("mnist"))
    splits = type(splits)(*(torch.utils.data.TensorDataset(*p[:256]) for p in splits))
    setting = module.Setting(method, epochs=2, ema=0.9)
    weights = []
    for cut in (False, True):
        checkpoint = tmp_path / f"{cut}.pt"
        run = module.Run(setting, 6, 0)
        if cut:
            save = module.Run._save

            def save_and_die(self: Any, path: Path, save: Any = save) -> None:
                save(self, path)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(module.Run, "_save", save_and_die)
                run.train(splits, checkpoint)
            run = module.Run(setting, 6, 0)
        run.train(splits, checkpoint, resume=cut)
        weights.append(run.net.state_dict())
        assert len(run.history) == 2
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    with pytest.raises(SystemExit, match="other settings"):
        module.Run(setting, 7, 0).train(splits, checkpoint, resume=True)


def test_a_trained_network_is_certified_with_the_steps_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, monkeypatch, "--methods", "NIT", "--steps", "4")
    certify = importlib.import_module("certify")
    made: list[Any] = []
    monkeypatch.setattr(certify, "Spiking", lambda *args: made.append(Spiking(*args)) or made[-1])
    Spiking = importlib.import_module("adversarial_training").Spiking
    places = ["--checkpoint", str(tmp_path / "mnist_6_NIT"), "--output", str(tmp_path)]
    certify.main([*places, "--images", "4", "--draws", "100", "--sigmas", "0.25"])
    assert [net.steps for net in made] == [4]
    rows = json.loads((tmp_path / "certified_mnist.json").read_text())["rows"]
    assert len(rows) == 3 and (tmp_path / "certified_mnist.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="No checkpoint in"):
        certify.main(["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path)])


def test_the_search_writes_its_trials_and_leaves_out_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("adversarial_search")
    few(module, monkeypatch)
    output = tmp_path / "search.json"
    arguments = ["--trials", "ReLU", "--images", "20", "--output", str(output)]
    relu = [name for name in module.TRIALS if name.startswith("ReLU")]
    trains: list[int] = []
    original = module.Run.train

    def train(self: Any, splits: Any) -> None:
        trains.append(1)
        original(self, splits)

    monkeypatch.setattr(module.Run, "train", train)
    for extra in ([], ["--resume"]):
        monkeypatch.setattr(sys, "argv", ["adversarial_search.py", *arguments, *extra])
        module.main()
        assert len(trains) == len(relu)
        rows = json.loads(output.read_text())["rows"]
        assert [row["name"] for row in rows] == relu
    text = output.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for name in relu)
