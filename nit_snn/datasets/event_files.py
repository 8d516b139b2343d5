"""Recordings of event sensors as frames by time window, read from the files that people have.

tonic reads the files (https://tonic.readthedocs.io). Nothing is downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nit_snn.datasets.names import check_folder


@dataclass(frozen=True)
class _Kind:
    """How tonic names a data set.

    Attributes:
        reader: Its class, which is the name of the folder, too.
        parts: What must be in that folder, by part.
        given: The argument of the class, by part.
        sounds: Whether a sensor has channels, and no pixels.
    """

    reader: str
    parts: dict[str, str]
    given: dict[str, dict[str, Any]]
    sounds: bool = False


_TRAIN: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_KINDS = {
    "n-mnist": _Kind("NMNIST", {"train": "Train", "test": "Test"}, _TRAIN),
    "dvs-gesture": _Kind(
        "DVSGesture", {"train": "ibmGestureTrain", "test": "ibmGestureTest"}, _TRAIN
    ),
    "shd": _Kind("SHD", {"train": "shd_train.h5", "test": "shd_test.h5"}, _TRAIN, sounds=True),
    "ssc": _Kind(
        "SSC",
        {name: f"ssc_{name}.h5" for name in ("train", "valid", "test")},
        {name: {"split": name} for name in ("train", "valid", "test")},
        sounds=True,
    ),
}
EVENT_NAMES = tuple(_KINDS)
"""The sets of event recordings: every name that `EventFrames` takes."""


class EventFrames(Dataset[tuple[Tensor, int]]):
    """A data set of event recordings, each as frames of equal time windows.

    An item is a pair: frames 0 or 1, uint8, and the class. Frames have the shape
    (T, 2, height, width) with OFF and ON events, or (T, channels) for "shd" and "ssc". A frame is 1
    where at least one event fell into its window; time begins at the recording's first event, and
    what comes after T windows is left out.

    Args:
        name: "n-mnist", "dvs-gesture", "shd" or "ssc".
        data_dir: The folder that holds `NMNIST`, `DVSGesture`, `SHD` or `SSC`, as tonic lays them
            out. The archives that tonic downloads need not be there.
        part: "train" or "test"; "ssc" has "valid", too.
        steps: T.
        window: Of a frame, in milliseconds.
        pool: How many pixels (or channels) become one, along each side.

    Raises:
        ImportError: tonic is not installed.
        ValueError: The name, the part, or a number is impossible.
        TypeError: `data_dir` is no path.
        FileNotFoundError: The folder lacks what belongs to the part.

    Examples:
        A batch of frames from a folder `data` that holds `SHD/shd_train.h5`::

            frames = EventFrames("shd", "data", steps=100, window=10.0)
            loader = torch.utils.data.DataLoader(frames, batch_size=128, shuffle=True)
            x, y = next(iter(loader))              # (128, 100, 700), (128,)
    """

    def __init__(
        self,
        name: str,
        data_dir: str | os.PathLike[str],
        part: str = "train",
        *,
        steps: int = 100,
        window: float = 10.0,
        pool: int = 1,
    ) -> None:
        if name not in _KINDS:
            raise ValueError(f"unknown events {name!r}: choose one of {', '.join(_KINDS)}")
        kind = _KINDS[name]
        if part not in kind.parts:
            raise ValueError(f"{name} has no part {part!r}: choose one of {', '.join(kind.parts)}")
        if steps < 1 or pool < 1 or not window > 0:
            raise ValueError(
                "steps and pool must be at least 1 and window positive, "
                f"got {steps}, {pool} and {window}"
            )
        check_folder(data_dir)
        needed = Path(data_dir) / kind.reader / kind.parts[part]
        if not needed.exists():
            raise FileNotFoundError(
                f"no {needed}: {name} is read from a folder that tonic has filled. Download it "
                f"with tonic.datasets.{kind.reader}({str(data_dir)!r}), or name another folder."
            )
        self.steps, self.window, self.pool = steps, window, pool
        self.events = _reader(kind.reader)(str(data_dir), **kind.given[part])
        width, height, polarities = self.events.sensor_size
        height, width = (-(-side // pool) for side in (height, width))
        self.shape = (steps, width) if kind.sounds else (steps, polarities, height, width)

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no recording {index} of {len(self)}")
        events, label = self.events[index % len(self)]
        frames = np.zeros(self.shape, dtype=np.uint8)
        if len(events):
            time = events["t"] - events["t"].min()
            step = (time // (1000 * self.window)).astype(np.int64)
            kept = step < self.steps
            places = [step[kept], events["x"][kept] // self.pool]
            if len(self.shape) == 4:
                polarity, y = events["p"][kept].astype(np.int64), events["y"][kept] // self.pool
                places = [places[0], polarity, y, places[1]]
            frames[tuple(places)] = 1
        return torch.from_numpy(frames), int(label)


def _reader(name: str) -> Any:
    """tonic's class, but one that is content without the archives, and downloads nothing."""
    try:
        import tonic.datasets
    except ImportError as error:
        raise ImportError('event files need tonic: pip install "nit-snn[events]"') from error
    # The folder that tonic reads is named like the class.
    return type(name, (getattr(tonic.datasets, name),), {"_check_exists": lambda _: True})
