"""What a recorded pass refuses: the wrong rows, currents without noise, steps without a loss."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch

from ..errors import BiasWarning, RecordingError


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
    """The rows of a layer's current are those of the replicas; returns how many.

    Args:
        name: The layer's.
        shape: (C * B, *) of its current at one step.
        replicas: C.
        before: The rows of the layers before; None for the first.
        expanded: The numbers of rows that the learner has expanded something to.

    Raises:
        RecordingError: They are not.
    """
    rows = shape[0] if shape else 0
    if not shape or rows % replicas:
        raise RecordingError(
            f"{name} got a current of shape {tuple(shape)}; its first dimension must be "
            f"replicas * batch, a multiple of {replicas}. Did the input go through "
            "learner.expand()? (time-first input: expand(..., dim=1))"
        )
    if before is not None and rows != before:
        raise RecordingError(
            f"{name} got {rows} rows, the noisy layers before it {before}; "
            "every noisy layer must see the same replicas * batch rows."
        )
    if before is None and rows and all(rows % made for made in expanded if made):
        made = ", ".join(str(n) for n in sorted(expanded) if n)
        if made:
            raise RecordingError(
                f"{name} got a current of shape {tuple(shape)}, {rows} rows, but "
                f"learner.expand() made {made}. Put the network's input through it as well, "
                "along its batch dimension (time-first input: expand(..., dim=1))."
            )
    return rows


def warn_of_delayed_reset(name: str) -> None:
    """A membrane that was handed in decides on snnTorch's reset, and is trained as well."""
    warnings.warn(
        f"{name} was given a membrane that depends on trainable parameters. snnTorch decides on "
        "its reset from that membrane, and the jump that this makes is not in the estimate, which "
        "is biased for these parameters. Use reset_mechanism='none', or detach the membrane.",
        BiasWarning,
        stacklevel=2,
    )
