"""What a control variate's coefficients are, and what it explains of each loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics.backend import is_native
from ..dynamics.compiled.arguments import fits
from ..dynamics.compiled.settle import explain
from .baselines import INDEPENDENT, Sharing, mean_of_others, sum_over_first


@dataclass(frozen=True, eq=False)
class Settled:
    """What came of an entry.

    Attributes:
        factors: c, as the entry's residuals.
        explained: What is explained of each row's loss less what is explained of its baseline,
            (C * B,).
    """

    factors: Tensor
    explained: Tensor


@dataclass(frozen=True, eq=False)
class Entry:
    """What was collected for a call, (N, *), or a sequence of calls, (N, T, *).

    Attributes:
        residual: s - p.
        gradient: The loss's derivative in the spikes; None if it does not depend on them.
        membrane: Its derivative in the membranes that are left behind, likewise.
        wandering: How these wandered from their means, if time is followed.
        settled: What has come of it already.
    """

    residual: Tensor
    gradient: Tensor | None = None
    membrane: Tensor | None = None
    wandering: Tensor | None = None
    settled: Settled | None = None


def settle(
    entries: Iterable[Entry], replicas: int, sharing: Sharing
) -> tuple[list[Tensor], Tensor]:
    """The coefficients, and what they explain of each row's loss and of its baseline.

    c, the coefficient of a spike, is the mean of g over the other replicas of the same sample. Of
    the loss it explains `sum c (s - p)`, and with it `sum c (u - E[u | s])`, with the loss's
    derivative in the membranes as c: given the spike, what is left of a membrane's noise has mean
    zero and nothing to do with a score that is the spike's alone, so nothing need be put back.

    The losses that a leave-one-out baseline averages vary for the same reasons as the loss itself,
    so the control variate belongs to each of them, too. Their coefficients leave out both
    replicas, so that the baseline of replica r depends on nothing of r:

        sum_{r' != r} (G - g_r - g_r') d_r' = (G - g_r) (D - d_r) - sum_{r' != r} g_r' d_r'

    with d = s - p (or the membrane's wandering), and the sums G and D over all replicas. With too
    few of them the baseline stays as it is.

    Args:
        entries: What was collected for a layer.
        replicas: C.
        sharing: Whose noise depends on whose: they are left out, too.

    Returns:
        c for each entry, and what is explained of each row's loss less what is explained of its
        baseline, (N,).
    """
    native = sharing == INDEPENDENT and replicas > 1 and is_native()
    settled = [
        entry.settled
        or (_natively(entry, replicas) if native else None)
        or _settled(entry, replicas, sharing)
        for entry in entries
    ]
    factors, (first, *others) = [s.factors for s in settled], [s.explained for s in settled]
    return factors, sum(others, first)


def _settled(entry: Entry, replicas: int, sharing: Sharing) -> Settled:
    gradient, residual = _known(entry.gradient, entry.residual), entry.residual
    g, d = (x.unflatten(0, (replicas, -1)) for x in (gradient, residual))
    factors = mean_of_others(g, sharing).flatten(0, 1)
    found = _explained(g, d, sharing)
    if entry.membrane is not None and entry.wandering is not None:
        pair = (entry.membrane.to(entry.wandering.dtype), entry.wandering)
        g, d = (x.unflatten(0, (replicas, -1)) for x in pair)
        found = found + _explained(g, d, sharing)
    return Settled(factors, found.flatten())


def _natively(entry: Entry, replicas: int) -> Settled | None:
    """The same for replicas that share no noise; None where it has to go by torch."""
    gradient, residual, wandering = (
        _known(entry.gradient, entry.residual),
        entry.residual,
        entry.wandering,
    )
    pairs = [(gradient, residual)]
    if entry.membrane is not None and wandering is not None:
        pairs.append((entry.membrane, wandering))
    # All of an entry's tensors are read in one order, whatever order each of them is in.
    single = residual.is_contiguous()
    known = [[_steps_first(x, single).contiguous() for x in pair] for pair in pairs]
    if not residual.numel() or not all(fits(*pair) for pair in known):
        return None
    factors = torch.empty_like(known[0][1])
    rows = torch.zeros(len(gradient), dtype=torch.float64, device="cpu")
    for number, (g, d) in enumerate(known):
        explain(g, d, rows, replicas, None if number else factors)
    return Settled(factors[0] if single else factors.transpose(0, 1), rows.to(gradient.dtype))


def _known(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Zero where nothing reads the spikes."""
    return torch.zeros_like(like) if gradient is None else gradient.to(like.dtype)


def _steps_first(entry: Tensor, single: bool) -> Tensor:
    """What is known of a call, (N, *), or of a sequence, (N, T, *), as (T, N, *).

    A sequence's steps may be taken for neurons: none of them counts for another.
    """
    return entry[None] if single else entry.transpose(0, 1)


def _explained(g: Tensor, d: Tensor, sharing: Sharing) -> Tensor:
    """What `c d` explains of each row's loss less that of its baseline, (C, B); see `settle`.

    Multiplied out, so that sums over all replicas take the place of those over all others:
    `(G - g_r) d_r = G d_r - g_r d_r`, and `(G - g_r) (D - d_r) = G D - G d_r - g_r D + g_r d_r`.

    Args:
        g: (C, B, *).
        d: (C, B, *).
        sharing: Whose noise depends on whose: g_r and d_r are sums over these, but in `c d_r`.
    """
    replicas = len(g)
    size = sharing.size(replicas)
    others, both = replicas - size, replicas - 2 * size
    own_g = sharing.groups(g)
    all_g = sum_over_first(own_g)
    with_all = _dot(all_g, d)
    own = _dot(own_g, sharing.groups(d))
    alone = own if size == 1 else _dot(sharing.spread(own_g, replicas), d)
    found = (with_all - alone) / others
    if both > 0:
        all_d = sum_over_first(sharing.groups(d))
        rest = _dot(all_g, all_d) - sharing.groups(with_all) - _dot(own_g, all_d) + own
        of_others = rest - (own.sum(0) - own)
        found -= sharing.spread(of_others, replicas) / (both * others)
    return found


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products over all but the first two dimensions."""
    return (x * y).sum(tuple(range(2, x.dim()))) if x.dim() > 2 else x * y
