"""One way to load a dataset: the embedded subset, or the full set where a folder is given."""

import os

import torch
from torch import Tensor

from nit_snn.datasets.full import load_full
from nit_snn.datasets.names import check_folder, check_name
from nit_snn.datasets.subset import load_subset

VARIABLE = "NIT_SNN_DATA"
"""The environment variable that names the folder of the full sets."""

DOWNLOAD_DIR = "data"
"""The folder to download to, below the working directory, when none is given."""


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> tuple[Tensor, Tensor]:
    """Load the images and labels of a dataset.

    The embedded subset (N = 10,000) is loaded unless a folder is given, by `data_dir` or else by
    the environment variable `NIT_SNN_DATA`; then it is the full set (N = 70,000, the training
    images followed by the test images).

    Args:
        name: One of `NAMES`.
        data_dir: The folder that holds `MNIST/raw` or `FashionMNIST/raw`, as torchvision lays it
            out. None or empty stands for the value of `NIT_SNN_DATA`, which may be empty too.
        download: Whether to download the full set where it is missing; without a folder, to
            `./data`.

    Returns:
        The images, grey values 0 to 255, shape (N, 28, 28), uint8; and the labels, 0 to 9, shape
        (N,), int64.

    Raises:
        ValueError: The name is unknown.
        TypeError: `data_dir` is no path.
        ImportError: The full set was asked for and torchvision is not installed.
        FileNotFoundError: A file of the full set is missing and `download` is false.
        DatasetError: A file is damaged, or a download failed.

    Examples:
        >>> images, labels = load("mnist")
        >>> images.shape[1:], images.dtype, labels.dtype
        (torch.Size([28, 28]), torch.uint8, torch.int64)
    """
    check_name(name)
    check_folder(data_dir)
    folder = data_dir or os.environ.get(VARIABLE) or (DOWNLOAD_DIR if download else None)
    if folder is not None:
        return load_full(name, folder, download)
    images, labels = load_subset(name)
    return torch.from_numpy(images), torch.from_numpy(labels).to(torch.int64)
