"""The full sets: 70,000 images each, read by torchvision."""

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nit_snn.datasets.idx import DIMENSIONS, check_file
from nit_snn.datasets.names import check_folder, check_name
from nit_snn.errors import DatasetError

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
        TypeError: `data_dir` is no path.
        ImportError: torchvision is not installed.
        FileNotFoundError: A file is missing and `download` is false.
        DatasetError: A file is damaged (see `nit_snn.datasets.idx`), images and labels are not as
            many, or a download failed.
    """
    check_name(name)
    check_folder(data_dir)
    reader = _reader(name)
    if download:
        _download(reader, Path(data_dir))
    _check_files(reader, Path(data_dir))
    parts = [reader(data_dir, train=train) for train in (True, False)]
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


def _download(reader: "type[MNIST]", data_dir: Path) -> None:
    """Download what is missing; torchvision checks each archive's MD5."""
    try:
        reader(data_dir, download=True)
    except (OSError, EOFError, RuntimeError, ValueError, zlib.error) as error:
        folder = _folder(reader, data_dir)
        if all((folder / file).is_file() for file in _names(reader)):
            return  # there is nothing to download: the check of the files says what is wrong
        raise DatasetError(
            f"{reader.__name__} could not be downloaded to {folder}: {error}. Remove what is there "
            "and try again, or put the files there yourself."
        ) from error


def _check_files(reader: "type[MNIST]", data_dir: Path) -> None:
    """Raise if a file is missing or damaged; torchvision would not say which, or not notice."""
    folder = _folder(reader, data_dir)
    missing = [file for file in _names(reader) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no {', '.join(missing)} in {folder}: download the files (--download, or "
            "download=True), name another folder, or give no folder and unset NIT_SNN_DATA to "
            "use the embedded subset"
        )
    counts = {file: check_file(folder / file) for file in _names(reader)}
    for part in ("train", "t10k"):
        images, labels = (counts[f"{part}-{kind}"] for kind in DIMENSIONS)
        if images != labels:
            raise DatasetError(
                f"{folder} has {images} images but {labels} labels in its {part} files. Delete "
                "them and download them again (--download, or download=True)."
            )


def _folder(reader: "type[MNIST]", data_dir: Path) -> Path:
    return data_dir / reader.__name__ / "raw"


def _names(reader: "type[MNIST]") -> list[str]:
    return [Path(archive).stem for archive, _ in reader.resources]
