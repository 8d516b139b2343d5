"""From layer to layer through the density of the noise, within a time step.

Each layer filters its own cotangents back over its own membranes; nothing else is carried back
through time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace
from .derivatives import spike_derivatives
from .kinds import Known


@dataclass(frozen=True)
class LayersCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`."""

    name: str = "layers"
    reach: str | None = "layers"
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
