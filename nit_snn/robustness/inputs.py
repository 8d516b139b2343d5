"""What attacks, judgements and certificates refuse before they start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..validation.to_python_scalar import is_number, is_whole

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_numbers(images: Any) -> None:
    """Images are a tensor of real numbers, all finite.

    Raises:
        TypeError: They are no tensor.
        ValueError: They are integers or complex, or some are NaN or infinite.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"Images must be a tensor (N, *), got {type(images).__name__}.")
    if not images.is_floating_point():
        raise ValueError(
            f"Images must be of floating point, got {images.dtype}. Divide bytes by 255."
        )
    bad = images.numel() - int(torch.isfinite(images).sum())
    if bad:
        raise ValueError(
            f"{bad} pixels of images of shape {tuple(images.shape)} are NaN or infinite. A network "
            "that is given them fires at random or not at all, which looks like robustness."
        )


def check_pixels(images: Any) -> None:
    """Finite numbers between 0 and 1; see `check_numbers`.

    Raises:
        TypeError: They are no tensor.
        ValueError: They are no such numbers.
    """
    check_numbers(images)
    if images.numel() and (images.min() < 0 or images.max() > 1):
        raise ValueError(
            f"Images must lie between 0 and 1, got values from {images.min():g} to "
            f"{images.max():g}. Normalise in the network, or in Defender(encode=...)."
        )


def checked_labels(images: Tensor, labels: Any, classes: int | None = None) -> Tensor:
    """The labels, (N,), as torch's losses take them: of 64 bits.

    Args:
        images: (N, \\*).
        labels: (N,), integers of any width.
        classes: How many there are, if that is known.

    Raises:
        TypeError: They are no tensor.
        ValueError: They are no integers, not one for each image, elsewhere, or out of range.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"Labels must be a tensor (N,), got {type(labels).__name__}.")
    if labels.shape != images.shape[:1] or labels.dtype not in _WHOLE:
        raise ValueError(
            f"Labels must be integers, one for each of {len(images)} images, got shape "
            f"{tuple(labels.shape)} and dtype {labels.dtype}."
        )
    if labels.device != images.device:
        raise ValueError(f"Labels are on {labels.device}, the images on {images.device}.")
    if len(labels) and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        known = "from 0 on" if classes is None else f"from 0 to {classes - 1}"
        raise ValueError(
            f"Labels must be classes {known}, got {int(labels.min())} to {int(labels.max())}."
        )
    return labels.long()


def check_radius(eps: Any, finite: bool = False, name: str = "eps") -> None:
    """A radius, or a step, is a number and not negative.

    Raises:
        ValueError: It is not, or infinite where it must not be.
    """
    if not is_number(eps) or not eps >= 0 or (finite and math.isinf(eps)):
        raise ValueError(f"{name} must be a number that is not negative, got {eps!r}.")


def check_positive(**numbers: Any) -> None:
    """Each is a finite number above zero.

    Raises:
        ValueError: One is not; it is named.
    """
    for name, value in numbers.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}.")


def check_counts(smallest: int = 1, **counts: Any) -> None:
    """Each is an integer, and no smaller than that.

    Raises:
        ValueError: One is not; it is named.
    """
    for name, count in counts.items():
        if not is_whole(count) or count < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, got {count!r}.")
