"""The comparison of estimators runs at a tiny size; what is biased is shown with its bias."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.full
def test_every_estimator_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measured = importlib.import_module("gradient_variance")
    shape, training = {"hidden": [10, 10], "steps": 3}, measured.BEST
    monkeypatch.setattr(measured, "NETWORKS", {"784-10-10-10": (shape, training)})
    small = ["--replicas", "4", "--batch-size", "8", "--estimates", "8", "--stages", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["gradient_variance.py", *small, "--output", str(tmp_path)])
    measured.main()
    results = json.loads((tmp_path / "gradient_variance.json").read_text())
    assert {"command", "versions", "machine", "network", "seed"} <= set(results)
    table = capsys.readouterr().out
    for stages in results["networks"].values():
        assert [stage["steps"] for stage in stages] == [0, 1]
        for stage in stages:
            rows = {row["estimator"]: row for row in stage["rows"]}
            assert list(rows) == [*measured.ESTIMATORS, measured.SURROGATE]
            for name, row in rows.items():
                assert name in table and row["variance"] > 0 and row["milliseconds"] > 0
                assert row["relative_error"] >= row["relative_bias"] >= 0
            assert rows["credit layers alone"]["variance"] < rows["leave-one-out"]["variance"] / 10
    assert (tmp_path / "gradient_variance.png").read_bytes().startswith(b"\x89PNG")


def test_statistics_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two estimates, 1 and 3, of a gradient of 4 that is known."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measured = importlib.import_module("gradient_variance")
    found, truth = torch.tensor([[1.0], [3.0]]), torch.tensor([4.0])
    row = measured.statistics("x", found, truth, torch.tensor(0.0), [0.1, 0.1])
    assert row["variance"] == pytest.approx(2.0)
    # The mean is 2 off, of which chance explains a square of 2 / 2.
    assert row["relative_bias"] == pytest.approx((4 - 1) ** 0.5 / 4)
    assert row["relative_error"] == pytest.approx((2 + 4 - 1) ** 0.5 / 4)
