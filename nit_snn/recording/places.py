"""The membranes that a layer's segments have left, for a later step may start from any of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from weakref import ref

from torch import Tensor

from .packed_spikes import BinarySpikes
from .provenance import Seen, find
from .segment import Segment
from .thresholds import Lift

#: So many are kept, whoever else lets go of them: a partial reset looks at the one before.
_KEPT = 8


@dataclass(eq=False, slots=True)
class Left:
    """A membrane that a segment left behind, and where that fired, if it is known.

    Attributes:
        state: The membrane.
        segment: What left it.
        fired: Where it fired, zeros and ones.
        kept: 1 where it is as the segment left it, 0 where it was reset since; None for all of it.
        lift: Its derivative in a threshold that is learned; None if none is.
        token: What its node in a graph is known by then.
    """

    state: Seen
    segment: Segment
    fired: Tensor | None
    kept: Tensor | None = None
    lift: Lift | None = None
    token: object = None

    @property
    def spikes(self) -> Tensor | None:
        """Zeros and ones, without a graph; None if not known, or written to since."""
        known = self.fired is not None and find(self.fired, BinarySpikes) is not None
        return self.fired.detach() if known else None  # type: ignore[union-attr]


class Places:
    """The newest of one layer, and all older ones that somebody else still holds.

    A neuron that is shared has one for each place; a sequence may branch off anywhere.

    Attributes:
        newest: What is known of each, and the very tensor that was handed out; added to at the end.
    """

    def __init__(self) -> None:
        self.newest: deque[tuple[Left, ref[Tensor]]] = deque()
        self._older: list[Left] = []
        self._most = _KEPT

    def found(self, state: Tensor | None) -> Left | None:
        """What left a membrane, if it is one of them."""
        while len(self.newest) > _KEPT:
            oldest, handed = self.newest.popleft()
            held = handed()
            if held is not None:
                weak = oldest.state.weakened(held)
                self._older.append(replace(oldest, state=weak, fired=None))
        if len(self._older) > self._most:
            self._older = [each for each in self._older if each.state.alive]
            self._most = 2 * len(self._older) + _KEPT
        if state is None:
            return None
        for left, _ in reversed(self.newest):
            if left.state.matches(state):
                return left
        for left in reversed(self._older):
            if left.state.matches(state):
                return left
        return None

    def __iter__(self) -> Iterator[Left]:
        """The newest first."""
        for left, _ in reversed(self.newest):
            yield left
        yield from reversed(self._older)

    def clear(self) -> None:
        """Lets go of all."""
        self.newest.clear()
        self._older.clear()
