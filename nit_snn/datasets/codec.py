"""The encoding of the embedded images: what makes them small before LZMA.

A mask says which pixels are not zero, and each of those is stored as its difference (modulo 256)
from the median prediction of JPEG-LS, in raster order. Against LZMA alone this saves 9 percent on
Fashion-MNIST and costs 6 percent on MNIST, whose file is less than half as large.
"""

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int16]


def encode(images: Bytes) -> tuple[Bytes, Bytes]:
    """Split images into a mask and the residuals of their non-zero pixels.

    Args:
        images: Grey values 0 to 255, shape (N, height, width), uint8.

    Returns:
        The mask, one bit per pixel, shape (N, height, ceil(width / 8)), uint8; and the residuals,
        one byte per non-zero pixel, shape (number of non-zero pixels,), uint8.

    Examples:
        >>> images = np.array([[[0, 7], [9, 9]]], dtype=np.uint8)
        >>> mask, residuals = encode(images)
        >>> residuals
        array([7, 9, 0], dtype=uint8)
        >>> bool((decode(mask, residuals, width=2) == images).all())
        True
    """
    padded = np.pad(images.astype(np.int16), ((0, 0), (1, 0), (1, 0)))
    left, above, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    residuals = (padded[:, 1:, 1:] - _predict(left, above, corner)).astype(np.uint8)
    ink = images > 0
    return np.packbits(ink, axis=2), residuals[ink]


def decode(mask: Bytes, residuals: Bytes, width: int) -> Bytes:
    """Undo `encode`.

    Args:
        mask: One bit per pixel, shape (N, height, ceil(width / 8)), uint8.
        residuals: One byte per non-zero pixel, shape (number of non-zero pixels,), uint8.
        width: The width of the images in pixels.

    Returns:
        Grey values 0 to 255, shape (N, height, width), uint8.

    Raises:
        ValueError: The mask and the residuals do not belong together.
    """
    ink = np.unpackbits(mask, axis=2, count=width).astype(bool)
    if np.count_nonzero(ink) != residuals.size:
        raise ValueError(
            f"the mask has {np.count_nonzero(ink)} non-zero pixels, "
            f"but there are {residuals.size} residuals"
        )
    count, height, _ = ink.shape
    # Pixel first, image last: every step below works on one pixel of all images at once.
    pixels = np.zeros((height + 1, width + 1, count), dtype=np.int16)
    spread = np.zeros(ink.shape, dtype=np.int16)
    spread[ink] = residuals
    pixels[1:, 1:] = spread.transpose(1, 2, 0)
    ink_first = np.ascontiguousarray(ink.transpose(1, 2, 0))
    for row, column in np.ndindex(height, width):
        guess = _predict(pixels[row + 1, column], pixels[row, column + 1], pixels[row, column])
        value = pixels[row + 1, column + 1]
        value += guess
        value &= 255
        value *= ink_first[row, column]
    return np.ascontiguousarray(pixels[1:, 1:].transpose(2, 0, 1), dtype=np.uint8)


def _predict(left: Ints, above: Ints, corner: Ints) -> Ints:
    """Predict pixels from their neighbours: the median of left, above and the plane through all."""
    low, high = np.minimum(left, above), np.maximum(left, above)
    guess: Ints = np.clip(left + above - corner, low, high)
    return guess
