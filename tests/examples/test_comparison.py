"""The examples that compare methods: each runs briefly, writes what it says, and goes on."""

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

EXAMPLES = Path(__file__).parents[2] / "examples"
BRIEF = ["--samples", "24", "--epochs", "1", "2", "--rates", "3e-3"]


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("comparison")
    monkeypatch.setattr(module, "TURNS", 1)
    monkeypatch.setattr(module, "EVALUATIONS", 1)
    monkeypatch.setattr(module, "_in_a_process_of_its_own", lambda *_: {"resident_mib": 2.0})
    return module


def run(name: str, monkeypatch: pytest.MonkeyPatch, output: Path, *options: str) -> Any:
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"examples/{name}.py", *options, "--output", str(output)])
    module.main()
    return json.loads(output.read_text())


def test_spoken_digits(
    comparison: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "found.json"
    results = run("spoken_digits", monkeypatch, output, *BRIEF)
    task = results["tasks"]["spoken digits"]
    assert [(row["method"], row["epochs"]) for row in task["runs"]] == [
        (method, epochs) for method in comparison.METHODS for epochs in (1, 2)
    ]
    assert all(("validation" in row) == (row["epochs"] == 1) for row in task["runs"])
    assert set(task["ms_of_a_step"]) == set(task["peaks"]) == set(comparison.METHODS)
    assert results["versions"]["torch"] and "1 threads" in results["machine"]
    assert results["command"].startswith("python examples/spoken_digits.py")
    table = capsys.readouterr().out
    assert "| spoken digits | forward only |" in table

    monkeypatch.setattr(comparison.Trained, "fit", lambda *_: pytest.fail("it ran again"))
    assert run("spoken_digits", monkeypatch, output, *BRIEF)["tasks"] == results["tasks"]


def test_a_speaker_held_out() -> None:
    train, validation, test = importlib.import_module("spoken_digits").parts("theo")
    assert [len(y) for _, y in (train, validation, test)] == [2223, 277, 500]


def test_peak_of_a_step_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The command that the parent starts, here in this process."""
    digits = importlib.import_module("spoken_digits")
    module = importlib.import_module("comparison")
    task = module.Task(
        "", "", lambda: digits.Net(width=8), lambda: tuple([few(digits, 3)] * 3), batch=3
    )
    args = type("Arguments", (), {"samples": None})
    peak = module.peak_here(task, "auto", args)
    assert 0.1 < peak["tensors_mib"] < 20


def few(digits: Any, count: int) -> Any:
    x, y = digits.parts(None)[2]
    return x[:count], y[:count]


def test_the_best_rate_is_the_lowest_loss_where_lower_is_better(comparison: Any) -> None:
    rows = [
        {"method": "auto", "epochs": 1, "rate": rate, "validation": value}
        for rate, value in ((1, 0.5), (2, 0.2), (3, 0.9))
    ]
    for lower, best in ((True, 2), (False, 3)):
        assert comparison.best_rate({"lower": lower, "runs": rows}, "auto", 1) == best


def test_events_of_the_simulated_sensor(
    comparison: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = importlib.import_module("events")
    task = events.task_of
    few_images = lambda args: dataclasses.replace(  # noqa: E731
        task(args), parts=lambda: tuple([events.simulated(24, 3)[0]] * 3), methods={"auto": {}}
    )
    monkeypatch.setattr(events, "task_of", few_images)
    results = run("events", monkeypatch, tmp_path / "found.json", *BRIEF, "--steps", "3")
    (found,) = results["tasks"].values()
    assert found["data"] == "simulated saccades over MNIST" and len(found["runs"]) == 2


@pytest.mark.parametrize(("side", "classes"), [(34, 10), (32, 11), (28, 10)])
def test_the_convolutional_network_takes_each_sensor(side: int, classes: int) -> None:
    net: nn.Module = importlib.import_module("events").Conv(side, classes)
    x = torch.randint(2, (2, 3, 2, side, side), dtype=torch.uint8)
    assert net(x).shape == (2, classes)


def test_events_from_files(
    comparison: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tonic", reason='needs "nit-snn[events]"')
    h5py = pytest.importorskip("h5py")
    (tmp_path / "SHD").mkdir()
    for part in ("train", "test"):
        with h5py.File(tmp_path / "SHD" / f"shd_{part}.h5", "w") as file:
            for name, kind in (("times", "float32"), ("units", "uint16")):
                held = file.create_dataset(f"spikes/{name}", (20,), h5py.vlen_dtype(kind))
                for i in range(20):
                    high = 0.5 if name == "times" else 699
                    held[i] = (torch.rand(40) * high).sort()[0].numpy().astype(kind)
            file["labels"] = [i % 20 for i in range(20)]
            file["extra/keys"], file["extra/speaker"] = [b"null"], [0]
    options = [*BRIEF, "--data", "shd", "--data-dir", str(tmp_path), "--methods", "auto"]
    results = run("events", monkeypatch, tmp_path / "found.json", *options)
    assert results["tasks"]["shd"]["network"] == "700-256-256-20, T = 100"


def test_events_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data shd needs --data-dir"):
        run("events", monkeypatch, tmp_path / "found.json", "--data", "shd")
