"""No credit: the paper's NIT, a likelihood ratio of the loss and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace
from .kinds import Known


@dataclass(frozen=True)
class NoCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`; any loss, any neuron."""

    name: str = "none"
    reach: str | None = None
    learns: bool = False

    def look(self, trace: PassTrace, losses: Tensor) -> None:
        """Nothing more is asked of the losses."""

    def learn(self, trace: PassTrace) -> None:
        """Nothing is learned."""

    def reaches(self, layer: LayerTrace) -> bool:
        return False

    def sent(self, layer: LayerTrace, shape: torch.Size) -> Tensor:
        raise AssertionError("nothing is sent")

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        raise AssertionError("no layer is ever reached")
