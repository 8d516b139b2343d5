"""Feedback without a backward pass: each layer reads the outputs' errors off its own spikes.

    c = |e| R^T (R f + e / |e|),    R <- R - (R f + e / |e|) f^T / |f|^2

e is the loss's derivative in the network's outputs, |e| its size over batches; f are a layer's
spikes, summed over time, less their mean. The readout R learns to predict -e, which way outputs
should go, by normalised least mean squares (Nagumo & Noda, 1967). c is the derivative of the same
local loss in each spike: a layer learns to show what the outputs lack. Layers that the loss reads
itself keep their exact derivative. Nothing is carried back through hidden layers or through time,
and no weights are transported; the length of c is not that of the loss's own derivative.

Local losses that need labels: Mostafa, Ramesh & Cauwenberghs (2018), Kaiser, Mostafa & Neftci
(2020); these need e alone.
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
from .derivatives import spike_derivatives
from .kinds import Known

#: How slowly the means over batches follow.
_MEMORY = 0.95
_ENTRIES = ("weight", "mean", "size")


@dataclass(eq=False)
class LocalReadout:
    """What a layer's spikes tell of the outputs' errors.

    Attributes:
        weight: R, (outputs, features).
        mean: Of the features, (features,).
        size: The errors' mean square, ().
    """

    weight: Tensor
    mean: Tensor
    size: Tensor

    def to(self, like: Tensor) -> LocalReadout:
        """In the type and on the device of `like`: a file may have come from another."""
        self.weight, self.mean, self.size = (
            x.to(like) for x in (self.weight, self.mean, self.size)
        )
        return self

    def missed(self, features: Tensor, errors: Tensor) -> Tensor:
        """`R f + e / |e|`, (N, outputs), from f, (N, features), and e, (N, outputs)."""
        least = torch.finfo(errors.dtype).tiny
        return (features - self.mean) @ self.weight.T + errors / self.size.clamp(min=least).sqrt()

    def credit(self, features: Tensor, errors: Tensor) -> Tensor:
        """c, (N, features)."""
        return (self.missed(features, errors) @ self.weight) * self.size.sqrt()

    def learn(
        self, features: Tensor, errors: Tensor, heard: Tensor, ranks: Ranks, follow: float
    ) -> None:
        """Takes in what one pass has shown.

        Args:
            features: f, (N, features).
            errors: e, (N, outputs).
            heard: Whether they say anything; else all stays as it is. A GPU is not waited for.
            ranks: Who has other rows.
            follow: The pass's share in the running means.
        """
        before = self.weight, self.mean, self.size
        rows = ranks.sum(features.new_full((), float(len(features))))
        mean = ranks.sum(features.sum(0)) / rows
        size = ranks.sum(errors.square().sum()) / rows
        self.mean, self.size = self.mean.lerp(mean, follow), self.size.lerp(size, follow)
        centred = features - self.mean
        slope = ranks.sum(self.missed(features, errors).T @ centred)
        power = ranks.sum(centred.square().sum())
        weight = self.weight - slope / power.clamp(min=torch.finfo(power.dtype).tiny)
        self.weight, self.mean, self.size = (
            torch.where(heard, new, old)
            for new, old in zip((weight, self.mean, self.size), before, strict=True)
        )


@dataclass(eq=False)
class FeedbackCredit:
    """See `nit_snn.estimators.credit.kinds.Credit`.

    Attributes:
        ranks: Who has other rows of the batch: all learn the same R.
        readouts: By the layer's name and its shape.
    """

    ranks: Ranks = ALONE
    name: str = "feedback"
    reach: str | None = "last"
    learns: bool = True
    readouts: dict[str, LocalReadout] = field(default_factory=dict)
    _errors: Tensor | None = None

    def look(self, trace: PassTrace, losses: Tensor) -> None:
        """The losses' derivative in the outputs."""
        self._errors = output_errors(trace, losses)

    def learn(self, trace: PassTrace) -> None:
        """Takes in a pass, whose estimate must not depend on it."""
        errors, self._errors = self._errors, None
        if errors is None:
            return
        # Errors that overflow say nothing, and would stay for ever.
        heard = self.ranks.sum(errors.square().sum()).isfinite()
        for layer in trace.active:
            if layer.segments[0].node is None or layer.reached or layer.surrogates is None:
                continue
            layer.surrogates.finish()
            for shape, counts in layer.surrogates.counts.items():
                self._learn(_name(layer.name, shape), features_of(counts), errors, heard)

    def _learn(self, name: str, features: Tensor, errors: Tensor, heard: Tensor) -> None:
        shape, held = (errors.shape[1], features.shape[1]), self.readouts.get(name)
        if held is None or held.weight.shape != shape:
            zero = features.new_zeros(())
            held = LocalReadout(features.new_zeros(shape), features.new_zeros(shape[1]), zero)
            self.readouts[name] = held
            held.learn(features, errors.to(features), heard, self.ranks, 1.0)
        else:
            follow = 1 - _MEMORY
            held.to(features).learn(features, errors.to(features), heard, self.ranks, follow)

    def reaches(self, layer: LayerTrace) -> bool:
        return layer.reached or self._errors is not None

    def sent(self, layer: LayerTrace, shape: torch.Size) -> Tensor:
        """c of each spike, the same at all steps, (N, *); zero while nothing is known."""
        assert layer.surrogates is not None
        return self._of(layer.name, layer.surrogates.counts[shape])

    def _of(self, layer: str, counts: Tensor) -> Tensor:
        """The same, from how often each neuron of a layer has fired, (N, *)."""
        held = self.readouts.get(_name(layer, counts.shape))
        features = features_of(counts)
        if self._errors is None or held is None:
            return torch.zeros_like(counts)
        errors = self._errors.to(features)
        if held.weight.shape != (errors.shape[1], features.shape[1]):
            return torch.zeros_like(counts)
        return spread(held.to(features).credit(features, errors), counts)

    def known(self, timeline: Timeline, conditioned: bool) -> Known:
        """The exact derivative of layers that the losses read, for all others what is sent."""
        if timeline.layer.reached:
            return Known(spike_derivatives(timeline))
        spikes = timeline.spike
        return Known(self._of(timeline.layer.name, spikes.sum(0)).expand_as(spikes))

    def state_dict(self) -> dict[str, Any]:
        """What was learned so far."""
        readouts = {
            name: {entry: getattr(held, entry).clone() for entry in _ENTRIES}
            for name, held in self.readouts.items()
        }
        return {"readouts": readouts}

    def fits(self, state: Any) -> bool:
        """Whether `state` is one of such a credit."""
        if not isinstance(state, dict) or not isinstance(state.get("readouts"), dict):
            return False
        return all(map(_is_readout, state["readouts"].items()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what `state` had learned; it has to fit."""
        self.readouts = {
            name: LocalReadout(*(held[entry].clone() for entry in _ENTRIES))
            for name, held in state["readouts"].items()
        }


def _is_readout(entry: tuple[Any, Any]) -> bool:
    name, held = entry
    if type(name) is not str or not isinstance(held, dict):
        return False
    values = [held.get(entry) for entry in _ENTRIES]
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in values):
        return False
    weight, mean, size = (torch.as_tensor(x) for x in values)
    shapes = weight.dim() == 2 and mean.shape == weight.shape[1:] and size.shape == ()
    return shapes and all(bool(x.isfinite().all()) for x in (weight, mean, size))


def features_of(counts: Tensor) -> Tensor:
    """f, (N, features): spikes summed over time, (N, *), and over pairs of positions in maps."""
    return _in_pairs(counts).flatten(1)


def _in_pairs(maps: Tensor) -> Tensor:
    """(N, C, H, W, *) with positions summed two by two; anything else as it is."""
    if maps.dim() < 4:
        return maps
    for place in range(2, maps.dim()):
        odd = maps.shape[place] % 2
        if odd:
            beyond = list(maps.shape)
            beyond[place] = 1
            maps = torch.cat([maps, maps.new_zeros(beyond)], place)
        maps = maps.unflatten(place, (-1, 2)).sum(place + 1)
    return maps


def spread(credit: Tensor, like: Tensor) -> Tensor:
    """c of each spike, in the shape of `like`, (N, *), from c of the features, (N, features)."""
    if like.dim() < 4:
        return credit.view(like.shape)
    sizes = like.shape[2:]
    found = credit.view(*like.shape[:2], *((size + 1) // 2 for size in sizes))
    for place, size in enumerate(sizes, start=2):
        found = found.repeat_interleave(2, place).narrow(place, 0, size)
    return found


def output_errors(trace: PassTrace, losses: Tensor) -> Tensor | None:
    """e, (N, outputs): the losses' derivative in what the network returned, averaged over time.

    Returns:
        None if the losses do not depend on what the network returned.
    """
    outputs = [output for output in trace.outputs if output.requires_grad]
    if not outputs or not losses.requires_grad:
        return None
    found = torch.autograd.grad(losses.sum(), outputs, retain_graph=True, allow_unused=True)
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for output, error in zip(outputs, found, strict=True):
        if error is None:
            continue
        own = error.mean(0) if _comes_in_time(output, trace) else error
        if own.shape[:1] == (trace.rows,):
            by_shape.setdefault(own.shape, []).append(own.reshape(len(own), -1))
    errors = [torch.stack(some).mean(0) for some in by_shape.values()]
    return torch.cat(errors, 1) if errors else None


def _comes_in_time(output: Tensor, trace: PassTrace) -> bool:
    """Whether an output is (T, N, *): T as many as some layer has made steps."""
    steps = {layer.calls for layer in trace.active}
    return output.dim() > 2 and output.shape[1] == trace.rows and output.shape[0] in steps


def _name(layer: str, shape: torch.Size) -> str:
    return f"{layer} {tuple(shape[1:])}"
