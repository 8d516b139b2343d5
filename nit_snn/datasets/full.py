"""The full sets: 70,000 images each, read by torchvision."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nit_snn.datasets.names import check_name

if TYPE_CHECKING:
    from torchvision.datasets import MNIST


def load_full(
    name: str, data_dir: str | os.PathLike[str], download: bool = False
) -> tuple[Tensor, Tensor]:
    """Load a full set, the training images followed by the test images.

    Args:
        name: One of `nit_snn.datasets.NAMES`.
        data_dir: The folder that holds `MNIST/raw` or `FashionMNIST/raw`, as torchvision lays it
            out.
        download: Whether to download the files that are missing.

    Returns:
        The images, grey values 0 to 255, shape (70000, 28, 28), uint8; and the labels, 0 to 9,
        shape (70000,), int64.

    Raises:
        ValueError: The name is unknown.
        ImportError: torchvision is not installed.
        FileNotFoundError: A file is missing and `download` is false.
    """
    check_name(name)
    reader = _reader(name)
    if not download:
        _check_files(reader, Path(data_dir))
    parts = [reader(data_dir, train=train, download=download) for train in (True, False)]
    images = torch.cat([part.data for part in parts])
    labels = torch.cat([part.targets for part in parts])
    return images, labels.to(torch.int64)


def _reader(name: str) -> "type[MNIST]":
    """Find torchvision's class for a dataset; imported late, because torchvision is optional."""
    try:
        from torchvision.datasets import MNIST, FashionMNIST
    except ImportError as error:
        raise ImportError(
            'the full datasets need torchvision: pip install "nit-snn[train]"'
        ) from error
    readers: dict[str, type[MNIST]] = {"mnist": MNIST, "fashion-mnist": FashionMNIST}
    return readers[name]


def _check_files(reader: "type[MNIST]", data_dir: Path) -> None:
    """Raise FileNotFoundError if a file is missing; torchvision would not name the folder."""
    folder = data_dir / reader.__name__ / "raw"
    wanted = [Path(archive).stem for archive, _ in reader.resources]
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no {', '.join(missing)} in {folder}: download the files (--download, or "
            "download=True), name another folder, or give no folder and unset NIT_SNN_DATA to "
            "use the embedded subset"
        )
