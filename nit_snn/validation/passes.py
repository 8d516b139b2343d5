"""What a recorded pass refuses: the wrong rows, currents without noise, steps without a loss."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import BiasWarning, RecordingError
from ..neurons.base import NoisyNeuron
from ..recording.orders import repeats


def check_noisy(name: str, noise: bool) -> None:
    """A layer's noise is on.

    Raises:
        RecordingError: It is not.
    """
    if not noise:
        raise RecordingError(
            f"A NITLearner learns from the noise, but that of {name} is switched off. "
            "Leave noise_off() before learner.record()."
        )


def check_current(name: str, shape: torch.Size, dtype: torch.dtype) -> None:
    """Noise can be added to a layer's current.

    Raises:
        RecordingError: It cannot.
    """
    if not dtype.is_floating_point:
        raise RecordingError(
            f"{name} got a current of shape {tuple(shape)} and dtype {dtype}, "
            "to which no noise can be added. Call .float() on the input."
        )


def check_rows(
    name: str, shape: torch.Size, replicas: int, before: int | None, expanded: Collection[int]
) -> int:
    """The rows of a layer's current are those of the replicas; returns those of the first layer.

    Of an expanded batch every sample may have several rows, as many as any other.

    Args:
        name: The layer's.
        shape: (N, *) of its current at one step.
        replicas: C.
        before: The rows of the first layer; None if this is it.
        expanded: The numbers of rows that the learner has expanded something to.

    Raises:
        RecordingError: They are not.
    """
    rows, made = shape[0] if shape else 0, sorted(n for n in expanded if n)
    where = where_else(shape, made)
    if not shape or rows % replicas:
        raise RecordingError(
            f"{name} got a current of shape {tuple(shape)}; its first dimension must be "
            f"replicas * batch, a multiple of {replicas}. "
            + (
                where
                or "Did the input go through learner.expand()? (time-first input: expand(..., "
                f"dim=1)) {_how_many(rows, made)}"
            )
        )
    multiple = any(rows % size == 0 for size in made)
    if before is not None and rows != before:
        fits = multiple or any(size % rows == 0 for size in made if rows)
        if not fits:
            raise RecordingError(
                f"{name} got {rows} rows, the noisy layers before it {before}; "
                "every noisy layer must see the same replicas * batch rows. "
                f"{where or _how_many(rows, made)}"
            )
    if before is None and rows and made and not multiple:
        listed = ", ".join(map(str, made))
        raise RecordingError(
            f"{name} got a current of shape {tuple(shape)}, {rows} rows, but "
            f"learner.expand() made {listed}. "
            + (
                where
                or "Put the network's input through it as well, along its batch dimension "
                f"(time-first input: expand(..., dim=1)). {_how_many(rows, made)}"
            )
        )
    return rows if before is None else before


def check_replicas(
    name: str, currents: Sequence[Tensor], replicas: int, expanded: Collection[int]
) -> None:
    """Before any noise, the replicas of a sample are equal along dimension 0.

    Where they are along another dimension and not along that one, that one is not the batch. Where
    they are along none, the input's code is random, and nothing can be said.

    Args:
        name: The first layer's.
        currents: (N, *) of some of its steps.
        replicas: C.
        expanded: The numbers of rows that the learner has expanded something to.

    Raises:
        RecordingError: They are equal along another dimension.
    """
    shape, made = currents[0].shape, [n for n in expanded if n]
    if replicas < 2 or not made or any(x.shape != shape for x in currents):
        return

    def fits(dim: int) -> bool:
        rows = shape[dim]
        ways = [outer for outer in range(1, rows + 1) if rows % (outer * replicas) == 0]
        moved = [x.movedim(dim, 0) for x in currents]
        return any(all(repeats(x, outer, replicas) for x in moved) for outer in ways)

    others = [d for d in range(1, len(shape)) if any(shape[d] and shape[d] % n == 0 for n in made)]
    if others and not fits(0):
        found = next((dim for dim in others if fits(dim) and _varies(currents, dim)), None)
        if found is not None:
            raise RecordingError(misplaced({name: found}, {name: shape}))


def _varies(currents: Sequence[Tensor], dim: int) -> bool:
    """Whether there is more than one value along a dimension: any replicas of one are equal."""
    return any(bool((x != x.narrow(dim, 0, 1)).any()) for x in currents)


def misplaced(dimensions: Mapping[str, int], shapes: Mapping[str, torch.Size]) -> str:
    """The sentences for layers whose batch lies along another dimension.

    Args:
        dimensions: By name, which one.
        shapes: By name, (N, *) of one step.
    """
    listed = ", ".join(f"{n}, of shape {tuple(shapes[n])} at each step" for n in dimensions)
    dim = next(iter(dimensions.values()))
    return f"The batch lies along dimension {dim}, not 0, in: {listed}. {_permute(dim)}"


def _permute(dim: int) -> str:
    return (
        f"The batch has to be the first dimension of a step: x.transpose(0, {dim}) before the "
        f"neuron and behind it, or x.transpose(1, {dim + 1}) of a sequence (T, *)."
    )


def where_else(shape: torch.Size, made: Sequence[int]) -> str:
    """What to do where another dimension has the size that was expanded."""
    found = [dim for dim in range(1, len(shape)) if shape[dim] in made]
    return f"Dimension {found[0]} has that many. {_permute(found[0])}" if found else ""


def _how_many(rows: int, made: Sequence[int]) -> str:
    """What to do where samples have several rows."""
    if not made or rows <= made[0]:
        return ""
    return (
        f"Samples of several rows, such as patches, need {made[0]} times a whole number in all: "
        "fill up those of fewer rows, and leave the padding out of the loss."
    )


def warn_of_delayed_reset(name: str) -> None:
    """A membrane that was handed in decides on snnTorch's reset, and is trained as well."""
    warnings.warn(
        f"{name} was given a membrane that depends on trainable parameters. snnTorch decides on "
        "its reset from that membrane, and the jump that this makes is not in the estimate, which "
        "is biased for these parameters. Use reset_mechanism='none', or detach the membrane.",
        BiasWarning,
        stacklevel=2,
    )


def check_devices(neurons: Mapping[str, NoisyNeuron]) -> torch.device:
    """The device that all noisy neurons are on.

    Raises:
        RecordingError: They are on several.
    """
    found: dict[torch.device, str] = {}
    for name, neuron in neurons.items():
        found.setdefault(neuron.sigma.device, name)
    if len(found) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in found.items())
        raise RecordingError(
            f"The noisy neurons are on several devices: {listed}. Move the whole network to one, "
            'and share out the batch instead: shard="samples" or "replicas".'
        )
    return next(iter(found))
