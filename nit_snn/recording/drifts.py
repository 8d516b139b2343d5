"""Drifts that have to be computed step by step, with their local graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dynamics.executor import Moved, Steps
from ..dynamics.lif import MembraneUpdate
from ..validation.passes import warn_of_delayed_reset
from . import thresholds
from .segment import Input, Segment
from .thresholds import Lift
from .trace import LayerTrace


def drift_of(
    layer: LayerTrace,
    update: MembraneUpdate,
    values: Sequence[Tensor],
    inputs: Sequence[Input],
    state: Tensor | None,
    lift: Lift | None,
) -> Tensor:
    """The drift of one step. Its graph leads to all but the synapses that are known.

    Args:
        layer: Whose.
        update: The step, or several of which this is one.
        values: The currents, (N, *).
        inputs: Where they came from.
        state: The membrane that the step starts from, (N, *).
        lift: Its derivative in a threshold that is learned; None if no step has left it.
    """
    own = [
        value if each.source is None else value.detach()
        for each, value in zip(inputs, values, strict=True)
    ]
    if update.rule.delayed and layer.calls and state is not None and state.requires_grad:
        warn_of_delayed_reset(layer.name)
    with torch.enable_grad():
        if layer.threshold is not None:
            return thresholds.drift_of(update.drift, own, state, layer.threshold, lift)
        return update.drift(*own, state)


def one_by_one(
    layer: LayerTrace,
    segment: Segment,
    update: MembraneUpdate,
    state: Tensor | None,
    lift: Lift | None,
) -> Moved:
    """Several steps of such a drift as one segment; arguments as those of `drift_of`."""
    executor, drifts, moves, noises = layer.executor, [], [], []
    assert executor is not None
    for t, call in enumerate(segment.calls):
        with torch.enable_grad():
            values = [current.value[t] for current in update.currents]
        drift = drift_of(layer, update, values, segment.inputs, state, lift)
        one = Steps([call], segment.shape, segment.dtype, False, segment.rule)
        moved = executor.advance(one, drift.detach(), None, None)
        state = moved.state
        lift = None if moved.spikes is None else thresholds.lift_of(segment.rule, moved.spikes)
        drifts.append(drift)
        moves.append(moved)
        noises.append(one.noise)
    kept = [noise for noise in noises if noise is not None]
    segment.noise = torch.stack(kept) if len(kept) == len(noises) else None
    with torch.enable_grad():
        segment.drift = torch.stack(drifts)
    membranes = torch.stack([m.membrane for m in moves if m.membrane is not None])
    spikes = torch.stack([m.spikes for m in moves if m.spikes is not None])
    return Moved(membranes, spikes, moves[-1].state)
