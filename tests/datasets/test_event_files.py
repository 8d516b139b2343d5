"""Event recordings of all four kinds, from small files that are written here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nit_snn.datasets import EVENT_NAMES, EventFrames

#: x, y, time in microseconds, polarity.
EVENTS = [(3, 4, 50_000, 1), (33, 0, 51_000, 0), (3, 4, 60_500, 1), (5, 6, 95_000, 0)]


def needs_tonic() -> None:
    pytest.importorskip("tonic", reason='needs "nit-snn[events]"')


def write_n_mnist(folder: Path) -> None:
    """Five bytes an event: x, y, and a bit of polarity before 23 bits of time."""
    for part, digits in (("Train", (0, 7)), ("Test", (3,))):
        for digit in digits:
            place = folder / "NMNIST" / part / str(digit)
            place.mkdir(parents=True)
            content = bytearray()
            for x, y, time, polarity in EVENTS:
                content += bytes([x, y]) + ((polarity << 23) | time).to_bytes(3, "big")
            (place / "00001.bin").write_bytes(content)


def write_dvs_gesture(folder: Path) -> None:
    place = folder / "DVSGesture" / "ibmGestureTrain" / "user01_led"
    place.mkdir(parents=True)
    rows = [(x, y, polarity, time // 1000) for x, y, time, polarity in EVENTS]
    np.save(place / "9.npy", np.array(rows, dtype=np.float64))


def write_sounds(path: Path) -> None:
    """Two recordings: times in seconds, units, labels."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, kind, rows in (
            ("times", np.float16, [[0.0, 0.0125, 0.5], [0.25]]),
            ("units", np.uint16, [[0, 699, 12], [350]]),
        ):
            held = file.create_dataset(f"spikes/{name}", (2,), h5py.vlen_dtype(kind))
            for i, row in enumerate(rows):
                held[i] = np.array(row, kind)
        file["labels"] = np.array([11, 4], dtype=np.uint16)
        file["extra/keys"] = np.array([b"zero", b"null"])
        file["extra/speaker"] = np.array([0, 1])


def test_n_mnist(tmp_path: Path) -> None:
    needs_tonic()
    write_n_mnist(tmp_path)
    data = EventFrames("n-mnist", tmp_path, steps=4, window=10.0)
    assert len(data) == 2 and [data[i][1] for i in range(2)] == [0, 7]
    frames, _ = data[0]
    assert frames.shape == (4, 2, 34, 34) and frames.dtype == torch.uint8
    # 0 ms: step 0; 1 ms: step 0; 10.5 ms: step 1; 45 ms is past the end.
    assert frames.nonzero().tolist() == [[0, 0, 0, 33], [0, 1, 4, 3], [1, 1, 4, 3]]
    assert EventFrames("n-mnist", tmp_path, "test")[0][1] == 3
    coarse = EventFrames("n-mnist", tmp_path, steps=5, window=10.0, pool=4)[0][0]
    assert coarse.shape == (5, 2, 9, 9)
    assert coarse.nonzero().tolist() == [[0, 0, 0, 8], [0, 1, 1, 0], [1, 1, 1, 0], [4, 0, 1, 1]]
    with pytest.raises(IndexError, match="no recording 2 of 2"):
        data[2]


def test_dvs_gesture(tmp_path: Path) -> None:
    needs_tonic()
    write_dvs_gesture(tmp_path)
    data = EventFrames("dvs-gesture", str(tmp_path), steps=50, window=1.0, pool=4)
    frames, label = data[0]
    assert (len(data), label, frames.shape) == (1, 9, (50, 2, 32, 32))
    assert frames.nonzero().tolist() == [[0, 1, 1, 0], [1, 0, 0, 8], [10, 1, 1, 0], [45, 0, 1, 1]]


@pytest.mark.parametrize("name", ["shd", "ssc"])
def test_sounds(name: str, tmp_path: Path) -> None:
    needs_tonic()
    write_sounds(tmp_path / name.upper() / f"{name}_test.h5")
    data = EventFrames(name, tmp_path, "test", steps=20, window=5.0)
    x, y = next(iter(DataLoader(data, batch_size=2)))
    assert x.shape == (2, 20, 700) and y.tolist() == [11, 4]
    assert x[0].nonzero().tolist() == [[0, 0], [2, 699]]
    assert x[1].nonzero().tolist() == [[0, 350]]  # time begins at the first event
    assert EventFrames(name, tmp_path, "test", steps=2, pool=5)[0][0].shape == (2, 140)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for name in EVENT_NAMES:
        with pytest.raises(FileNotFoundError, match=r"tonic\.datasets\.\w+\("):
            EventFrames(name, tmp_path)
    with pytest.raises(ValueError, match="unknown events 'nmnist': choose one of n-mnist, dvs"):
        EventFrames("nmnist", tmp_path)
    with pytest.raises(ValueError, match="shd has no part 'valid': choose one of train, test"):
        EventFrames("shd", tmp_path, "valid")
    with pytest.raises(TypeError, match="data_dir must be a path"):
        EventFrames("shd", 3)  # type: ignore[arg-type]
    for options in ({"steps": 0}, {"pool": 0}, {"window": 0.0}, {"window": float("nan")}):
        with pytest.raises(ValueError, match="at least 1 and window positive"):
            EventFrames("shd", tmp_path, **options)  # type: ignore[arg-type]


def test_without_tonic_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tonic", None)
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    write_n_mnist(tmp_path)
    with pytest.raises(ImportError, match=r'pip install "nit-snn\[events\]"'):
        EventFrames("n-mnist", tmp_path)
