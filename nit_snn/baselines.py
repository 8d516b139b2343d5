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
    own = losses + losses.roll(losses.shape[0] // 2, 0) if antithetic else losses
    left_out = 2 if antithetic else 1
    if baseline == "leave-one-out":
        others, total = losses.shape[0] - left_out, losses.sum(0, keepdim=True)
    else:
        others, total = losses.numel() - left_out, losses.sum()
    if others < 1:
        raise ValueError(
            f"baseline {baseline!r} has no other losses to average over among "
            f"{tuple(losses.shape)} (replicas, samples); use more replicas."
        )
    return losses - (total - own) / others
