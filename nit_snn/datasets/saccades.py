"""A simulated event sensor that looks at images while its eye moves.

A pixel of such a sensor sends an ON event when the logarithm of its intensity has risen by a
threshold since its last event, and an OFF event when it has fallen by as much (Lichtsteiner, Posch
& Delbruck, 2008). The eye makes three saccades along a triangle, as the one that recorded N-MNIST
(Orchard et al., 2015).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DARK = 0.05
"""Added to intensities in [0, 1] before the logarithm, as a pixel's dark current."""
CORNERS = ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0), (0.0, 0.0))
"""Where the eye rests, (x, y) in units of `reach`."""


def saccades(images: Tensor, steps: int = 18, reach: float = 4.0, threshold: float = 0.5) -> Tensor:
    """Events of a simulated sensor that moves along a triangle over still images.

    Args:
        images: Grey values 0 to 255, shape (N, height, width), uint8.
        steps: T, time steps of all three saccades together, divisible by 3.
        reach: How far the eye moves, in pixels.
        threshold: Change of the logarithm of the intensity that an event stands for. A pixel that
            crosses several in one time step sends one event.

    Returns:
        (N, T, 2, height, width) of zeros and ones, uint8. OFF events come first, then ON.

    Raises:
        TypeError: The images are not uint8.
        ValueError: The shape, the number of steps, the reach or the threshold is impossible.

    Examples:
        >>> images = torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> images[0, 4, 4] = 255
        >>> events = saccades(images, steps=6)
        >>> events.shape, events.dtype
        (torch.Size([1, 6, 2, 8, 8]), torch.uint8)
        >>> int(saccades(images, steps=6, reach=0.0).sum())  # nothing moves
        0
    """
    _check(images, steps, reach, threshold)
    margin = math.ceil(reach) + 1
    padded = F.pad(images.to(torch.float32) / 255, (margin,) * 4)
    size = images.shape[1:]
    reference = _level(padded, margin, 0.0, 0.0, size)
    events = images.new_empty(len(images), steps, 2, *size)
    for step in range(steps):
        x, y = _place((step + 1) * 3 / steps)
        level = _level(padded, margin, reach * x, reach * y, size)
        crossed = ((level - reference) / threshold).trunc()
        reference += threshold * crossed
        events[:, step, 0], events[:, step, 1] = crossed < 0, crossed > 0
    return events


def _place(saccade: float) -> tuple[float, float]:
    """Where the eye is; 1.5 is in the middle of the second saccade."""
    begun = min(int(saccade), len(CORNERS) - 2)
    share = saccade - begun
    (x, y), (to_x, to_y) = CORNERS[begun], CORNERS[begun + 1]
    return x + share * (to_x - x), y + share * (to_y - y)


def _level(padded: Tensor, margin: int, x: float, y: float, size: torch.Size) -> Tensor:
    """The logarithm of what the moved eye sees, (N, height, width), between pixels bilinear."""
    column, row = math.floor(x), math.floor(y)
    right, down = x - column, y - row
    seen = torch.zeros(())
    for along, across, share in (
        (0, 0, (1 - right) * (1 - down)),
        (1, 0, right * (1 - down)),
        (0, 1, (1 - right) * down),
        (1, 1, right * down),
    ):
        top, left = margin + row + across, margin + column + along
        seen = seen + share * padded[:, top : top + size[0], left : left + size[1]]
    return (seen + DARK).log()


def _check(images: Tensor, steps: int, reach: float, threshold: float) -> None:
    """Refuses what would give no events, or wrong ones."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.dim() != 3:
        raise ValueError(f"images must have shape (N, height, width), got {tuple(images.shape)}")
    if steps < 3 or steps % 3:
        raise ValueError(f"steps must be divisible by 3, for three saccades; got {steps}")
    if not 0 <= reach < math.inf:
        raise ValueError(f"reach must be a number of pixels, 0 or more; got {reach}")
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be positive and finite, got {threshold}")
