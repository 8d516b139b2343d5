"""From the loss's derivative in the spikes that it reads itself: autograd behind the last layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace
from .derivatives import spike_derivatives
from .kinds import Known


@dataclass(frozen=True)
class ReadoutCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`."""

    name: str = "readout"
    reach: str | None = "last"
    learns: bool = False

    def look(self, trace: PassTrace, losses: Tensor) -> None:
        """Nothing more is asked of the losses."""

    def learn(self, trace: PassTrace) -> None:
        """Nothing is learned."""

    def reaches(self, layer: LayerTrace) -> bool:
        return layer.reached

    def sent(self, layer: LayerTrace, shape: torch.Size) -> Tensor:
        raise AssertionError("nothing is sent")

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        return Known(spike_derivatives(timeline))
