"""Whether a layer never fires, or always, or all losses are equal: it cannot learn then.

A layer that is merely silent in one pass may learn all the same: the density of its noise, or the
credit's surrogate, reaches its membranes. So it is named only where all of them are out of reach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dynamics.firing import OUT_OF_REACH
from ..estimators.estimator import Estimate
from ..recording.census import Census, Count
from ..recording.surrogates import LEAST_WIDTH
from ..recording.trace import LayerTrace, PassTrace
from . import warn
from .capture import being_captured

#: It is looked for in the first passes, and then in every so many.
_FIRST, _EVERY = 2, 100
#: So many spikes of so many possible ones say that a neuron always fires.
_MANY = 10_000
#: Equal losses of so many samples are no accident, such as a 0-1 loss may have in a small batch.
_SAMPLES = 100


class Silence:
    """Looks at some passes, and warns of each layer once."""

    def __init__(self) -> None:
        self._passes = 0
        self._told: set[str] = set()
        self._varied = False
        self._equal = 0

    def census(self) -> Census | None:
        """What counts in the pass that begins; None in most."""
        self._passes += 1
        looks = self._passes <= _FIRST or self._passes % _EVERY == 0
        return Census() if looks and not being_captured() else None

    def check(self, trace: PassTrace, found: Estimate, losses: Tensor) -> None:
        """Warns of what has not been named yet; a GPU is waited for once.

        Args:
            trace: The pass.
            found: What was made of it.
            losses: (C * B,) or (T, C * B).
        """
        watches = not self._varied and not found.reached
        if being_captured() or not losses.numel() or not (watches or trace.census):
            return
        counts = {} if trace.census is None else trace.census.counts
        layers = {layer.name: layer for layer in trace.layers.values()}
        numbers = [*_spreads(losses, trace.replicas)]
        for (name, _), count in counts.items():
            numbers += _looked_at(count, layers[name], layers[name] in found.cheap)
        first, *others = (n.to(losses.device, torch.float32) for n in numbers)
        among_all, among_replicas, *values = torch.stack([first, *others]).tolist()
        if watches:
            self._equal_losses(among_all, losses.shape[-1], trace.replicas)
        silent, always = [], []
        last = next(reversed(counts), ("", None))[0]
        for (name, _), count, own in zip(counts, counts.values(), _fours(values), strict=True):
            layer = layers[name]
            # Its membranes alone may be read.
            speaks = layer not in found.reached and name == last
            speaks = speaks and (among_replicas > 0 or trace.replicas == 1)
            if name in self._told or speaks or layer.read:
                continue
            some, every, below, above = own
            if some == 0 and below > OUT_OF_REACH:
                silent.append(name)
            elif every > 0 and (above > OUT_OF_REACH if count.complete else count.possible > _MANY):
                always.append(name)
        if silent or always:
            self._told.update(silent, always)
            warn.of_silence(dict.fromkeys(silent), dict.fromkeys(always))

    def _equal_losses(self, spread: float, rows: int, replicas: int) -> None:
        self._varied = spread > 0
        before, self._equal = self._equal, self._equal + rows // replicas
        if not self._varied and before < _SAMPLES <= self._equal:
            warn.of_equal_losses(rows)


def _spreads(losses: Tensor, replicas: int) -> tuple[Tensor, Tensor]:
    """The largest difference of losses: among all rows, and among the replicas of a sample."""
    by_replica = losses.reshape(-1, replicas, losses.shape[-1] // replicas)
    own = by_replica.amax(1) - by_replica.amin(1)
    return losses.amax() - losses.amin(), own.amax()


def _looked_at(count: Count, layer: LayerTrace, cheap: bool) -> list[Tensor]:
    """Whether any fired, whether all did, and the nearest membrane's distance either way."""
    width = count.deviation(layer.neuron.sigma)
    if cheap:
        width = torch.maximum(width, LEAST_WIDTH * torch.as_tensor(count.rule.height).to(width))
    return [
        count.some,
        count.every,
        -(count.highest / width).amax(),
        (count.lowest / width).amin(),
    ]


def _fours(values: list[float]) -> list[list[float]]:
    return [values[i : i + 4] for i in range(0, len(values), 4)]
