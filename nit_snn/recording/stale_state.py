"""Notices the membranes that one pass leaves and the next one starts from: a forgotten reset."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import ReferenceType, ref

from torch import Tensor

from ..neurons.base import NoisyNeuron


class Leftovers:
    """What a pass left in its neurons; it keeps none of it alive.

    Args:
        neurons: Those of the pass that is over.
    """

    def __init__(self, neurons: Iterable[NoisyNeuron] = ()) -> None:
        self._left: dict[NoisyNeuron, tuple[ReferenceType[Tensor], int]] = {}
        for neuron in neurons:
            membrane = neuron.membrane
            if membrane is not None:
                self._left[neuron] = ref(membrane), membrane._version

    def holds(self, neuron: NoisyNeuron, state: Tensor | None) -> bool:
        """Whether a call of `neuron` starts from what it left, unchanged."""
        left, version = self._left.get(neuron, (None, -1))
        return (
            left is not None and state is not None and left() is state and state._version == version
        )
