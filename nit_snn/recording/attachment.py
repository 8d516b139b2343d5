"""Which learner a noisy neuron belongs to: one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from ..errors import AttachError
from ..neurons.base import NoisyNeuron

_ATTACHED: WeakKeyDictionary[NoisyNeuron, ReferenceType[Any]] = WeakKeyDictionary()


def attached_learner(neuron: NoisyNeuron) -> Any:
    """The learner that `neuron` belongs to, if there is one."""
    reference = _ATTACHED.get(neuron)
    return None if reference is None else reference()


def attach(learner: Any, neuron: NoisyNeuron) -> None:
    """From now on `neuron` belongs to `learner`, as long as that lives."""
    _ATTACHED[neuron] = ref(learner)


def detach(learner: Any, neuron: NoisyNeuron) -> None:
    """From now on `neuron` is free, if it was `learner`'s."""
    if attached_learner(neuron) is learner:
        del _ATTACHED[neuron]


def check_free(neurons: Mapping[str, NoisyNeuron]) -> None:
    """None of the neurons, by name, has a learner.

    Raises:
        AttachError: One has.
    """
    taken = [name for name, neuron in neurons.items() if attached_learner(neuron) is not None]
    if taken:
        raise AttachError(
            f"Another NITLearner is attached to: {', '.join(taken)}. Call its close() first."
        )
