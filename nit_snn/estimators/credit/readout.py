"""From the loss's derivative in the spikes that it reads itself: autograd behind the last layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...recording.trace import PassTrace, Timeline
from .derivatives import collect, derivatives
from .kinds import Known


@dataclass(frozen=True)
class ReadoutCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`."""

    name: str = "readout"
    reach: str | None = "last"

    def collect(self, trace: PassTrace, losses: Tensor, conditioned: bool) -> None:
        collect(trace, losses, conditioned)

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        return Known(derivatives(timeline)[0])
