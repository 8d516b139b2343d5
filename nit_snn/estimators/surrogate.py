"""The cheap estimate: the credit of each spike alone, as a surrogate gradient has it.

    f_t = g_t phi(b_t) / w_t + E_t f_{t+1}
    E_t = carry (1 - spike_t wiped) + phi(b_t) / w_t * jump(threshold)

The surrogate is the density of the noise that the membrane carries: nu_t, all of its own noise that
has not leaked away, with the standard deviation d_t. It is at least half as wide as the threshold
is high above the rest: `w_t = max(d_t, height / 2)`, `b_t = (threshold - (u_t - nu_t)) / w_t`. A
membrane carries its drift on, but for a spike that wipes it out, and a reset is a jump at the
threshold. g_t is the loss's derivative in the spikes of the replica's own pass. What the loss owes
to more than one spike at a time is left out: the estimate is biased, and has hardly any variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dynamics.firing import without_tails
from ..dynamics.lif import number
from ..recording.timeline import Chunk, Timeline
from ..recording.trace import LayerTrace
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
        density = timeline.surrogate
        gradient, read = credit.gradients(timeline)
        values = gradient * density
        if read is not None:
            values += read * read_factor(timeline, density)
        later = None
        own = surrogate_chain(timeline, density) if timeline.linked else None
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
    """The noise level's: `dp/dsigma = b phi(b) / sigma` and `du/dsigma = nu / sigma`.

    Both hold for all of the noise that a membrane carries, `b` in units of its own deviation, so no
    step is followed to a later one but by its spike.
    """
    rule, sigma = timeline.rule, level.detach().to(gradient.dtype)
    carried = timeline.own_noise[0]
    spiked, left = gradient, torch.zeros_like(gradient)
    if read is not None:
        of_membranes, of_spikes = handed_out(timeline)
        spiked, left = spiked + read * of_spikes, read * of_membranes
    if later is not None and rule.jump is not None:
        spiked = spiked + later * rule.jump(number(rule.threshold))
    smoothed = timeline.smoothed
    moved = spiked * without_tails(smoothed.density) * smoothed.level + left * carried
    return (moved / sigma).sum_to_size(level.shape)
