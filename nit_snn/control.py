"""A control variate from the readout: what the loss's own derivative already explains.

Where the loss has a derivative `g` in the spikes that it reads, most of its variation with those
spikes is linear and known. With `p = P(spike | past)`, each `s - p` is a martingale difference, so
for any coefficient `c` that does not depend on the replica's own noise

    L      ->  L - sum c (s - p)
    dL/dm  ->  dL/dm + c phi(a) / sigma,     a = (threshold - m) / sigma

leaves the expected gradient as it is: the score of every other membrane is uncorrelated with
`s - p`, and with its own it has covariance `phi(a) / sigma`, which is put back. The coefficient
here is the mean of `g` over the other replicas of the sample (compare MuProp, Gu et al. 2016, whose
coefficient comes from backpropagation through the whole network; this one sees the readout only).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .baselines import mean_of_others


@dataclass(eq=False)
class FiringRecord:
    """What one layer's spikes were, and how likely, call by call; each entry (N, *).

    Attributes:
        emitted: The spikes as the loss may read them, leaves with a gradient; one per call, or
            one of (T, N, *) for T calls.
        residuals: s - p.
        densities: phi(a) / sigma, the derivative of p in the drift.
        levels: a, so that `a phi(a) / sigma` is the derivative of p in sigma.
    """

    emitted: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    densities: list[Tensor] = field(default_factory=list)
    levels: list[Tensor] = field(default_factory=list)

    def add(self, spike: Tensor, level: Tensor, sigma: Tensor) -> None:
        """Remembers one call.

        Args:
            spike: bool, (N, *).
            level: a, (N, *).
            sigma: Scalar, or broadcasting to (*).
        """
        self.residuals.append(spike.to(level.dtype) - torch.special.ndtr(-level))
        self.densities.append((-0.5 * level.square()).exp() / (math.sqrt(2 * math.pi) * sigma))
        self.levels.append(level)

    def emit(self, spikes: Tensor) -> Tensor:
        """The spikes with a gradient of their own, for whatever reads them."""
        leaf = spikes.detach().requires_grad_()
        self.emitted.append(leaf)
        return leaf


def coefficients(
    record: FiringRecord, gradients: list[Tensor], replicas: int, antithetic: bool
) -> list[Tensor]:
    """c for each call, (N, *): the mean of g over the other replicas of the same sample.

    Args:
        record: The layer's record.
        gradients: g of each entry of `record.emitted`.
        replicas: C.
        antithetic: Leave out the partner too.
    """
    calls: list[Tensor] = []
    for gradient in gradients:
        multi_step = gradient.dim() > record.residuals[0].dim()
        calls += gradient.unbind(0) if multi_step else [gradient]
    return [mean_of_others(g.unflatten(0, (replicas, -1)), antithetic).flatten(0, 1) for g in calls]


def explained(record: FiringRecord, coefficients: list[Tensor]) -> Tensor:
    """`sum c (s - p)` of each row, (N,)."""
    terms = [(c * r).flatten(1).sum(1) for c, r in zip(coefficients, record.residuals, strict=True)]
    return torch.stack(terms).sum(0)
