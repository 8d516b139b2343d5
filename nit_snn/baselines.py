"""What is subtracted from the loss: baselines that do not depend on a replica's own noise.

A baseline `b` leaves `E[(L - b) * score]` as it is only if it is independent of the score it is
multiplied with. So each one here leaves out the replica itself and, where noise comes in
antithetic pairs, its partner too.
"""

from __future__ import annotations

from torch import Tensor

NAMES = ("leave-one-out", "batch-mean", "none")


def minimal_replicas(baseline: str, antithetic: bool) -> int:
    """The fewest replicas per sample with which a baseline has anything to average over."""
    if baseline == "leave-one-out":
        return 4 if antithetic else 2
    return 2 if antithetic else 1


def advantages(losses: Tensor, baseline: str, antithetic: bool = False) -> Tensor:
    """Losses minus their baselines.

    Args:
        losses: (C, B), the loss of each replica of each sample.
        baseline: "leave-one-out": the mean over the other replicas of the same sample.
            "batch-mean": the mean over all other rows of the batch. "none": zero.
        antithetic: Replica c + C/2 has minus the noise of replica c.

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
    if baseline == "leave-one-out":
        return losses - mean_of_others(losses, antithetic)
    others = losses.numel() - (2 if antithetic else 1)
    if others < 1:
        raise ValueError(_too_few(losses))
    return losses - (losses.sum() - _own(losses, antithetic)) / others


def mean_of_others(values: Tensor, antithetic: bool = False) -> Tensor:
    """For each replica the mean over the other replicas of the same sample.

    Args:
        values: (C, B, *).
        antithetic: Replica c + C/2 has minus the noise of replica c, and is left out too.

    Returns:
        (C, B, *).

    Raises:
        ValueError: There are no others.
    """
    others = values.shape[0] - (2 if antithetic else 1)
    if others < 1:
        raise ValueError(_too_few(values))
    return (values.sum(0, keepdim=True) - _own(values, antithetic)) / others


def _own(values: Tensor, antithetic: bool) -> Tensor:
    """What depends on a replica's own noise, itself and its partner's value."""
    return values + values.roll(values.shape[0] // 2, 0) if antithetic else values


def _too_few(values: Tensor) -> str:
    return (
        "There is nothing else to average over among "
        f"{tuple(values.shape[:2])} (replicas, samples); use more replicas."
    )
