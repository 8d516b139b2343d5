"""The random split into training, validation and test images."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

SMALLEST = 5
"""The fewest images for which none of the three parts is empty."""


class Splits(NamedTuple):
    """The three parts of a dataset.

    Each is a dataset of pairs: an image, values in [0, 1], shape (1, height, width), float32, and
    its label, a scalar, int64.

    Attributes:
        train: Seven tenths of the images, to learn from.
        validation: Two tenths, to choose hyperparameters and the best epoch by.
        test: The remaining tenth, to report on.
    """

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


def split(images: Tensor, labels: Tensor, seed: int = 0) -> Splits:
    """Split a dataset at random in the ratio 7:2:1.

    The split depends on the seed and the number of images alone, and leaves torch's global random
    state as it is. For training and validation, fractions of an image are rounded down; the test
    part takes what is left.

    Args:
        images: Grey values 0 to 255, shape (N, height, width), uint8.
        labels: The classes, shape (N,), any integer type.
        seed: The seed of the permutation.

    Returns:
        The three parts, which are disjoint and together hold every image.

    Raises:
        TypeError: The images are not uint8.
        ValueError: The shapes do not fit together, or there are fewer than 5 images, so that a
            part would be empty.

    Examples:
        >>> images = torch.zeros(10, 28, 28, dtype=torch.uint8)
        >>> [len(part) for part in split(images, torch.arange(10))]
        [7, 2, 1]
        >>> image, label = split(images, torch.arange(10)).train[0]
        >>> image.shape, image.dtype, label.dtype
        (torch.Size([1, 28, 28]), torch.float32, torch.int64)
    """
    _check(images, labels)
    count = len(images)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = count * 7 // 10
    second = first + count * 2 // 10
    parts = order[:first], order[first:second], order[second:]
    return Splits(*(_take(images, labels, part) for part in parts))


def _take(images: Tensor, labels: Tensor, indices: Tensor) -> TensorDataset:
    """Make a dataset of the chosen images, with a channel axis and values in [0, 1]."""
    chosen = images[indices].unsqueeze(1).to(torch.float32).div_(255)
    return TensorDataset(chosen, labels[indices].to(torch.int64))


def _check(images: Tensor, labels: Tensor) -> None:
    """Raise for images and labels that `split` cannot take."""
    # Floats may be scaled already, and would be scaled twice without a word.
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.dim() != 3 or labels.dim() != 1:
        raise ValueError(
            "images must have shape (N, height, width) and labels (N,), "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if len(images) != len(labels):
        raise ValueError(f"got {len(images)} images but {len(labels)} labels")
    if len(images) < SMALLEST:
        raise ValueError(f"a split needs at least {SMALLEST} images, got {len(images)}")
