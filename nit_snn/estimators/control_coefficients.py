"""A credit as a control variate: its coefficients, and what it explains of each loss.

With `p = P(spike | past)`, each `s - p` is a martingale difference, so for any coefficient c that
does not depend on the replica's own noise

    L      ->  L - sum c (s - p)
    dL/dm  ->  dL/dm + c phi(a) / sigma,     a = (threshold - m) / sigma

leaves the expected gradient as it is: the score of every other membrane is uncorrelated with
`s - p`, and with its own it has covariance `phi(a) / sigma`, which is put back. The coefficient of
a replica is the mean of the derivative over the other replicas of its sample.

The same holds for what membranes carry on, `sum c (u - E[u | s])`, with the derivative in the
membranes as c: given the spike, what is left of a membrane's noise has mean zero and nothing to do
with a score that is the spike's alone, so nothing need be put back.
"""

from __future__ import annotations

from torch import Tensor

from ..recording.orders import Order
from ..recording.timeline import Timeline
from .baselines import Sharing, mean_of_others, sum_over_first
from .credit import Known


def coefficients(
    timeline: Timeline, known: Known, order: Order, sharing: Sharing
) -> tuple[Tensor, Tensor]:
    """The coefficients, and what they explain of each row's loss and of its baseline.

    The losses that a leave-one-out baseline averages vary for the same reasons as the loss itself,
    so the control variate belongs to each of them, too. Their coefficients leave out both
    replicas, so that the baseline of replica r depends on nothing of r:

        sum_{r' != r} (G - g_r - g_r') d_r' = (G - g_r) (D - d_r) - sum_{r' != r} g_r' d_r'

    with d = s - p (or the membrane's wandering), and the sums G and D over all replicas. With too
    few of them the baseline stays as it is.

    Args:
        timeline: What a layer did.
        known: What the loss owes to it.
        order: How the layer's rows lie.
        sharing: Whose noise depends on whose: they are left out, too.

    Returns:
        c, (T, N, *), and what is explained of each loss less what is explained of its baseline,
        (C * B,).
    """
    residual = timeline.firing.residual
    g, d = (_by_replica(x, order) for x in (known.spikes, residual))
    found = explained(g, d, sharing)
    factors = order.ungroup(mean_of_others(g, sharing)).transpose(0, 1)
    if known.membranes is not None and known.wandering is not None:
        g, d = (_by_replica(x, order) for x in (known.membranes, known.wandering))
        found = found + explained(g, d, sharing)
    return factors, found.flatten()


def _by_replica(values: Tensor, order: Order) -> Tensor:
    """(T, N, *) as (C, B, T, *), or as (C, B, k, T, *) of k rows each."""
    return order.group(values.transpose(0, 1))


def explained(g: Tensor, d: Tensor, sharing: Sharing) -> Tensor:
    """What `c d` explains of each row's loss less that of its baseline, (C, B).

    Multiplied out, so that sums over all replicas take the place of those over all others:
    `(G - g_r) d_r = G d_r - g_r d_r`, and `(G - g_r) (D - d_r) = G D - G d_r - g_r D + g_r d_r`.

    Args:
        g: (C, B, *).
        d: (C, B, *).
        sharing: Whose noise depends on whose: g_r and d_r are sums over these, but in `c d_r`.
    """
    replicas, size = len(g), sharing.size
    others, both = replicas - size, replicas - 2 * size
    own_g = sharing.groups(g)
    all_g = sum_over_first(own_g)
    with_all = _dot(all_g, d)
    own = _dot(own_g, sharing.groups(d))
    alone = own if size == 1 else _dot(sharing.spread(own_g), d)
    found = (with_all - alone) / others
    if both > 0:
        all_d = sum_over_first(sharing.groups(d))
        rest = _dot(all_g, all_d) - sharing.groups(with_all) - _dot(own_g, all_d) + own
        of_others = rest - (own.sum(0) - own)
        found -= sharing.spread(of_others) / (both * others)
    return found


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products over all but the first two dimensions."""
    return (x * y).sum(tuple(range(2, x.dim()))) if x.dim() > 2 else x * y
