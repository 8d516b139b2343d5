"""NIT inside PyTorch Lightning: it learns, logs, and goes on from a checkpoint."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

REASON = "Lightning is not installed: pip install 'nit-snn[lightning]'"
pytest.importorskip("lightning", reason=REASON)

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ["--batch-size", "200", "--replicas", "4"]


def run(output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["x", *SHORT, "--output", str(output), *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers
        importlib.import_module("lightning_mnist").main()
    return json.loads((output / "results.json").read_text())


@pytest.mark.full
def test_it_learns_logs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, monkeypatch, "--epochs", "2")
    assert first["test_accuracy"] > 60  # chance is 10
    last = tmp_path / "last.ckpt"
    state = torch.load(last, weights_only=False)
    assert state["learner"]["passes"] == state["global_step"] == 70  # 7,000 images, twice
    assert state["state_dict"]["net.lif1.sigma"].shape == (50,)
    second = run(tmp_path, monkeypatch, "--epochs", "3", "--resume", str(last))
    assert torch.load(last, weights_only=False)["learner"]["passes"] == 105
    assert second["test_accuracy"] > 60

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: set[str] = set()
    for version in tmp_path.glob("version_*"):
        tags |= set(EventAccumulator(str(version)).Reload().Tags()["scalars"])
    assert tags >= {
        "train_loss",
        "validation_accuracy",
        "replicas",
        "sigma/lif1",
        "residual/lif1",
        "firing_rate/lif1",
    }
