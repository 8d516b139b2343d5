"""Whether each layer fires in a pass, and how near its membranes come to their thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..dynamics.executor import Moved, Steps
from ..dynamics.lif import MembraneRule, number


@dataclass(eq=False)
class Count:
    """What was counted of the steps of a layer that have one shape.

    Attributes:
        rule: What the neuron does.
        possible: How many spikes there could have been.
        some: 1 if any neuron fired at any step, else 0; a scalar.
        every: 1 if every neuron fired at every step, else 0.
        highest: Of each neuron the largest distance from its threshold up to its membrane, (*).
        lowest: The smallest one; negative below the threshold.
        complete: Whether all membranes were seen before they fired, and not the last ones alone.
        steps: How many steps there were.
    """

    rule: MembraneRule
    possible: int
    some: Tensor
    every: Tensor
    highest: Tensor
    lowest: Tensor
    complete: bool
    steps: int

    def deviation(self, sigma: Tensor) -> Tensor:
        """That of the noise which a membrane carries at the end of the steps; (*) or a scalar."""
        carry = torch.as_tensor(number(self.rule.carry)).to(sigma).clamp(0, 1 - 1e-4)
        return sigma.detach() * ((1 - carry ** (2 * self.steps)) / (1 - carry**2)).sqrt()


@dataclass(eq=False)
class Census:
    """Counts while a pass runs, by the layer's name and its shape; nothing waits for a GPU."""

    counts: dict[tuple[str, torch.Size], Count] = field(default_factory=dict)

    def take(self, name: str, steps: Steps, moved: Moved) -> None:
        """Sees what came of some steps; neurons that fire otherwise than by a threshold are none.

        Args:
            name: The layer's.
            steps: The steps.
            moved: What came of them.
        """
        spikes = moved.spikes
        if spikes is None or not spikes.numel():
            return
        complete = moved.membrane is not None
        membrane = (moved.membrane if complete else moved.state).detach()  # type: ignore[union-attr]
        apart = membrane - number(steps.rule.threshold)
        rows = tuple(range(membrane.dim() - len(steps.shape) + 1))
        found = Count(
            steps.rule,
            spikes.numel(),
            spikes.detach().amax(),
            spikes.detach().amin(),
            apart.amax(rows),
            apart.amin(rows),
            complete,
            len(steps.calls),
        )
        key = (name, steps.shape[1:])
        held = self.counts.get(key)
        if held is None:
            self.counts[key] = found
            return
        held.possible += found.possible
        held.some = torch.maximum(held.some, found.some)
        held.every = torch.minimum(held.every, found.every)
        held.highest = torch.maximum(held.highest, found.highest)
        held.lowest = torch.minimum(held.lowest, found.lowest)
        held.complete = held.complete and complete
        held.steps += found.steps
