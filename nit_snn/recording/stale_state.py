"""Notices the membranes that one pass leaves and the next one starts from: a forgotten reset."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..neurons.base import NoisyNeuron
from .provenance import Seen


class StaleState:
    """What a pass left in its neurons; it keeps none of it alive.

    Args:
        neurons: Those of the pass that is over.
    """

    def __init__(self, neurons: Iterable[NoisyNeuron] = ()) -> None:
        found = ((neuron, neuron.membrane) for neuron in neurons)
        self._left = {n: Seen(membrane, weak=True) for n, membrane in found if membrane is not None}

    def holds(self, neuron: NoisyNeuron, state: Tensor | None) -> bool:
        """Whether a step of `neuron` starts from what it left, unchanged."""
        left = self._left.get(neuron)
        return left is not None and state is not None and left.matches(state)
