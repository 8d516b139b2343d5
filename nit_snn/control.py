"""Control variates: what the loss's own derivative already explains of its variation.

Where the loss has a derivative `g` in the spikes, most of its variation with those spikes is linear
and known. With `p = P(spike | past)`, each `s - p` is a martingale difference, so
for any coefficient `c` that does not depend on the replica's own noise

    L      ->  L - sum c (s - p)
    dL/dm  ->  dL/dm + c phi(a) / sigma,     a = (threshold - m) / sigma

leaves the expected gradient as it is: the score of every other membrane is uncorrelated with
`s - p`, and with its own it has covariance `phi(a) / sigma`, which is put back. Under NIT-S the
score is the noise's sign, whose covariance with `s - p` is `Q(|a|)`, the smaller of p and 1 - p.
The coefficient is the mean of `g` over the other replicas of the sample.

Control "readout" takes `g` in the spikes that the loss reads itself. Control "network" follows it
further, from layer to layer through the derivative `phi(a) / sigma` of the firing probability,
within each time step: a coefficient for every layer, as in MuProp (Gu et al. 2016), which takes it
from the mean-field network. Whatever that leaves out, the likelihood ratio puts back: the
estimate stays unbiased, however good or bad a coefficient is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .baselines import Sharing, mean_of_others
from .firing import Firing

NAMES = ("none", "readout", "network")


@dataclass(eq=False)
class FiringRecord:
    """What one layer's spikes were, and how likely, call by call; each entry (N, *).

    Attributes:
        follows: Whether derivatives are followed through the firing probability.
        signed: Whether the rule is NIT-S.
        residuals: s - p.
        densities: phi(a) / sigma, the derivative of p in the drift.
        levels: a, so that `a phi(a) / sigma` is the derivative of p in sigma.
        covariances: Of s and the score of the drift.
        gradients: The loss's derivative in the spikes, per emission, once collected.
        collecting: Whether a backward pass is to collect them, or to be stopped.
    """

    follows: bool = False
    signed: bool = False
    residuals: list[Tensor] = field(default_factory=list)
    densities: list[Tensor] = field(default_factory=list)
    levels: list[Tensor] = field(default_factory=list)
    covariances: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    collecting: bool = False
    _drifts: list[Tensor] = field(default_factory=list)
    _shapes: list[tuple[torch.Size, int, int]] = field(default_factory=list)

    def add(self, firing: Firing, sigma: Tensor, drift: Tensor) -> None:
        """Remembers one call.

        Args:
            firing: What the layer did.
            sigma: Scalar, or broadcasting to (*).
            drift: m, (N, *), with its local graph.
        """
        self.residuals.append(firing.residual)
        self.densities.append(firing.density / sigma)
        self.levels.append(firing.level)
        self.covariances.append(firing.lesser if self.signed else self.densities[-1])
        if self.follows:
            self._drifts.append(drift)

    def emit(self, spikes: Tensor, anchor: Tensor) -> Tensor:
        """The spikes of all calls since the last, with a graph for whatever reads them.

        Args:
            spikes: (N, *), or (T, N, *) for T calls.
            anchor: A scalar that every emission leads to, so that a backward pass to it visits all.
        """
        first, last = sum(n for *_, n in self._shapes), len(self.residuals)
        self._shapes.append((spikes.shape, first, last - first))
        self.gradients.append(None)
        drift = None
        if any(d.requires_grad for d in self._drifts):
            many = spikes.dim() > self.residuals[-1].dim()
            with torch.enable_grad():
                drift = torch.stack(self._drifts) if many else self._drifts[-1]
        self._drifts = []
        with torch.enable_grad():
            return _Emission.apply(spikes, drift, anchor, self, len(self.gradients) - 1)  # type: ignore[no-any-return, no-untyped-call]

    def derivative(self, emission: int) -> Tensor:
        """phi(a) / sigma of an emission, in the shape of its spikes."""
        shape, first, calls = self._shapes[emission]
        many = self.densities[first : first + calls]
        return (torch.stack(many) if calls > 1 else many[0]).reshape(shape)

    def by_call(self) -> list[Tensor]:
        """The collected derivatives, call by call, zero where the loss reads nothing."""
        found: list[Tensor] = []
        for gradient, (shape, _, calls) in zip(self.gradients, self._shapes, strict=True):
            like = self.residuals[0]
            whole = like.new_zeros(shape) if gradient is None else gradient.to(like.dtype)
            found += whole.reshape(calls, *like.shape).unbind(0)
        return found


class _Emission(torch.autograd.Function):
    """Spikes with a graph that only a collecting backward pass gets through."""

    @staticmethod
    def forward(
        ctx: Any,
        spikes: Tensor,
        drift: Tensor | None,
        anchor: Tensor,
        record: FiringRecord,
        number: int,
    ) -> Tensor:
        ctx.record, ctx.number, ctx.follows = record, number, drift is not None
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        record: FiringRecord = ctx.record
        further = None
        if record.collecting:
            record.gradients[ctx.number] = gradient
            if ctx.follows:
                further = gradient * record.derivative(ctx.number).to(gradient.dtype)
        return None, further, torch.zeros(()), None, None


def collect(losses: Tensor, records: list[FiringRecord], anchor: Tensor) -> None:
    """One backward pass from the losses to every emission of spikes; it writes to no `.grad`."""
    for record in records:
        record.collecting = True
    try:
        torch.autograd.grad(losses.sum(), anchor, retain_graph=True, allow_unused=True)
    finally:
        for record in records:
            record.collecting = False


def coefficients(record: FiringRecord, replicas: int, sharing: Sharing) -> list[Tensor]:
    """c for each call, (N, *): the mean of g over the other replicas of the same sample.

    Args:
        record: The layer's record, after `collect`.
        replicas: C.
        sharing: Whose noise depends on whose: they are left out, too.
    """
    return [
        mean_of_others(g.unflatten(0, (replicas, -1)), sharing).flatten(0, 1)
        for g in record.by_call()
    ]


def explained(record: FiringRecord, coefficients: list[Tensor]) -> Tensor:
    """`sum c (s - p)` of each row, (N,)."""
    terms = [(c * r).flatten(1).sum(1) for c, r in zip(coefficients, record.residuals, strict=True)]
    return torch.stack(terms).sum(0)


def explained_of_others(record: FiringRecord, replicas: int, sharing: Sharing) -> Tensor | None:
    """What the baseline is lowered by: the mean over the other replicas of `sum c (s - p)`, (N,).

    The losses that a leave-one-out baseline averages vary for the same reasons as the loss itself,
    so the control variate belongs to each of them, too. Their coefficients leave out both
    replicas, so that the baseline of replica r depends on nothing of r:

        sum_{r' != r} (G - g_r - g_r') d_r' = (G - g_r) (D - d_r) - sum_{r' != r} g_r' d_r'

    with d = s - p, and the sums G and D over all replicas. None if there are too few of them.
    """
    size = sharing.size(replicas)
    others, both = replicas - size, replicas - 2 * size
    if both < 1:
        return None
    total: Tensor | None = None
    for gradient, residual in zip(record.by_call(), record.residuals, strict=True):
        g, d = gradient.view(replicas, -1, *gradient.shape[1:]), residual.view_as(gradient)
        d = d.view_as(g)
        own_g, own_d = sharing.own(g), sharing.own(d)
        cross = ((g.sum(0) - own_g) * (d.sum(0) - own_d)).flatten(2).sum(2)
        each = (own_g * d).flatten(2).sum(2)
        found = cross - (each.sum(0) - sharing.own(each))
        total = found if total is None else total + found
    return None if total is None else total.flatten() / (both * others)
