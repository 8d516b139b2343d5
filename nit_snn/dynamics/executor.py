"""Who takes a layer's noisy steps, and weighs their noise afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .lif import MembraneRule


@dataclass(eq=False, slots=True)
class Steps:
    """Some steps of a layer: one, with tensors (N, *), or several at once, (T, N, *).

    Attributes:
        calls: Their numbers, counted from the layer's first in the pass.
        shape: (N, *) of one step.
        dtype: That of the membrane.
        several: Whether tensors have a dimension of time.
        rule: What the neuron does.
        noise: eps; None where it is drawn again, or made by a kernel.
        total: The sum of the scores of several calls, (N, *), if it is all that is kept of them.
    """

    calls: list[int]
    shape: torch.Size
    dtype: torch.dtype
    several: bool
    rule: MembraneRule
    noise: Tensor | None = None
    total: Tensor | None = None


@dataclass(eq=False, slots=True)
class Moved:
    """What came of a step, (N, *), or of several, (T, N, *).

    Attributes:
        membrane: u, before it fires; None where nobody asks for it.
        spikes: Zeros and ones in its type; None where the framework's neuron decides on them.
        state: The membrane that the next step starts from, (N, *).
        packed: The spikes as bits, if somebody has made them.
    """

    membrane: Tensor | None
    spikes: Tensor | None
    state: Tensor
    packed: Any = None


class Executor(Protocol):
    """Takes one layer's steps in a pass, and weighs their noise afterwards."""

    def advance(
        self, steps: Steps, current: Tensor, state: Tensor | None, fired: Tensor | None
    ) -> Moved:
        """Adds noise to the membrane, and lets it fire.

        Args:
            steps: The steps; takes the noise, if it is kept.
            current: What enters the closed form, (N, *), (T, N, *), or (1, N, *) for all steps;
                without a `state` the drift itself, (N, *).
            state: The membrane that the first step starts from, (N, *); None for a drift.
            fired: Where that membrane fired, if it is known.
        """
        ...

    def absorb(self, last: Steps, steps: Steps) -> None:
        """Adds the scores of some steps to those of the ones before."""
        ...

    def samples(self, steps: Steps) -> Iterator[Tensor]:
        """eps of each call, one after the other, kept or drawn again; (N, *)."""
        ...

    def weighted_scores(
        self, steps: Steps, weight: Tensor, gain: float | Tensor, total: bool
    ) -> Iterator[tuple[range, Tensor]]:
        """`A * score * gain / sigma` of some steps; a direction (NIT-S) keeps its scale.

        Chunk by chunk in time, so that what is drawn again at once stays small.

        Args:
            steps: The steps.
            weight: A, (N,), or (T, N) for a weight of each of the layer's calls.
            gain: A factor, a scalar or broadcasting to (N, *).
            total: Whether the sum over the steps is wanted.

        Yields:
            Which of the steps; and (t, N, *), of a single step or the sum (1, N, *).
        """
        ...

    def sigma_scores(self, steps: Steps, weight: Tensor) -> Tensor:
        """`sum A * (eps^2 - 1)` over rows and steps, (*); see `weighted_scores`."""
        ...


class Budget(Protocol):
    """Bytes that may be kept."""

    def take(self, size: int) -> bool: ...

    def give_back(self, size: int) -> None: ...
