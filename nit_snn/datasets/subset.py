"""The embedded subsets: 10,000 images of each dataset, 1,000 of each class."""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nit_snn.datasets.codec import decode
from nit_snn.datasets.embedded import read_embedded
from nit_snn.datasets.names import check_name

WIDTH = 28
"""The width of every image in pixels."""

SHA256 = {
    "mnist-10k.npz": "ecca0c9aa84cfe08858270e40400bd93cdc556adde2083529fb549cb960959f2",
    "fashion-mnist-10k.npz": "f4d6d6575c4e5401d5fa81dd3714b45a9a86e9fa515d9279ade4b4c68b28c29a",
}
"""Of the files that `scripts/make_datasets.py` writes."""


def file_name(name: str) -> str:
    """Name the file, beside this module, that holds a subset.

    Args:
        name: One of `nit_snn.datasets.NAMES`.

    Returns:
        The name of the file, without a folder.

    Examples:
        >>> file_name("mnist")
        'mnist-10k.npz'
    """
    return f"{name}-10k.npz"


def load_subset(name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Load an embedded subset; needs only numpy and no network.

    The images keep the order they have in the pooled set (train, then test), so the classes are
    mixed from the first image on.

    Args:
        name: One of `nit_snn.datasets.NAMES`.

    Returns:
        The images, grey values 0 to 255, shape (10000, 28, 28), uint8; and the labels, 0 to 9,
        shape (10000,), uint8.

    Raises:
        ValueError: The name is unknown.
        DatasetError: The file is damaged.

    Examples:
        >>> images, labels = load_subset("fashion-mnist")
        >>> images.shape, images.dtype
        ((10000, 28, 28), dtype('uint8'))
        >>> int((labels == 3).sum())
        1000
    """
    check_name(name)
    return read_subset(resources.files("nit_snn.datasets") / file_name(name))


def read_subset(path: Traversable | Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read the images and labels of a subset's file, which is known by its name.

    Raises:
        DatasetError: It is not the file that belongs to this name, byte for byte.
    """
    parts = read_embedded(path, SHA256)
    return decode(parts["mask"], parts["residuals"], WIDTH), parts["labels"]
