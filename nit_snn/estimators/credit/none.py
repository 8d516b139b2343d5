"""No credit: the paper's NIT, a likelihood ratio of the loss and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

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

    def collect(self, trace: PassTrace, losses: Tensor, form: str) -> None:
        """Nothing is asked of the loss."""

    def learn(self, trace: PassTrace) -> None:
        """Nothing is learned."""

    def reaches(self, layer: LayerTrace) -> bool:
        return False

    def gradients(self, timeline: Timeline) -> tuple[Tensor, Tensor | None]:
        raise AssertionError("no layer is ever reached")

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        raise AssertionError("no layer is ever reached")
