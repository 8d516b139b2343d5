"""The benchmark of regression by a membrane runs, and the page says what its file says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_it_runs_and_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    regression, threads = importlib.import_module("regression"), torch.get_num_threads()
    output = tmp_path / "found.json"
    options = ["--seeds", "0", "--steps", "2", "--time-steps", "4", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["regression.py", *options])
    try:
        regression.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads(output.read_text())
    assert len(found["rows"]) == 4 and found["ratio_with_noise"].keys() == {"line", "wave"}


def test_the_page_has_the_numbers_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    regression = importlib.import_module("regression")
    found = json.loads((ROOT / "docs" / "benchmarks" / "regression.json").read_text())
    page = (ROOT / "docs" / "faq.md").read_text()
    for kind in regression.TARGETS:
        noisy, quiet = (
            regression.ratios(found["rows"], which)[kind] for which in ("loss", "noise_off")
        )
        assert f"| {kind} | {noisy} | {quiet} |" in page
        assert quiet < 1.5
