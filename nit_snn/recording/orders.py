"""Which rows of a layer belong to one sample: patches, windows, agents and views are rows, too.

`expand` makes C * B rows, one for each replica of each sample. A layer may see k times as many.
They lie as the user's own code has put them, (outer, C, middle, B, inner) with k = outer * middle *
inner: `flatten(0, 1)` of (C * B, k, *) makes inner = k, `torch.cat` of k batches outer = k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """How the rows of a layer lie, (outer, C, middle, B, inner).

    Attributes:
        replicas: C.
        samples: B, or 1 where a loss belongs to all samples of a replica.
        outer: Rows of a sample that are whole batches apart.
        middle: Those that lie between replicas and samples.
        inner: Those that lie side by side.
    """

    replicas: int
    samples: int
    outer: int = 1
    middle: int = 1
    inner: int = 1

    @property
    def parts(self) -> int:
        """k, how many rows belong to one replica of a sample."""
        return self.outer * self.middle * self.inner

    @property
    def units(self) -> int:
        """C * B."""
        return self.replicas * self.samples

    @property
    def rows(self) -> int:
        """N."""
        return self.units * self.parts

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return self.outer, self.replicas, self.middle, self.samples, self.inner

    @property
    def whole(self) -> Order:
        """The same rows, all those of a replica taken together."""
        return Order(self.replicas, 1, self.outer, 1, self.middle * self.samples * self.inner)

    def of(self, samples: int) -> Order:
        """The same order of another number of samples."""
        return Order(self.replicas, samples, self.outer, self.middle, self.inner)

    def spread(self, values: Tensor) -> Tensor:
        """What each replica of a sample has, (*, C * B), for each of its rows, (*, N)."""
        if self.parts == 1:
            return values
        lead = values.shape[:-1]
        wide = values.reshape(*lead, 1, self.replicas, 1, self.samples, 1)
        return wide.expand(*lead, *self.shape).reshape(*lead, -1)

    def group(self, values: Tensor) -> Tensor:
        """(N, *) as (C, B, *), or as (C, B, k, *) where a sample has several rows."""
        if self.parts == 1:
            return values.unflatten(0, (self.replicas, self.samples))
        rows = values.reshape(*self.shape, *values.shape[1:])
        return rows.permute(1, 3, 0, 2, 4, *range(5, rows.dim())).flatten(2, 4)

    def ungroup(self, values: Tensor) -> Tensor:
        """The inverse of `group`."""
        if self.parts == 1:
            return values.flatten(0, 1)
        rows = values.unflatten(2, (self.outer, self.middle, self.inner))
        return rows.permute(2, 0, 3, 1, 4, *range(5, rows.dim())).flatten(0, 4)

    def unit_of_each_row(self) -> Tensor:
        """(N,): the number c * B + b of the replica of a sample that each row belongs to."""
        return self.spread(torch.arange(self.units))


def repeats(x: Tensor, outer: int, replicas: int) -> bool:
    """Whether a tensor (outer * C * n, *) has the same n rows in each of C replicas.

    Products of matrices round each row in its own way, so they are equal up to that.
    """
    if not x.numel():
        return False
    rows = x.detach().reshape(outer, replicas, -1)
    much = min(1e3 * torch.finfo(x.dtype).eps, 0.02) if x.is_floating_point() else 0.0
    return bool((rows - rows[:, :1]).abs().max() <= much * rows.abs().max())


def possible_orders(rows: int, replicas: int, samples: int) -> list[Order]:
    """All orders of so many rows that differ from one another.

    Args:
        rows: N, a multiple of C * B.
        replicas: C.
        samples: B.
    """
    found: dict[tuple[int, ...], Order] = {}
    for outer, middle, inner in _factors(rows // (replicas * samples)):
        order = Order(replicas, samples, outer, middle, inner)
        # Where C or B is 1, some are the same.
        found.setdefault(_shape_without_ones(order), order)
    return list(found.values())


def _shape_without_ones(order: Order) -> tuple[int, ...]:
    if order.samples == 1:
        return order.outer, order.middle * order.inner
    if order.replicas == 1:
        return order.outer * order.middle, order.inner
    return order.outer, order.middle, order.inner


def _factors(product: int) -> Iterator[tuple[int, int, int]]:
    """All triples of whole numbers with this product, those of fewest factors above 1 first."""
    divisors = [d for d in range(1, product + 1) if product % d == 0]
    triples = [
        (outer, middle, product // outer // middle)
        for outer in divisors
        for middle in divisors
        if product % (outer * middle) == 0
    ]
    yield from sorted(triples, key=lambda t: (sum(f > 1 for f in t), t[1]))
