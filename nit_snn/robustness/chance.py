"""What a worst case over many judgements loses to luck alone, with no attack at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compat import cuda_devices
from .defender import Defender
from .inputs import check_counts
from .verdict import percent


def worst_by_chance(defender: Defender, images: Tensor, labels: Tensor, judgements: int) -> float:
    """Percent of images, as they are, that are classified correctly every time of so many.

    Each judgement draws fresh noise, so a network that decides by few draws loses images in the
    worst case over many attacks even if no attack does anything. A worst case says something of
    its attacks only by how far it lies below this number, and attacked images, nearer to the
    border, are lost by luck more often than these. torch's random numbers go on as if nothing had
    been drawn.

    Args:
        defender: Who decides, and by how many draws.
        images: (N, \\*), in [0, 1].
        labels: (N,).
        judgements: How often, at least once.

    Raises:
        ValueError: judgements is below 1, or there is not one label for each image.
    """
    check_counts(judgements=judgements)
    with torch.random.fork_rng(cuda_devices()):
        always = defender.right(images, labels)
        for _ in range(judgements - 1):
            always &= defender.right(images, labels)
    return percent(always)
