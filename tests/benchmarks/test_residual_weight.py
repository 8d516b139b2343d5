"""The weight of the residual is measured on a small network here; the committed figures hold."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_every_way_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("residual_weight")
    monkeypatch.setitem(benchmark.NETWORKS, "784-50-10", ([784, 5, 10], 0.5, 2))
    few = ["--networks", "784-50-10", "--trained-for", "1", "--replicas", "2", "--passes", "1", "4"]
    given = ["residual_weight.py", *few, "--exact", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    threads, below = torch.get_num_threads(), benchmark.residual.BELOW
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads)
    assert below == benchmark.residual.BELOW
    results = json.loads((tmp_path / "residual_weight.json").read_text())
    shown = [(row["way"], row["passes"]) for row in results["rows"]]
    weighed = [(way, passes) for way in ("weighed", "weighed by the mean") for passes in (1, 4)]
    assert shown == [("credit alone", 1), *weighed, ("all of it", 1)]
    assert results["rows"][0]["weights"] == [0.0] and results["rows"][-1]["weights"] == [1.0]


def test_the_pages_say_what_was_measured() -> None:
    results = json.loads((ROOT / "docs/benchmarks/residual_weight.json").read_text())
    ratios = results["over_credit_alone_worst_and_best"]
    page = " ".join((ROOT / "docs/design.md").read_text().split())
    for way, text in (("weighed", "{1:.2f} to {0:.2f} times"), ("weighed by the mean", "{0:.1f}")):
        assert text.format(*ratios[way]) in page
