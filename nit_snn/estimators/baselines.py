"""What is subtracted from the loss: baselines that do not depend on a replica's own noise.

A baseline `b` leaves `E[(L - b) * score]` as it is only if it is independent of the score it is
multiplied with. So each one here leaves out the replica itself and, if its noise is shared, the
partner of an antithetic pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.distributed import ALONE, Ranks

NAMES = ("leave-one-out", "batch-mean", "none")


@dataclass(frozen=True)
class Sharing:
    """Which replicas of a sample have noise that depends on one another's.

    Attributes:
        antithetic: Replica c + C/2 has minus the noise of replica c.
    """

    antithetic: bool = False

    def own(self, values: Tensor) -> Tensor:
        """For each replica the sum over itself and all that share its noise, (C, B, *)."""
        return self.spread(self.groups(values))

    def groups(self, values: Tensor) -> Tensor:
        """The sums over the replicas that share their noise, (groups, B, *)."""
        if not self.antithetic:
            return values
        half = len(values) // 2
        return values[:half] + values[half:]

    def spread(self, sums: Tensor) -> Tensor:
        """What each group has, for each of its replicas, (C, B, *)."""
        return torch.cat([sums, sums]) if self.antithetic else sums

    @property
    def size(self) -> int:
        """How many share one noise."""
        return 2 if self.antithetic else 1


INDEPENDENT = Sharing()


def minimal_replicas(baseline: str, antithetic: bool) -> int:
    """The fewest replicas per sample with which a baseline has anything to average over."""
    if baseline == "leave-one-out":
        return 4 if antithetic else 2
    return 2 if antithetic else 1


def advantages(
    losses: Tensor, baseline: str, sharing: Sharing = INDEPENDENT, ranks: Ranks = ALONE
) -> Tensor:
    """Losses minus their baselines; exactly zero where all of them are equal.

    Args:
        losses: (C, B), the loss of each replica of each sample.
        baseline: "leave-one-out": the mean over the other replicas of the same sample.
            "batch-mean": the mean over all other rows of the batch. "none": zero.
        sharing: Whose noise depends on whose.
        ranks: Who has other replicas of the same samples. Every process has to call this then,
            and one number per sample is sent.

    Returns:
        (C, B).

    Raises:
        ValueError: Nothing is left to average over, or there is no such baseline.

    Example:
        >>> import torch
        >>> advantages(torch.tensor([[1.0], [2.0], [6.0]]), "leave-one-out").flatten()
        tensor([-3.0000, -1.5000,  4.5000])
    """
    if baseline == "none":
        return losses
    if baseline not in NAMES:
        raise ValueError(f"baseline must be one of {NAMES}, got {baseline!r}.")
    alone, kind = ranks.sharers == 1, losses.dtype
    if not alone:
        losses = losses.double()  # sums of equal float32 numbers are exact
    elif losses.numel():  # a difference of equal numbers is exact, a mean of them is not
        losses = losses - (losses[:1] if baseline == "leave-one-out" else losses[:1, :1])
    replicas = losses.shape[0] * ranks.sharers
    if alone:
        totals = losses.sum(0)
    else:  # a mean, in the losses' own type: of 2, 4, 8 processes' equal numbers the sum is exact
        totals = ranks.sum(losses.mean(0).to(kind)).to(losses) * losses.shape[0]
    if baseline == "leave-one-out":
        others = replicas - sharing.size
    else:
        others, totals = replicas * losses.shape[1] - sharing.size, totals.sum()
    if others < 1:
        raise ValueError(_too_few(losses))
    return (losses - (totals - sharing.own(losses)) / others).to(kind)


def mean_of_others(values: Tensor, sharing: Sharing = INDEPENDENT) -> Tensor:
    """For each replica the mean over the other replicas of the same sample.

    Args:
        values: (C, B, *).
        sharing: Whose noise depends on whose: they are left out, too.

    Returns:
        (C, B, *).

    Raises:
        ValueError: There are no others.
    """
    others = values.shape[0] - sharing.size
    if others < 1:
        raise ValueError(_too_few(values))
    sums = sharing.groups(values)
    return sharing.spread((sum_over_first(sums) - sums).div_(others))


def sum_over_first(values: Tensor) -> Tensor:
    """The sum over the replicas, (1, B, *): added up, which is faster where B is not the last."""
    total = values[:1]
    for other in values[1:].split(1):
        total = total + other
    return total


def _too_few(values: Tensor) -> str:
    return (
        "There is nothing else to average over among "
        f"{tuple(values.shape[:2])} (replicas, samples); use more replicas."
    )
