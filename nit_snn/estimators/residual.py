"""How much of the residual is added to the credit: all of it, none, or what it is worth.

With K the cheap estimate, of the credit alone, and U the unbiased one, the residual is `r = U - K`
and the estimate `K + lambda r`. `r` has K's bias as its mean, and far more variance. The weight
that minimises the mean squared error is a Wiener filter,

    lambda = |E r|^2 / E |r|^2,

measured layer by layer: with r_1 and r_2 the residuals of the two halves of a batch,
`<r_1, r_2>` has the numerator as its mean, and `|(r_1 + r_2) / 2|^2` the denominator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..training.saved_state import count, number

_MEMORY = 0.95
#: A weight below this adds more noise than it is worth the time of.
_NEGLIGIBLE = 0.02
#: Every so many passes the residual is measured; all of the first few.
_EVERY, _FIRST = 16, 4


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
        products: The running mean of `<r_1, r_2>` by layer.
        squares: That of `|r|^2`.
    """

    passes: int = 0
    products: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def weight(self, layer: str) -> float:
        """lambda, between 0 and 1; 0 where it would be negligible, or nothing is known."""
        square = self.squares.get(layer, 0.0)
        found = self.products.get(layer, 0.0) / square if square > 0 else 0.0
        return min(1.0, found) if found > _NEGLIGIBLE else 0.0

    def measures(self) -> bool:
        """See `Residual`."""
        return self.passes < _FIRST or self.passes % _EVERY == 0

    def update(self, layer: str, product: float, square: float) -> None:
        """Takes in what one pass has measured of a layer."""
        for held, value in ((self.products, product), (self.squares, square)):
            before = held.get(layer, 0.0)
            held[layer] = _MEMORY * before + (1 - _MEMORY) * value

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to weigh the residual alike."""
        return {
            "passes": self.passes,
            "products": dict(self.products),
            "squares": dict(self.squares),
        }

    def fits(self, state: Any) -> bool:
        """Whether `state` is one of such a residual."""
        if not isinstance(state, dict) or not {"passes", "products", "squares"} <= state.keys():
            return False
        means = (state["products"], state["squares"])
        numbers = all(isinstance(m, dict) and all(map(number, m.values())) for m in means)
        return count(state["passes"]) and numbers

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the residual that gave `state` stopped."""
        self.passes = state["passes"]
        self.products, self.squares = dict(state["products"]), dict(state["squares"])


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
