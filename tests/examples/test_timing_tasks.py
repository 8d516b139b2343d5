"""The tasks whose answer lies in time: their data, their losses, and a brief run of each."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    threads = torch.get_num_threads()
    yield importlib.import_module("timing_tasks")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_half_of_the_pairs_match_and_the_first_pattern_says_nothing(tasks: Any) -> None:
    x, y = tasks.matches(4000, 0)
    assert x.shape == (4000, 45, 20) and y.float().mean() == 0.5
    assert not x[:, 5:40].any()
    first, second = (x[:, part].sum(1) for part in (slice(0, 5), slice(40, 45)))
    kinds = [seen.view(-1, 4, 5).sum(2).argmax(1) for seen in (first, second)]
    assert ((kinds[0] == kinds[1]).long() == y).float().mean() > 0.99
    assert abs(y[kinds[0] == 2].float().mean() - 0.5) < 0.1


def test_distance_of_spike_trains(tasks: Any) -> None:
    one = torch.zeros(1, 200, 1)
    one[0, 50] = 1
    nothing, later = torch.zeros_like(one), torch.roll(one, 3, 1)
    assert tasks.van_rossum(one, one) == 0
    # sum over t of exp(-2 t / tau), over tau
    whole = 1 / (1 - np.exp(-2 / tasks.TAU)) / tasks.TAU
    assert tasks.van_rossum(one, nothing).item() == pytest.approx(whole, rel=1e-4)
    expected = 2 * whole * (1 - np.exp(-3 / tasks.TAU))
    assert tasks.van_rossum(one, later).item() == pytest.approx(expected, rel=1e-4)


def test_times_of_first_spikes(tasks: Any) -> None:
    spikes = torch.zeros(1, 6, 3)
    spikes[0, 2, 0] = spikes[0, 4, 0] = spikes[0, 0, 1] = 1
    assert tasks.first_spikes(spikes).tolist() == [[2.0, 0.0, 6.0]]
    right = [tasks.first_is_right(spikes, torch.tensor([k])).item() for k in range(3)]
    assert right == [0.0, 100.0, 0.0]
    spikes[0, 0, 0] = 1  # a tie is no answer
    assert not any(tasks.first_is_right(spikes, torch.tensor([k])) for k in range(3))
    assert not tasks.first_is_right(torch.zeros(1, 6, 3), torch.tensor([0]))


def test_each_bright_pixel_spikes_once(tasks: Any) -> None:
    (x, _), (images, _) = tasks.early_pixels(0, 5), tasks.images(0, 5)
    assert torch.equal(x.sum(1), (images > 0.2).float())


def test_packets_cost_and_have_no_derivative(tasks: Any) -> None:
    out = torch.zeros(3, 11)
    out[:, 10] = torch.tensor([0.0, 16.0, 17.0])
    out.requires_grad_()
    losses = tasks.energy_loss(out, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(losses - losses[0], tasks.PRICE * torch.tensor([0.0, 1.0, 2.0]))
    assert not torch.autograd.grad(losses.sum(), out)[0][:, 10].any()


LONGER = [pytest.param(n, marks=pytest.mark.full) for n in ("match", "trains", "latency")]


@pytest.mark.parametrize("name", [*LONGER, "energy"])
def test_a_brief_run(
    name: str, tasks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    comparison = importlib.import_module("comparison")
    monkeypatch.setattr(comparison, "TURNS", 1)
    monkeypatch.setattr(comparison, "EVALUATIONS", 1)
    monkeypatch.setattr(comparison, "_in_a_process_of_its_own", lambda *_: {})
    task = tasks.TASKS[name]
    parts = tuple(comparison.few(part, 6) for part in task.parts())
    short = dataclasses.replace(task, parts=lambda: parts, epochs=(1, 2), rates=(1e-3,), batch=3)
    monkeypatch.setattr(tasks, "TASKS", {name: short})
    output = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["examples/timing_tasks.py", "--output", str(output)])
    tasks.main()
    found = json.loads(output.read_text())["tasks"][name]
    assert {row["method"] for row in found["runs"]} == set(tasks.METHODS)
    wanted = {"latency": "latency", "energy": "spikes"}.get(name)
    assert wanted is None or all(wanted in row for row in found["runs"] if "test" in row)


def test_an_unknown_task(tasks: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["examples/timing_tasks.py", "matsch"])
    with pytest.raises(SystemExit):
        tasks.main()
    assert "no such task: matsch" in capsys.readouterr().err
