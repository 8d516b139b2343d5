"""What each row's noise is charged with: advantages over the number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.distributed import Ranks
from .baselines import Sharing, advantages


@dataclass(frozen=True)
class Credit:
    """From losses to what multiplies the scores.

    Attributes:
        baseline: One of `nit_snn.estimators.baselines.NAMES`.
        sharing: Which replicas have noise that depends on one another's.
        ranks: Who has other rows of the batch.
        layers: Among how many layers the replicas' noise is shared out; 1 if all have it.
        causal: Whether the losses come per time step, (T, C * B).
    """

    baseline: str
    sharing: Sharing
    ranks: Ranks
    layers: int
    causal: bool

    def weights(self, losses: Tensor, replicas: int) -> Tensor:
        """In the losses' shape: advantages over the number of rows of all processes.

        Args:
            losses: (C * B,), or (T, C * B) if causal.
            replicas: C.
        """
        if not losses.numel():
            return losses
        rows = losses.shape[-1] * self.ranks.size
        if not self.causal:
            return self._advantages(losses, replicas) / rows
        each = torch.stack([self._advantages(step, replicas) for step in losses])
        # The noise of step t is charged with the losses from t on.
        return each.flip(0).cumsum(0).flip(0) / rows

    def _advantages(self, losses: Tensor, replicas: int) -> Tensor:
        # Layer-wise, only replicas with noise in the same layer are alike.
        alike = losses.view(replicas // self.layers, -1)
        return advantages(alike, self.baseline, self.sharing, self.ranks).flatten()
