"""Whose rows a loss is charged to: found out in the first pass, and refused where it cannot be."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter

import torch
from torch import Tensor, nn

from ..dynamics.needs import Needs
from ..errors import LossError
from ..estimators.estimator import Estimator
from ..estimators.residual import FixedResidual
from ..recording.find_orders import FoundOrders, find_orders, outside
from ..recording.orders import Order
from ..recording.trace import PassTrace
from . import warn
from .capture import being_captured
from .passes import misplaced

#: Of a loss's graph, how many operations make up its form.
_OPERATIONS = 16
#: How often the losses are asked where samples have several rows: each time half of them.
_TIMES = 8
_Key = tuple[str, int, int]


@dataclass(eq=False)
class RowWatch:
    """What is known of a learner's rows from pass to pass.

    Attributes:
        due: Whether the next pass is to be asked.
        coupled: Whether a loss was seen to depend on other samples.
        looks: Whether the parts of the losses are to be looked at in the next pass.
    """

    due: bool = True
    coupled: bool = False
    looks: bool = True
    _replicas: int = 0
    _scores: bool = True
    _forms: set[object] = field(default_factory=set)
    _looked: set[object] = field(default_factory=set)
    _orders: dict[_Key, Order] = field(default_factory=dict)
    _merged: set[_Key] = field(default_factory=set)

    def probe(self, net: nn.Module, needs: Needs, index: int, replicas: int) -> int | None:
        """Names the rows to ask in a pass; None if there is no need to ask any.

        Args:
            net: The network. Backward hooks would be told of what is asked, so none is then.
            needs: What the pass has to keep: without scores, no loss is charged to a row.
            index: Its number.
            replicas: C.
        """
        self._scores = needs.scores
        asked = (self.due or replicas != self._replicas) and needs.scores
        if not asked or being_captured():
            return None
        hooked = any(m._backward_hooks or m._backward_pre_hooks for m in net.modules())
        return None if hooked else index

    def settle(
        self, trace: PassTrace, losses: Tensor, shared: Tensor | None, estimator: Estimator
    ) -> Tensor:
        """Gives every layer of a pass the order of its rows.

        Args:
            trace: The pass.
            losses: (U,) or (T, U), of the right shape.
            shared: (C,) or (T, C), likewise; None if there is none.
            estimator: What they are for.

        Returns:
            The losses; their means over replicas, where nobody can say which rows are whose.

        Raises:
            LossError: The batch lies along another dimension of a layer, or nobody can say which
                rows belong to which replica, or `shared` mixes replicas.
        """
        own = _form(losses, trace.replicas), _form(shared, trace.replicas)
        self.looks = own not in self._looked and not self.looks
        self._looked.add(own)
        rows = {layer.name: layer.rows for layer in trace.active}
        units, replicas, probe = losses.shape[-1], trace.replicas, trace.probe
        several = any(n != units for n in rows.values())
        alone = units == replicas < max([*rows.values(), *trace.expanded, 0])
        trace.couples = self.coupled or alone or shared is not None
        if estimator.credit.learns and len(set(rows.values())) > 1:
            raise LossError(_feedback(rows))
        # A derivative asks nobody whose row it is.
        quiet = not trace.mixed and _follows_derivatives(losses, shared, estimator)
        if not self._scores or (quiet and probe is None):
            return losses
        form = quiet, *own
        self.due = form not in self._forms and probe is None
        self._forms.add(form)
        if probe is not None:
            self._replicas = replicas
            if trace.coupled:
                probe.evidence = []  # a BatchNorm mixes all rows, and was named
            else:
                probe.look_at_losses(losses, _TIMES if several else 1)
        if units and (several or probe is not None):
            found = self._found(trace, rows, units)
            if quiet:
                if not found.open and not found.coupled and not found.misplaced:
                    self._order(trace, found, losses)
                return losses
            if found.misplaced:
                shapes = {layer.name: layer.segments[-1].shape for layer in trace.active}
                raise LossError(misplaced(found.misplaced, shapes))
            if found.coupled:
                if not self.coupled:
                    warn.of_coupled_losses(found.coupled, estimator)
                self.coupled = True
            if several:
                losses = self._order(trace, found, losses)
                _check_antithetic(trace, estimator)
            if shared is not None and probe is not None:
                _check_shared(trace, shared)
        trace.couples = trace.couples or self.coupled
        return losses

    def _found(self, trace: PassTrace, rows: dict[str, int], units: int) -> FoundOrders:
        """What this pass shows, or those before have shown."""
        replicas = trace.replicas
        keys = {name: (name, n // units, replicas) for name, n in rows.items()}
        if trace.probe is None and all(key in self._orders for key in keys.values()):
            found = FoundOrders()
            for name, key in keys.items():
                order = self._orders[key].of(units // replicas)
                if key in self._merged:
                    found.open[name] = [order]
                else:
                    found.orders[name] = order
            return found
        found = find_orders(rows, replicas, units // replicas, trace.probe, trace.expanded)
        for name, key in keys.items():
            self._orders[key] = found.orders[name] if name in found.orders else found.open[name][0]
        self._merged |= {keys[name] for name in found.open}
        return found

    def _order(self, trace: PassTrace, found: FoundOrders, losses: Tensor) -> Tensor:
        """Gives every layer its order; returns the losses, or their means over replicas."""
        if not found.open:
            for layer in trace.active:
                layer.order = found.orders[layer.name]
            return losses
        unknown = [name for name, orders in found.open.items() if not _same_replicas(orders)]
        if unknown:
            shapes = ", ".join(f"{n} ({found.open[n][0].rows} rows)" for n in unknown)
            raise LossError(
                f"Nobody can say which rows belong to which of the {losses.shape[-1]} losses in: "
                f"{shapes}. The input differs from replica to replica, and the losses have no "
                "derivative that would tell. Give the losses a graph, or one loss for each row."
            )
        if trace.replicas > 1 and trace.probe is not None:
            warn.of_merged_rows(list(found.open))
        for layer in trace.active:
            known = found.orders.get(layer.name) or found.open[layer.name][0]
            layer.order = known.whole
        return losses.unflatten(-1, (trace.replicas, -1)).mean(-1)


def _follows_derivatives(losses: Tensor, shared: Tensor | None, estimator: Estimator) -> bool:
    """Whether nothing is left to the likelihood ratio."""
    residual = estimator.residual
    graph = losses.requires_grad and (shared is None or shared.requires_grad)
    return graph and isinstance(residual, FixedResidual) and residual.value == 0


def _feedback(rows: Mapping[str, int]) -> str:
    listed = ", ".join(f"{name} ({n})" for name, n in rows.items())
    return (
        "credit='feedback' sends the outputs' errors to rows that are the same in all layers, but "
        f"they are: {listed}. Take the mean over a sample's rows behind the network, or "
        "credit='layers'."
    )


def _same_replicas(orders: list[Order]) -> bool:
    """Whether they differ only in which rows of a replica belong to which sample."""
    first, *others = (order.whole.unit_of_each_row() for order in orders)
    return all(torch.equal(first, other) for other in others)


def _check_antithetic(trace: PassTrace, estimator: Estimator) -> None:
    """No two rows of one sample have each other's noise.

    Raises:
        LossError: Two have.
    """
    names = [o.name for o in trace.active if o.order is not None and o.order.outer % 2 == 0]
    if names and estimator.sharing.antithetic:
        raise LossError(
            f"antithetic=True would give the rows of one sample each other's noise in: "
            f"{', '.join(names)}. Put rows of one sample side by side: torch.stack(views, "
            "1).flatten(0, 1) in the place of torch.cat(views)."
        )


def _check_shared(trace: PassTrace, shared: Tensor) -> None:
    """No number of `shared` depends on another replica's noise.

    Raises:
        LossError: One does.
    """
    assert trace.probe is not None
    trace.probe.evidence = []
    trace.probe.look_at_losses(shared, 1)
    for one in trace.probe.evidence:
        for layer in trace.active:
            order = layer.order or Order(trace.replicas, layer.rows // trace.replicas)
            if layer.name in one.touched and outside(one.touched[layer.name][0], order.whole, one):
                raise LossError(
                    "shared must have one number for each replica, made of that replica's rows "
                    f"alone, but it mixes those of {layer.name}. Take x.unflatten(0, "
                    f"({trace.replicas}, -1)) of what it is made of, and each mean over the rest."
                )


def _form(losses: Tensor | None, replicas: int) -> object:
    """Which operations have made losses, the last of them: another loss has others."""
    if losses is None:
        return None
    names: list[str] = []
    nodes = deque([losses.grad_fn])
    while nodes and len(names) < _OPERATIONS:
        node = nodes.popleft()
        if node is not None:
            names.append(node.name())
            nodes.extend(map(itemgetter(0), node.next_functions[:_OPERATIONS]))
    return replicas, tuple(names)
