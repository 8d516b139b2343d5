"""Whether two networks withstand differently much, measured on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compat import require


@dataclass(frozen=True)
class Paired:
    """How two networks differ on the same images.

    Attributes:
        first_alone: Images that only the first classifies correctly.
        second_alone: Images that only the second classifies correctly.
        p: Of McNemar's exact test, two-sided: how likely a split at least so uneven of the images
            on which they differ is, if neither network were better.
    """

    first_alone: int
    second_alone: int
    p: float


def mcnemar(first: Tensor, second: Tensor) -> Paired:
    """McNemar's exact test of two networks that were judged on the same images.

    Images that both or neither classify correctly say nothing of which is better. If the networks
    are equally good, each of the others is as likely to be either's, so their split is binomial.
    This detects much smaller differences than two standard errors would, as most images are
    equally hard for both. It is about these two networks. How other trainings of them would differ
    takes several of each.

    Args:
        first: Whether it classifies each image correctly, (N,), as `Verdict.robust`.
        second: The same of the other network.

    Raises:
        ValueError: They are not of the same images, or not of True and False.
        ImportError: scipy is not installed; the message names the extra.

    Example:
        >>> import torch
        >>> mcnemar(torch.tensor([True, True, False]), torch.tensor([False, False, False]))
        Paired(first_alone=2, second_alone=0, p=0.5)
    """
    if first.shape != second.shape or first.dim() != 1:
        raise ValueError(
            "Two networks are compared on the same images, (N,) each, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    if first.dtype != torch.bool or second.dtype != torch.bool:
        raise ValueError(
            "What is compared is whether each image is classified correctly, True or False, got "
            f"{first.dtype} and {second.dtype}. Compare classes with their labels first."
        )
    binomtest = require("scipy.stats", extra="robustness").binomtest
    ours, theirs = int((first & ~second).sum()), int((second & ~first).sum())
    differ = ours + theirs
    return Paired(ours, theirs, float(binomtest(ours, differ).pvalue) if differ else 1.0)
