"""What a credit is: what the loss gains per spike, from the loss's own derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...recording.trace import PassTrace, Timeline


@dataclass(frozen=True, eq=False)
class Known:
    """What the loss is known to owe to a layer's spikes and membranes; each (T, N, *).

    Attributes:
        spikes: Its derivative in the spikes, with what they mean to later steps if time is
            followed.
        membranes: Its derivative in the membranes that steps leave behind, given their spikes.
        wandering: `u - E[u | s]`, how these varied.
    """

    spikes: Tensor
    membranes: Tensor | None = None
    wandering: Tensor | None = None


class Credit(Protocol):
    """A kind of credit.

    Attributes:
        name: As the option `credit` has it.
        reach: How far a backward pass through the spikes goes; None for no such pass.
    """

    @property
    def name(self) -> str: ...

    @property
    def reach(self) -> str | None: ...

    def collect(self, trace: PassTrace, losses: Tensor, conditioned: bool) -> None:
        """Asks the loss for its derivatives.

        Args:
            trace: The pass.
            losses: With their graph.
            conditioned: Whether membranes are followed given their spikes.
        """
        ...

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        """What was found of a layer that the losses depend on."""
        ...
