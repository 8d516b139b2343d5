"""The cheap estimate: the credit of each spike alone, as a surrogate gradient has it.

    f_t = g_t phi(a_t) / sigma + E_t f_{t+1}
    E_t = carry (1 - s_t wiped) + phi(a_t) / sigma * jump(threshold)

The noise's own density is the surrogate; a membrane carries its drift on, but for a spike that
wipes it out, and a reset is a jump at the threshold. g_t is the loss's derivative in the spikes of
the replica's own pass. What the loss owes to more than one spike at a time is left out: the
estimate is biased, and has hardly any variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dynamics.lif import number
from ..recording.trace import Chunk, LayerTrace, Timeline
from .credit import Credit
from .credit.derivatives import handed_out, read_factor, surrogate_chain
from .scores import LayerCotangents


def cotangents(layer: LayerTrace, credit: Credit, rows: int) -> LayerCotangents:
    """The cheap estimate of a layer whose derivatives were collected.

    Args:
        layer: The layer.
        credit: What has collected them.
        rows: Over how many rows the loss is averaged.
    """
    level = layer.neuron.sigma
    total = torch.zeros_like(level) if level.requires_grad else None
    found: list[Chunk] = []
    for timeline in layer.timelines:
        density = timeline.density
        gradient, read = credit.gradients(timeline)
        values = gradient * density
        if read is not None:
            values += read * read_factor(timeline)
        later = None
        own = surrogate_chain(timeline) if timeline.linked else None
        if own is not None:
            timeline.run_back(values, own)
            later = timeline.later(values) if total is not None else None
        if total is not None:
            total += _of_sigma(timeline, gradient, read, later, level)
        values /= rows
        found.extend(timeline.chunks(values))
    return LayerCotangents(layer, iter(found), None if total is None else total / rows)


def _of_sigma(
    timeline: Timeline, gradient: Tensor, read: Tensor | None, later: Tensor | None, level: Tensor
) -> Tensor:
    """The noise level's: `dp/dsigma = a phi(a) / sigma`, `du/dsigma = eps`."""
    firing, rule = timeline.firing, timeline.rule
    assert firing.noise is not None
    spiked, left = gradient, torch.zeros_like(gradient)
    if read is not None:
        of_membranes, of_spikes = handed_out(timeline)
        spiked, left = spiked + read * of_spikes, read * of_membranes
    if later is not None:
        fall = 0.0 if rule.jump is None else rule.jump(number(rule.threshold))
        kept = 1 - firing.spike if rule.wiped else 1.0
        spiked = spiked + later * fall
        left = left + later * number(rule.carry) * kept
    moved = spiked * timeline.density * firing.level + left * firing.noise.to(left.dtype)
    return moved.flatten(0, 1).sum_to_size(level.shape)
