"""How much of the residual is added to the credit: all of it, none, or what it is worth.

With K the cheap estimate, of the credit alone, and U the unbiased one, the residual is `r = U - K`
and the estimate `K + lambda r`. `r` has K's bias as its mean, and far more variance. The weight
that minimises the mean squared error is a Wiener filter,

    lambda = |E r|^2 / E |r|^2,

measured layer by layer: with r_1 and r_2 the residuals of the two halves of a batch,
`<r_1, r_2>` has the numerator as its mean, and `|(r_1 + r_2) / 2|^2` the denominator.

A weight that is too small leaves some bias. One that is too large adds variance, of which `r` has
many times more. So the numerator is not the mean of what was measured, but two standard errors
below it, and at least zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..training.saved_state import count, number

_MEMORY = 0.95
#: So many standard errors below its mean the numerator is taken.
BELOW = 2.0
#: A weight below this adds more noise than it is worth the time of.
_NEGLIGIBLE = 0.02
#: Every so many passes the residual is measured; all of the first few.
_EVERY, _FIRST = 16, 4

#: What a weight is made of, each by layer.
_BY_LAYER = ("measured", "products", "spreads", "squares")


class Residual(Protocol):
    """How much of the residual is added."""

    def weight(self, layer: str) -> float:
        """lambda of a layer."""
        ...

    def measures(self) -> bool:
        """Whether the next pass measures it."""
        ...


@dataclass(frozen=True)
class FixedResidual:
    """The same weight for all layers: 1 is unbiased, 0 costs least.

    Attributes:
        value: lambda.
    """

    value: float

    def weight(self, layer: str) -> float:
        """See `Residual`."""
        return self.value

    def measures(self) -> bool:
        """Nothing is measured."""
        return False


@dataclass
class WienerResidual:
    """The weight that minimises the mean squared error, from running means over passes.

    Attributes:
        passes: How many passes it has seen.
        measured: How often each layer was measured.
        products: The running mean of `<r_1, r_2>` by layer.
        spreads: That of its square.
        squares: That of `|r|^2`.
    """

    passes: int = 0
    measured: dict[str, int] = field(default_factory=dict)
    products: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def weight(self, layer: str) -> float:
        """lambda, between 0 and 1; 0 where it would be negligible, or after fewer than 4 measures.

        The running means weigh the k-th last measure by `_MEMORY ** k`.
        """
        times, square = self.measured.get(layer, 0), self.squares.get(layer, 0.0)
        if times < _FIRST or square <= 0:
            return 0.0
        total = (1 - _MEMORY**times) / (1 - _MEMORY)
        independent = total**2 * (1 - _MEMORY**2) / (1 - _MEMORY ** (2 * times))
        mean = self.products[layer]
        variance = max(0.0, self.spreads[layer] - mean**2) / (independent - 1)
        found = (mean - BELOW * variance**0.5) / square
        return min(1.0, found) if found > _NEGLIGIBLE else 0.0

    def measures(self) -> bool:
        """See `Residual`."""
        return self.passes < _FIRST or self.passes % _EVERY == 0

    def update(self, layer: str, product: float, square: float) -> None:
        """Takes in what one pass has measured of a layer."""
        times = self.measured[layer] = self.measured.get(layer, 0) + 1
        share = (1 - _MEMORY) / (1 - _MEMORY**times)  # of a mean over all measures so far
        measures = ((self.products, product), (self.spreads, product**2), (self.squares, square))
        for held, value in measures:
            before = held.get(layer, 0.0)
            held[layer] = before + share * (value - before)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to weigh the residual alike."""
        return {"passes": self.passes, **{name: dict(getattr(self, name)) for name in _BY_LAYER}}

    def fits(self, state: Any) -> bool:
        """Whether `state` is one of such a residual."""
        if not isinstance(state, dict) or not {"passes", *_BY_LAYER} <= state.keys():
            return False
        held = [state[name] for name in _BY_LAYER]
        if not all(isinstance(each, dict) and each.keys() == held[0].keys() for each in held):
            return False
        numbers = all(number(value) for each in held[1:] for value in each.values())
        return count(state["passes"]) and numbers and all(map(count, held[0].values()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the residual that gave `state` stopped."""
        self.passes = state["passes"]
        for name in _BY_LAYER:
            setattr(self, name, dict(state[name]))


def halves(first: Mapping[Tensor, Tensor], second: Mapping[Tensor, Tensor]) -> Tensor:
    """`<r_1, r_2>` and `|(r_1 + r_2) / 2|^2` over a layer's parameters, float64, (2,).

    Args:
        first: The residual's gradient of one half of the batch, its mean over these rows.
        second: That of the other half.
    """
    total: Tensor | None = None
    for parameter in filter(second.__contains__, first):  # a set has another order in each run
        one, other = first[parameter].double(), second[parameter].double()
        found = torch.stack([(one * other).sum(), ((one + other) / 2).square().sum()])
        total = found if total is None else total.to(found.device) + found
    return torch.zeros(2, dtype=torch.float64) if total is None else total
