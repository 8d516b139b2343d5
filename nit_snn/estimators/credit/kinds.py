"""What a credit is: what the loss gains per spike, from the loss's own derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace


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
        learns: Whether it looks at the network's outputs, and learns from pass to pass.
    """

    @property
    def name(self) -> str: ...

    @property
    def reach(self) -> str | None: ...

    @property
    def learns(self) -> bool: ...

    def look(self, trace: PassTrace, losses: Tensor) -> None:
        """Asks the losses for what it needs beside a walk back through the spikes.

        Args:
            trace: The pass.
            losses: With their graph.
        """
        ...

    def learn(self, trace: PassTrace) -> None:
        """Takes in a pass, after its estimate was made."""
        ...

    def reaches(self, layer: LayerTrace) -> bool:
        """Whether the losses are known to depend on a layer's spikes or membranes."""
        ...

    def sent(self, layer: LayerTrace, shape: torch.Size) -> Tensor:
        """What a spike is worth at every step of a layer that no walk reaches, (N, *)."""
        ...

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        """What was found of a layer that the losses depend on."""
        ...
