"""One call of a neuron as it was recorded, and where its drift came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics.executor import Executor, Steps
from ..errors import RecordingError
from .block import Block
from .provenance import Seen, unchanged
from .spike_node import NodeState
from .synapse_call import SynapseCall


@dataclass(eq=False, slots=True)
class Input:
    """A current of a segment, and where it came from.

    Attributes:
        source: The call of a registered synapse that made it; None for the general route.
        graph: The current with its local graph, where that leads to the spikes before; without a
            source, its gradient goes there, too.
        gain: Its factor in the drift.
        static: Whether one and the same current enters all steps of a segment of several.
        step: Which step of the call's output it is, if it is but one.
    """

    source: SynapseCall | None
    graph: Tensor | None
    gain: float | Tensor
    static: bool = False
    step: int | None = None


@dataclass(eq=False, slots=True)
class Segment(Steps):
    """One call of a neuron: a step, or several at once, and where its drift came from.

    It may be the sum of several calls whose scores are multiplied with the same activity.

    Attributes:
        inputs: Where its currents came from.
        drift: The drift with its local graph, where parameters enter it on other ways.
        membrane: u before it fires; None where nobody asks for it.
        origin: The segment that left the membrane which this one starts from; None if none did.
        kept: 1 where that membrane was not reset since, else 0, broadcasting to (N, *); None for 1.
        node: What stands for its spikes in the graph of whatever reads them.
        block: Holds the surrogate derivatives of its spikes, once they were made.
        first: Its first step's place there.
    """

    inputs: tuple[Input, ...] = ()
    drift: Tensor | None = None
    membrane: Seen | None = None
    origin: Segment | None = None
    kept: Tensor | None = None
    node: NodeState | None = None
    block: Block | None = None
    first: int = 0

    @property
    def steps(self) -> int:
        return len(self.calls)

    @property
    def teaches(self) -> bool:
        """Whether any parameter's gradient can be made of it."""
        found = self.drift is not None
        for each in self.inputs:
            found = found or each.source is not None or each.graph is not None
        return found

    def absorbs(self, other: Segment) -> bool:
        """Whether the noise of both may be summed before it meets the presynaptic activity."""
        alike = (
            bool(self.inputs)
            and self.drift is None
            and other.drift is None
            and not (self.several or other.several)
            and (self.shape, self.dtype) == (other.shape, other.dtype)
            and len(self.inputs) == len(other.inputs)
        )
        for one, two in zip(self.inputs, other.inputs, strict=False):
            known = one.source is not None and one.source is two.source and one.step == two.step
            numbers = isinstance(one.gain, float) and isinstance(two.gain, float)
            same = one.gain is two.gain or bool(numbers and one.gain == two.gain)
            alike = alike and known and same
        return alike


def drawn_again(segment: Segment, executor: Executor) -> Tensor:
    """eps of a segment that was not kept, in its own shape."""
    drawn = list(executor.samples(segment))
    return torch.stack(drawn) if segment.several else drawn[0]


def membranes_of(segments: Sequence[Segment], layer: str) -> list[Tensor]:
    """The membranes of some segments.

    Args:
        segments: The segments.
        layer: The name of their layer.

    Raises:
        RecordingError: One was written to since.
    """
    found = unchanged([segment.membrane for segment in segments])
    if found is None:
        raise RecordingError(
            f"The membrane of {layer} was written to in place after a step, and what the step "
            "did cannot be told from it any more. Write to a clone of it."
        )
    return found
