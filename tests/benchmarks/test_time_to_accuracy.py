"""The time-to-accuracy benchmark: its hold rule, its networks, and what it and its search write."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    return importlib.import_module("time_to_accuracy_training")


def run(name: str, output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Runs a script's main() on the embedded images and returns what it wrote."""
    script = importlib.import_module(name)
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--output", str(output)])
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    return json.loads((output / f"{name}.json").read_text())


def curve(*tests: float) -> list[dict[str, float]]:
    return [{"seconds": 1.0 + i, "test": test} for i, test in enumerate(tests)]


def test_a_point_counts_only_if_the_next_one_holds_it(shared: ModuleType) -> None:
    assert shared.reached(curve(90.0, 95.1, 94.9, 95.0, 95.0), 95.0)["seconds"] == 4.0
    assert shared.reached(curve(95.0, 96.0), 95.0)["seconds"] == 1.0
    assert shared.reached(curve(90.0, 95.1), 95.0) is None  # nobody knows whether it holds
    assert shared.reached(curve(95.1, 94.9, 95.1), 95.0) is None


def test_both_frameworks_compute_the_same_function(shared: ModuleType) -> None:
    x = torch.rand(20, 784, generator=torch.Generator().manual_seed(0)) * 3
    found = []
    for framework in shared.FRAMEWORKS:
        for once in (False, True):
            torch.manual_seed(1)
            net = shared.FRAMEWORKS[framework](20, 5, shared.Setting(framework, once=once))
            shared.spread(net.synapse, x, 1.0, 0.5)
            found.append(net(x))
    assert found[0].abs().max() > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_the_learning_rate_rises_and_falls_to_its_floor(shared: ModuleType) -> None:
    setting = shared.Setting("snnTorch", warmup=3, horizon=100, floor=0.1)
    assert setting.factor(0) == pytest.approx(0.25)
    assert setting.factor(50) == pytest.approx(0.55)
    assert setting.factor(100) == setting.factor(1000) == pytest.approx(0.1)


def test_the_memory_optimised_network_learns_the_same(shared: ModuleType) -> None:
    images = torch.rand(64, 784, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 10
    data = shared.Data(images, labels, TensorDataset(images, labels))
    weights = []
    for memopt in (False, True):
        setting = shared.Setting("SpikingJelly", memopt=memopt, batch_size=16)
        trained = shared.Run(setting, data, seed=0, hidden=10, steps=4)
        for _ in range(3):
            trained.step()
        weights.append([p.detach().clone() for p in trained.net.parameters()])
    for plain, saved in zip(*weights, strict=True):
        torch.testing.assert_close(saved, plain)


@pytest.mark.full
def test_every_method_is_measured(
    shared: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ["--hidden", "10", "--steps", "3", "--seconds", "0.09", "--every", "0.03"]
    asked = [*small, "--target", "12", "--seeds", "0", "1"]
    results = run("time_to_accuracy", tmp_path, monkeypatch, *asked)
    assert {"command", "versions", "machine", "network", "seeds", "curves"} <= set(results)
    benchmark = sys.modules["time_to_accuracy"]
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == list(benchmark.SETTINGS) == list(results["curves"])
    table = capsys.readouterr().out
    reference = rows[benchmark.REFERENCE]
    for name, row in rows.items():
        assert name in table and len(row["seconds"]) == len(results["curves"][name]) == 2
        assert row["settings"]["batch_size"] > 0
        assert ("test_noise_off" in row) == ("NIT" in name)
        for seconds, one in zip(row["seconds"], results["curves"][name], strict=True):
            assert 1 < len(one) <= 3
            columns = results["curve_columns"][name]
            points = [dict(zip(columns, point, strict=True)) for point in one]
            held = shared.reached(points, 12.0)
            assert seconds == (None if held is None else pytest.approx(held["seconds"], abs=1e-3))
        if row["median_seconds"] is not None and reference["median_seconds"] is not None:
            expected = row["median_seconds"] / reference["median_seconds"]
            assert row["over_reference"] == pytest.approx(expected)
    assert (tmp_path / "time_to_accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_search_tries_as_many_candidates_for_each_method(
    shared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--hidden", "10", "--steps", "3", "--seconds", "0.05", "--every", "0.02"]
    asked = [*small, "--target", "10", "--candidates", "2", "--finalists", "1", "--images", "100"]
    results = run("time_to_accuracy_search", tmp_path, monkeypatch, *asked)
    search = sys.modules["time_to_accuracy_search"]
    assert list(results["methods"]) == list(search.SPACES)
    for name, found in results["methods"].items():
        assert len(found["rows"]) == 2
        assert [len(row["again"]) for row in found["rows"] if "again" in row] == [2]
        for row in found["rows"]:
            assert set(row["candidate"]) == set(search.SPACES[name][1])
