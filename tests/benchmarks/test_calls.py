"""The toolkit's Python calls per layer and time step, which no GPU can hide: counts, not times."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MOST = 40


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("calls")


@pytest.mark.parametrize("method", ["default", "likelihood ratio, 4 replicas"])
def test_a_layers_step_takes_few_calls(module: Any, method: str) -> None:
    """At most 40, those before and after the steps shared out over them."""
    found = module.calls(module.METHODS[method], steps=128)
    assert 5 < found["ours_per_layer_and_step"] <= MOST


def test_the_count_sees_functions_and_generators_of_the_toolkit_alone(module: Any) -> None:
    def step() -> None:
        module.nit_snn.neurons.base.check_grad_mode()
        sorted([2, 1], key=lambda x: x)

    assert module.counted(step) == {"ours": 1, "all": 4}
    assert module.calls(None, steps=2)["ours_per_layer_and_step"] == 0


def test_it_runs(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["calls.py", "--steps", "2", "--output", str(tmp_path)])
    module.main()
    results = json.loads((tmp_path / "calls.json").read_text())
    assert {"command", "versions", "machine", "network", "seed"} <= set(results)
    assert set(results["rows"]) == {*module.METHODS, "snnTorch, BPTT"}
