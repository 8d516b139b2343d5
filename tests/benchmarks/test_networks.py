"""The networks that users bring: each trains for a few steps by every method, and is measured."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    return importlib.import_module("networks")


def main(networks: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["networks.py", *arguments])
    try:
        networks.main()
    finally:
        torch.set_num_threads(threads)


def test_a_run_is_written_once(
    networks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    task = dataclasses.replace(networks.TASKS["deep"], epochs=1, rates=(1e-2, 1e-3))
    monkeypatch.setattr(networks, "TASKS", {"deep": task})
    monkeypatch.setattr(networks, "TEST", 50)
    monkeypatch.setattr(networks, "VALIDATION", 50)
    output = tmp_path / "found.json"
    main(networks, monkeypatch, "--images", "256", "--output", str(output))
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 * len(networks.METHODS)
    assert {row["machine"] for row in rows} and all(row["cpu_seconds"] >= 0 for row in rows)
    chosen = {row["method"]: row["chosen"] for row in rows}
    assert chosen["STBP"] is None and "layers" in chosen["auto"]
    assert "feedback" in chosen["forward only"]
    capsys.readouterr()

    monkeypatch.setattr(networks, "train", lambda *_: pytest.fail("it ran again"))
    main(networks, monkeypatch, "--images", "256", "--output", str(output))
    assert capsys.readouterr().out.startswith("| network | STBP | STBP-N | auto | forward only |")


def test_the_rate_is_chosen_by_validation_images(networks: Any) -> None:
    row = {"network": "deep", "method": "STBP", "cpu_seconds": 1.0}
    rows = [
        {**row, "rate": 1, "validation": 90.0, "test": 80.0},
        {**row, "rate": 2, "validation": 80.0, "test": 99.0},
    ]
    assert "| deep | 80.0 (1 s) |" in networks.table(rows)


def test_the_parts_of_the_data_are_apart(networks: Any) -> None:
    for task in networks.TASKS.values():
        assert task.images <= 8000
        train, validation, test = networks.parts(task, None)
        assert len(train[1]) == task.images and len(validation[1]) == len(test[1]) == 1000
        assert not torch.equal(validation[0][0], test[0][0])


@pytest.mark.full
@pytest.mark.parametrize("method", ["auto", "forward only"])
def test_every_network_learns_something(networks: Any, method: str) -> None:
    """A gradient for every parameter: nothing is left out without a word."""
    for name, task in networks.TASKS.items():
        torch.manual_seed(0)
        net = networks.swap_neurons(task.make())
        learner = networks.NITLearner(net, seed=0, **networks.METHODS[method])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        x, y = networks.parts(task, 8)[0]
        for _ in range(3):  # the feedback says nothing in the first
            networks.step(task, net, learner, optimizer, x, y)
        silent = [n for n, p in net.named_parameters() if not taught(p)]
        assert not silent, (name, silent)


def taught(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    return gradient is not None and bool(gradient.isfinite().all() and gradient.abs().sum() > 0)
