"""What calibration gains is measured on networks that train for a few steps here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = Path(__file__).parents[2] / "docs" / "benchmarks" / "calibration.json"


def test_a_run_is_written_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    calibration = importlib.import_module("calibration")
    monkeypatch.setattr(calibration.networks, "TEST", 20)
    name = "784-100-100-100-100-100-10"
    path, threads = tmp_path / "found.json", torch.get_num_threads()
    given = [name, "--steps", "1", "--seeds", "3", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["calibration.py", *given])
    try:
        calibration.main()
        written = path.read_text()
        calibration.main()
    finally:
        torch.set_num_threads(threads)
    assert path.read_text() == written
    rows = json.loads(written)["rows"]
    assert [(row["calibrated"], row["rate"]) for row in rows] == [
        (on, rate) for on in (False, True) for rate in (1e-3, 3e-3)
    ]
    assert all(layer["after"] > 0.028 for layer in rows[2]["layers"])
    assert name in calibration.table(rows)


def test_it_gains_where_layers_are_silent() -> None:
    """What the documents say of it: on the deep networks, at both learning rates."""
    rows = json.loads(RESULTS.read_text())["rows"]

    def mean(name: str, on: bool, rate: float) -> float:
        own = [
            r["test"]
            for r in rows
            if (r["network"], r["calibrated"], r["rate"]) == (name, on, rate)
        ]
        return sum(own) / len(own)

    for name in ("784-100-100-100-100-100-10", "SpikingJelly's LIFNode, 784-100-100-100-10"):
        for rate in (1e-3, 3e-3):
            assert mean(name, True, rate) > mean(name, False, rate)
