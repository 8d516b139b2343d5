"""The states of a network's neurons, which no call of a classifier leaves behind."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import RecordingError
from ..neurons.base import NoisyNeuron
from ..swap.states import reset_states as reset_states


def check_idle(neurons: Mapping[str, NoisyNeuron]) -> None:
    """Nobody records or probes the neurons, given by name.

    Raises:
        RecordingError: Somebody does.
    """
    busy = [name for name, neuron in neurons.items() if neuron._recorder is not None]
    if busy:
        raise RecordingError(
            f"Something is recording or probing {', '.join(busy)}. Call a NoisyClassifier "
            "before learner.record() or after it, not inside."
        )
