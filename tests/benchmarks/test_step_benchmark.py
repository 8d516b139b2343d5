"""The step benchmark runs, and its ratios are those of its medians."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.full
def test_ratios_are_those_of_the_medians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step = importlib.import_module("step")
    small = ["--batch-size", "4", "--replicas", "4", "--rounds", "3", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", ["step.py", *small, "--output", str(tmp_path)])
    step.main()
    results = json.loads((tmp_path / "step.json").read_text())
    assert {"command", "versions", "machine", "network", "seed"} <= set(results)
    rows = {row["method"]: row for row in results["rows"]}
    assert len(rows) == 2 * (1 + len(step.ESTIMATORS))
    faster = min(rows[f"{name}, BPTT"]["milliseconds"] for name in step.FRAMEWORKS)
    table = capsys.readouterr().out
    for name, row in rows.items():
        assert row["quartiles"][0] <= row["milliseconds"] <= row["quartiles"][1]
        assert row["replicas"] == (1 if name.endswith(("BPTT", "alone")) else 4)
        one = row["milliseconds"] / row["replicas"]
        assert row["bptt_over_one_replica"] == pytest.approx(faster / one)
        assert f"{row['milliseconds']:.2f}" in table
    for line in results["linearity"]:
        given = {int(size): found for size, found in line["milliseconds"].items()}
        assert step.straight_line(given)["for_one_more"] == pytest.approx(line["for_one_more"])
    for name, milliseconds in results["milliseconds_of_operations"].items():
        assert milliseconds > 0 and name in table
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_the_line_through_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step = importlib.import_module("step")
    line = step.straight_line({2: 5.0, 4: 9.0, 8: 17.0})
    assert line["milliseconds_at_none"] == pytest.approx(1.0)
    assert line["for_one_more"] == pytest.approx(2.0)
    assert line["worst_point_off_by"] == pytest.approx(0.0, abs=1e-12)
    assert step.straight_line({2: 5.0, 4: 9.0, 8: 34.0})["worst_point_off_by"] > 0.1
