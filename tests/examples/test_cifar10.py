"""CIFAR-10 from either layout, and a step of the network; the memory curve of long sequences."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def write_jpeg(folder: Path, count: int) -> np.ndarray:
    """Grey images, each of its own brightness, end to end."""
    image = pytest.importorskip("PIL.Image")
    levels, files = np.linspace(0, 255, count).astype(np.uint8), []
    for level in levels:
        buffer = io.BytesIO()
        image.fromarray(np.full((32, 32, 3), level)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    held = {}
    for part in ("train", "test"):
        held[f"{part}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        held[f"{part}_ends"] = np.cumsum([len(file) for file in files])
        held[f"{part}_labels"] = np.arange(count) % 10
    (folder / "CIFAR10").mkdir()
    np.savez(folder / "CIFAR10" / "cifar10-jpeg.npz", **held)
    return levels


def test_jpeg_files(tmp_path: Path) -> None:
    levels = write_jpeg(tmp_path, 12)
    first, second, name = importlib.import_module("cifar10").read(tmp_path, 10, 4)
    assert name == "CIFAR-10, re-encoded as JPEG"
    assert first[0].shape == (10, 3, 32, 32) and second[0].shape == (4, 3, 32, 32)
    assert (first[0].float().mean((1, 2, 3)) - torch.from_numpy(levels[:10])).abs().max() < 2
    assert first[1].tolist() == [i % 10 for i in range(10)]


def test_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072) % 256
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": pixels.astype(np.uint8), "labels": [3, 8]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    first, second, name = importlib.import_module("cifar10").read(tmp_path, 3, 1)
    assert name == "CIFAR-10" and first[1].tolist() == [3, 8, 3] and len(second[1]) == 1
    assert torch.equal(first[0][0].flatten(), torch.from_numpy(pixels[0].astype(np.uint8)))


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="neither cifar-10-batches-py nor CIFAR10"):
        importlib.import_module("cifar10").read(tmp_path, 1, 1)


def test_a_brief_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jpeg(tmp_path, 20)
    cifar, comparison = map(importlib.import_module, ("cifar10", "comparison"))
    monkeypatch.setattr(comparison, "TURNS", 1)
    monkeypatch.setattr(comparison, "EVALUATIONS", 1)
    monkeypatch.setattr(comparison, "_in_a_process_of_its_own", lambda *_: {})
    monkeypatch.setitem(cifar.PLANS, "vgg", [4, "P", 4, "P", "P"])
    output = tmp_path / "found.json"
    options = ["--data-dir", str(tmp_path), "--epochs", "1", "2", "--rates", "1e-3"]
    options += ["--methods", "STBP", "auto", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["examples/cifar10.py", *options])
    cifar.main()
    (task,) = json.loads(output.read_text())["tasks"].values()
    assert task["data"].startswith("CIFAR-10, re-encoded as JPEG") and len(task["runs"]) == 4


def test_long_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, comparison = map(importlib.import_module, ("long_sequences", "comparison"))
    monkeypatch.setattr(comparison, "EVALUATIONS", 1)
    monkeypatch.setattr(long, "WIDTH", 8)
    monkeypatch.setattr(long, "task_of", lambda steps=20, make=long.task_of: make(min(steps, 20)))
    rows = [
        {"method": method, "steps": steps, "resident_mib": 1.0 * steps, "tensors_mib": 1.0}
        for method in long.COLOURS
        for steps in (80, 640)
    ]
    monkeypatch.setattr(long, "curve", lambda _: rows)
    digits = importlib.import_module("spoken_digits")
    few = tuple([comparison.few(digits.parts(None)[2], 4)] * 3)
    monkeypatch.setattr(digits, "parts", lambda _: few)
    output = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["long.py", "--epochs", "1", "--output", str(output)])
    long.main()
    found = json.loads(output.read_text())
    assert found["peaks"] == rows and len(found["history"]) == 1
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "feedback" in found["chosen"]
