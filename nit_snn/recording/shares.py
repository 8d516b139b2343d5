"""Rows of a batch in parts: each part has some of the replicas of every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shares:
    """How the replicas of a pass are shared out over its parts.

    Part p has a block of neighbouring replicas, with antithetic pairs a block of the first half
    and their partners, as a process of `nit_snn.training.distributed` has.

    Attributes:
        replicas: C, of all parts.
        parts: How many.
        antithetic: Whether replica c + C/2 is the partner of replica c.

    Example:
        >>> Shares(4, 2, antithetic=True).of(torch.tensor([0, 1, 2, 3]), 0)
        tensor([0, 2])
    """

    replicas: int
    parts: int
    antithetic: bool

    def of(self, rows: Tensor, part: int) -> Tensor:
        """(..., C * B) of all to (..., C * B / parts) of one part."""
        return self._blocks(rows, self.parts)[..., part, :, :].flatten(-3)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The reverse: what all parts have, (..., C * B / parts) each, in the order of the rows."""
        return torch.cat([self._blocks(part, 1) for part in parts], -3).flatten(-4)

    def _blocks(self, rows: Tensor, parts: int) -> Tensor:
        """(..., halves, parts, replicas of a part in that half, B)."""
        halves = 2 if self.antithetic else 1
        own = self.replicas // self.parts // halves
        samples = rows.shape[-1] // (halves * parts * own)
        return rows.unflatten(-1, (halves, parts, own, samples))
