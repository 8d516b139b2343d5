"""From layer to layer through the density of the noise, within a time step.

Each layer filters its own cotangents back over its own membranes; nothing else is carried back
through time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace
from .derivatives import collect, derivatives, reached
from .kinds import Known


@dataclass(frozen=True)
class LayersCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`."""

    name: str = "layers"
    reach: str | None = "layers"
    learns: bool = False

    def collect(self, trace: PassTrace, losses: Tensor, form: str) -> None:
        collect(trace, losses, form)

    def learn(self, trace: PassTrace) -> None:
        """Nothing is learned."""

    def reaches(self, layer: LayerTrace) -> bool:
        return reached(layer)

    def gradients(self, timeline: Timeline) -> tuple[Tensor, Tensor | None]:
        return derivatives(timeline)

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        return Known(derivatives(timeline)[0])
