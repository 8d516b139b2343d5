"""What is subtracted from the loss: baselines that do not depend on a replica's own noise.

A baseline `b` leaves `E[(L - b) * score]` as it is only if it is independent of the score it is
multiplied with. So each one here leaves out the replica itself and all that share its noise: the
partner of an antithetic pair, or the rest of a Sobol point set.
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
        point_sets: The replicas are so many blocks of C / point_sets, each with dependent noise.
    """

    antithetic: bool = False
    point_sets: int | None = None

    def own(self, values: Tensor) -> Tensor:
        """For each replica the sum over itself and all that share its noise, (C, B, *)."""
        return self.spread(self.groups(values), len(values))

    def groups(self, values: Tensor) -> Tensor:
        """The sums over the replicas that share their noise, (groups, B, *)."""
        if self.antithetic:
            half = len(values) // 2
            return values[:half] + values[half:]
        if self.point_sets is None:
            return values
        return values.unflatten(0, (self.point_sets, -1)).sum(1)

    def spread(self, sums: Tensor, replicas: int) -> Tensor:
        """What each group has, for each of its replicas, (C, B, *)."""
        if self.antithetic:
            return torch.cat([sums, sums])
        if self.point_sets is None:
            return sums
        return sums.repeat_interleave(replicas // self.point_sets, 0)

    def size(self, replicas: int) -> int:
        """How many share one noise."""
        if self.antithetic:
            return 2
        return 1 if self.point_sets is None else replicas // self.point_sets


INDEPENDENT = Sharing()


def minimal_replicas(baseline: str, antithetic: bool) -> int:
    """The fewest replicas per sample with which a baseline has anything to average over."""
    if baseline == "leave-one-out":
        return 4 if antithetic else 2
    return 2 if antithetic else 1


def advantages(
    losses: Tensor, baseline: str, sharing: Sharing = INDEPENDENT, ranks: Ranks = ALONE
) -> Tensor:
    """Losses minus their baselines.

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
    replicas = losses.shape[0] * ranks.sharers
    totals = losses.sum(0)
    if ranks.sharers > 1:
        totals = ranks.sum(totals)
    size = sharing.size(losses.shape[0])
    if baseline == "leave-one-out":
        others = replicas - size
    else:
        others, totals = replicas * losses.shape[1] - size, totals.sum()
    if others < 1:
        raise ValueError(_too_few(losses))
    return losses - (totals - sharing.own(losses)) / others


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
    others = values.shape[0] - sharing.size(values.shape[0])
    if others < 1:
        raise ValueError(_too_few(values))
    sums = sharing.groups(values)
    return sharing.spread((sum_over_first(sums) - sums).div_(others), len(values))


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
