"""Through layers, membranes and resets: backpropagation through time of the smoothed network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...dynamics.lif import number
from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace
from .derivatives import conditioned_jump, later_drifts, spike_derivatives
from .kinds import Known


@dataclass(frozen=True)
class TimeCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`."""

    name: str = "time"
    reach: str | None = "time"
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
        """`c_t = g_t + f_{t+1} jump`; given the spikes also `w_t = carry f_{t+1}`."""
        gradient, rule = spike_derivatives(timeline), timeline.rule
        if not rule.carries:
            return Known(gradient)
        later = later_drifts(timeline)
        if not conditioned:
            fall = 0.0 if rule.jump is None else rule.jump(number(rule.threshold))
            return Known(gradient + later * fall)
        gradient.addcmul_(later, conditioned_jump(timeline))
        sigma = number(timeline.layer.neuron.sigma.detach().to(later.dtype))
        wandering = timeline.firing.wandering * sigma
        return Known(gradient, later * number(rule.carry), wandering)
