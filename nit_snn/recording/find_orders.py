"""Finds how the rows of each layer lie, from what a pass shows: never from a guess.

Every possible order starts as a candidate. What contradicts the evidence is struck out: replicas of
a sample are equal where no noise has come in, the loss of a sample depends on its own rows alone,
and so does each row of a later layer. Where that is no order at all, the rows are coupled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .orders import Order, possible_orders, repeats
from .row_probe import Evidence, RowProbe


@dataclass(eq=False)
class FoundOrders:
    """What a pass has shown of its rows.

    Attributes:
        orders: By layer, where one order alone fits.
        open: By layer, where several do.
        coupled: What reads whose rows across samples: (reader or None for the losses, layer).
        misplaced: Layers whose rows lie along another dimension, by name.
    """

    orders: dict[str, Order] = field(default_factory=dict)
    open: dict[str, list[Order]] = field(default_factory=dict)
    coupled: list[tuple[str | None, str]] = field(default_factory=list)
    misplaced: dict[str, int] = field(default_factory=dict)


def find_orders(
    rows: Mapping[str, int],
    replicas: int,
    samples: int,
    probe: RowProbe | None,
    expanded: Collection[int],
) -> FoundOrders:
    """The orders of all layers.

    Args:
        rows: N of each layer, by name, multiples of C * B.
        replicas: C.
        samples: B, of the losses.
        probe: What was asked in this pass, if anything was.
        expanded: The numbers of rows that `expand` has made.
    """
    found = FoundOrders()
    left = {name: possible_orders(n, replicas, samples) for name, n in rows.items()}
    evidence = [] if probe is None else probe.evidence
    if probe is not None and probe.first in left:
        left[probe.first] = equal_replicas(left[probe.first], probe.currents)
    for one in evidence:
        if one.reader is None:
            _strike_by_losses(one, left, found, replicas * samples)
    pairs = [one for one in evidence if one.reader is not None and one.reader in left]
    for _ in left:
        if not any([_strike_by_reader(one, left, found) for one in pairs]):
            break
    units, sizes = replicas * samples, [n for n in expanded if n]
    for name, orders in left.items():
        if len(orders) > 1:
            orders = _made_by_hand(orders, rows[name], units, sizes)
        if len(orders) > 1:
            known = [found.orders[o] for o in found.orders if rows[o] == rows[name]]
            orders = [order for order in orders if order in known] or orders
        if len(orders) == 1:
            found.orders[name] = orders[0]
        else:
            found.open[name] = orders
    return found


def equal_replicas(orders: Sequence[Order], currents: Sequence[Tensor]) -> list[Order]:
    """The orders under which all replicas of a sample are equal; all, if there is none such.

    Args:
        orders: The candidates.
        currents: (N, *) each, before any noise. Where a code is random, no order fits.
    """
    fits = [o for o in orders if all(repeats(x, o.outer, o.replicas) for x in currents)]
    return fits or list(orders)


def _made_by_hand(
    orders: list[Order], rows: int, units: int, expanded: Sequence[int]
) -> list[Order]:
    """Those that `flatten` or `cat` can make of what `expand` has made.

    Rows that `expand` has made have the replicas outermost. If it was asked for C * B rows and no
    more, nothing was put between replicas and samples.
    """
    fits = orders
    if rows in expanded:
        fits = [order for order in fits if order.outer == 1]
    if units in expanded and max(expanded) <= units:
        fits = [order for order in fits if order.middle == 1]
    return fits or orders


def _strike_by_losses(
    one: Evidence, left: dict[str, list[Order]], found: FoundOrders, units: int
) -> None:
    for name, places in one.touched.items():
        if name not in left or len(one.asked) != units:
            continue
        fits = [order for order in left[name] if not outside(places[0], order, one)]
        if fits:
            left[name] = fits
            continue
        other = _other_dimension(places, one.asked)
        if other is not None:
            found.misplaced[name] = other
        elif (None, name) not in found.coupled:
            found.coupled.append((None, name))


def outside(places: Tensor, order: Order, one: Evidence) -> bool:
    """Whether some places are rows of samples that were not asked."""
    return not bool(one.asked[order.unit_of_each_row()[places]].all())


def _other_dimension(places: Sequence[Tensor], asked: Tensor) -> int | None:
    """A dimension along which nothing but the samples that were asked was reached."""
    for dim, own in enumerate(places[1:], 1):
        if len(own) % len(asked) == 0 and len(asked) > 1:
            samples = own.view(len(asked), -1).any(1)
            if bool(samples.any()) and not bool((samples & ~asked).any()):
                return dim
    return None


def _strike_by_reader(one: Evidence, left: dict[str, list[Order]], found: FoundOrders) -> bool:
    """Strikes out what contradicts a later layer's evidence; whether anything was struck out."""
    assert one.reader is not None
    changed = False
    for name, places in one.touched.items():
        if name not in left or len(places[0]) != left[name][0].parts * left[name][0].units:
            continue
        if len(one.asked) != left[one.reader][0].parts * left[one.reader][0].units:
            continue
        readers, orders = left[one.reader], left[name]
        asked = torch.stack([_samples(one.asked, order) for order in readers])
        reached = torch.stack([_samples(places[0], order) for order in orders])
        # A pair fits if nothing is reached but samples that were asked.
        fits = (~asked).float() @ reached.float().T == 0
        if one.reader == name:
            fits &= torch.eye(len(orders), dtype=torch.bool)
        if not bool(fits.any()):
            if (one.reader, name) not in found.coupled:
                found.coupled.append((one.reader, name))
            continue
        left[one.reader] = [o for o, fit in zip(readers, fits.any(1), strict=True) if fit]
        left[name] = [o for o, fit in zip(orders, fits.any(0), strict=True) if fit]
        changed |= len(left[one.reader]) < len(readers) or len(left[name]) < len(orders)
    return changed


def _samples(rows: Tensor, order: Order) -> Tensor:
    """(C * B,): the replicas of samples that some of the rows, (N,), belong to."""
    found = torch.zeros(order.units, dtype=torch.bool)
    found[order.unit_of_each_row()[rows]] = True
    return found
