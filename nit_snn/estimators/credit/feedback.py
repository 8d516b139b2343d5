"""Learned feedback: the loss's derivative in the outputs, sent straight to every layer.

    c = M e,    M <- EMA[sum_t (s_t - p_t) o^T] / EMA[sum_t p_t (1 - p_t)]

o are the network's outputs, e the loss's derivative in them. As `s - p` has mean zero given the
past and the variance `p (1 - p)`, M is the regression of the outputs on a neuron's spikes: what
the outputs gain from a spike. It is learned from the noise that is there anyway. Layers that the
loss reads itself keep their exact derivative. Nothing is carried back through hidden layers or
through time, and no weights are transported (OPZO, Xiao et al., ICLR 2026, as a credit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...recording.timeline import Timeline
from ...recording.trace import LayerTrace, PassTrace
from ...training.distributed import ALONE, Ranks
from ...training.saved_state import count
from .derivatives import collect, derivatives, reached
from .kinds import Known

_MEMORY = 0.99
#: M is used from this pass on: the regression of a few batches is mostly noise.
_WARM_UP = 8
_RARE = 1e-3


@dataclass(eq=False)
class FeedbackMap:
    """What the outputs gain from a spike of each neuron of a layer.

    Attributes:
        products: The running mean of `sum_t (s_t - p_t) o^T`, (neurons, outputs).
        variances: That of `sum_t p_t (1 - p_t)`, (neurons,).
    """

    products: Tensor
    variances: Tensor

    def of(self, errors: Tensor) -> Tensor:
        """`M e`, (N, neurons), from e, (N, outputs)."""
        products, variances = self.products.to(errors), self.variances.to(errors)
        fewest = _RARE * variances.mean() + torch.finfo(variances.dtype).tiny
        return (errors @ products.T) / variances.clamp(min=fewest)

    def update(self, products: Tensor, variances: Tensor) -> None:
        """Takes in what one pass has shown."""
        self.products = self.products.to(products).lerp_(products, 1 - _MEMORY)
        self.variances = self.variances.to(variances).lerp_(variances, 1 - _MEMORY)


@dataclass(eq=False)
class FeedbackCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`.

    Attributes:
        ranks: Who has other rows of the batch: all learn the same M.
        maps: M by the layer's name and its shape.
        passes: How many passes it has learned from.
    """

    ranks: Ranks = ALONE
    name: str = "feedback"
    reach: str | None = "last"
    learns: bool = True
    maps: dict[str, FeedbackMap] = field(default_factory=dict)
    passes: int = 0
    _errors: Tensor | None = None

    def collect(self, trace: PassTrace, losses: Tensor, form: str) -> None:
        collect(trace, losses, form)
        found = outputs_and_errors(trace, losses)
        self._errors = None if found is None else found[1]

    def learn(self, trace: PassTrace) -> None:
        """Takes in a pass, whose estimate must not depend on it."""
        self._errors = None
        outputs = summed_outputs(trace)
        if outputs is None:
            return
        self.passes += 1
        total = self.ranks.sum(torch.tensor(float(len(outputs)), device=outputs.device))
        centred = outputs - self.ranks.sum(outputs.sum(0)) / total
        for layer in trace.active:
            if layer.segments[0].node is None or reached(layer):
                continue
            for timeline in layer.timelines:
                firing = timeline.firing
                residual, p = firing.residual.sum(0).flatten(1), firing.probability
                products = residual.T.to(centred) @ centred
                variances = (p * (1 - p)).sum((0, 1)).flatten().to(centred)
                self._update(timeline, products, variances, total)

    def _update(
        self, timeline: Timeline, products: Tensor, variances: Tensor, rows: Tensor
    ) -> None:
        products, variances = (self.ranks.sum(x) / rows for x in (products, variances))
        if not bool(products.isfinite().all() and variances.isfinite().all()):
            return  # outputs that overflow say nothing, and would stay in M for ever
        held = self.maps.get(_name(timeline))
        if held is None or held.products.shape != products.shape:
            self.maps[_name(timeline)] = FeedbackMap(products, variances)
        else:
            held.update(products, variances)

    def reaches(self, layer: LayerTrace) -> bool:
        return reached(layer) or self._errors is not None

    def gradients(self, timeline: Timeline) -> tuple[Tensor, Tensor | None]:
        if reached(timeline.layer):
            return derivatives(timeline)
        spikes = timeline.spike
        held = self.maps.get(_name(timeline))
        if self._errors is None or held is None or self.passes < _WARM_UP:
            return torch.zeros_like(spikes), None
        found = held.of(self._errors).view(spikes.shape[1:]).to(spikes)
        return found.expand_as(spikes).clone(), None

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        return Known(self.gradients(timeline)[0])

    def state_dict(self) -> dict[str, Any]:
        """What was learned so far."""
        maps = {
            name: {"products": held.products.clone(), "variances": held.variances.clone()}
            for name, held in self.maps.items()
        }
        return {"passes": self.passes, "maps": maps}

    def fits(self, state: Any) -> bool:
        """Whether `state` is one of such a credit."""
        if not isinstance(state, dict) or not {"passes", "maps"} <= state.keys():
            return False
        maps = state["maps"]
        return count(state["passes"]) and isinstance(maps, dict) and all(map(_is_map, maps.items()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what `state` had learned; it has to fit."""
        self.passes = state["passes"]
        self.maps = {
            name: FeedbackMap(held["products"].clone(), held["variances"].clone())
            for name, held in state["maps"].items()
        }


def _is_map(entry: tuple[Any, Any]) -> bool:
    name, held = entry
    if type(name) is not str or not isinstance(held, dict):
        return False
    products, variances = held.get("products"), held.get("variances")
    return (
        isinstance(products, Tensor)
        and isinstance(variances, Tensor)
        and products.is_floating_point()
        and variances.shape == products.shape[:1]
        and products.dim() == 2
        and bool(torch.isfinite(products).all() and torch.isfinite(variances).all())
    )


def outputs_and_errors(trace: PassTrace, losses: Tensor) -> tuple[Tensor, Tensor] | None:
    """The outputs of the network, summed over time, and the losses' mean derivative in them.

    Returns:
        o and e, (N, outputs) each; None if the losses do not depend on what the network returned.
    """
    outputs = [output for output in trace.outputs if output.requires_grad]
    if not outputs or not losses.requires_grad:
        return None
    found = torch.autograd.grad(losses.sum(), outputs, retain_graph=True, allow_unused=True)
    read = [(o, e) for o, e in zip(outputs, found, strict=True) if e is not None]
    trace.outputs = [output for output, _ in read]
    summed = summed_outputs(trace)
    if summed is None:
        return None
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for output, error in read:
        own = error.mean(0) if _comes_in_time(output, trace) else error
        if own.shape[:1] == (trace.rows,):
            by_shape.setdefault(own.shape, []).append(own.reshape(len(own), -1))
    errors = [torch.stack(some).mean(0) for some in by_shape.values()]
    return summed, torch.cat(errors, 1)


def summed_outputs(trace: PassTrace) -> Tensor | None:
    """What the network has returned, summed over time, (N, outputs); None if nothing has rows."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for output in trace.outputs:
        values = output.detach()
        own = values.sum(0) if _comes_in_time(output, trace) else values
        if own.shape[:1] == (trace.rows,):
            by_shape.setdefault(own.shape, []).append(own.reshape(len(own), -1))
    found = [torch.stack(some).sum(0) for some in by_shape.values()]
    return torch.cat(found, 1) if found else None


def _comes_in_time(output: Tensor, trace: PassTrace) -> bool:
    """Whether an output is (T, N, *): T as many as some layer has made steps."""
    steps = {layer.calls for layer in trace.active}
    return output.dim() > 2 and output.shape[1] == trace.rows and output.shape[0] in steps


def _name(timeline: Timeline) -> str:
    return f"{timeline.layer.name} {tuple(timeline.segments[0].shape[1:])}"
