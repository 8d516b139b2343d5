"""Conditioning on the spike whatever it was, with the membrane followed pathwise.

All that a loss of spikes knows of a membrane's noise is whether the neuron fired, now and
later. So the draw is taken apart: first the spike, `P(s = 1) = p(m)`, then the noise given the
spike, a truncated normal, `eps = F^-1(U; m, s)` of a uniform U that no parameter touches. The
score is the spike's alone,

    d log P(s) / dm = h(a) / sigma with a spike, -h(-a) / sigma without,

with the hazard `h = phi / (1 - Phi)` and `a = (threshold - m) / sigma`: next to nothing where the
outcome was next to certain. What the membrane `u = m + sigma * eps` carries on is a smooth
function of m, sigma and U, so it is differentiated as such:

    du/dm     = D = 1 - h(b) / h(b_eps)
    du/dsigma = eps - (1 - D) a

with `(b, b_eps) = (a, eps)` after a spike and `(-a, -eps)` otherwise; D lies between 0, at the
threshold, and 1, far from it. A reset to a constant carries nothing on after a spike. A drift's
total derivative is then a local linear recursion, `dm_t = x_t + carry_t D_{t-1} dm_{t-1}`, whose
transpose filters the scores of each neuron backwards: a sum over its own steps, through
no spike and no other neuron. A likelihood ratio on the jumps and a pathwise derivative of what is
smooth: conditional Monte Carlo as in smoothed perturbation analysis (Fu and Hu 1997).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..estimators.scores import Scores
from .firing import Firing, normal_hazard

_RARE = 1e-6


@dataclass(eq=False)
class Carried:
    """How the membrane that a call leaves behind depends on its drift and its noise level.

    Attributes:
        drift: du/dm, (N, *), zero where a spike wiped the membrane out.
        sigma: du/dsigma, likewise, if the noise level is learned.
    """

    drift: Tensor
    sigma: Tensor | None


@dataclass(frozen=True, eq=False)
class Link:
    """What a call's membrane and spike mean to the drift of a later call.

    Attributes:
        origin: The earlier call.
        carry: The later drift's derivative in the membrane that the earlier one left.
        jump: What a spike of the earlier one adds to the later drift, its reset; where it is asked
            for.
    """

    origin: int
    carry: float | Tensor
    jump: float | Tensor = 0.0


def spike_scores(firing: Firing, learn_sigma: bool) -> Scores:
    """The scores of the spikes alone, kept like all `Scores` without their `1 / sigma`."""
    score = firing.side * firing.hazard
    return Scores(score, score * firing.level if learn_sigma else None)


def carried(firing: Firing, noise: Tensor, wiped: bool, learn_sigma: bool) -> Carried:
    """What the membrane carries on of its drift and its noise level.

    Args:
        firing: What the neuron did.
        noise: eps, (N, *).
        wiped: Whether a spike resets the membrane to a constant.
        learn_sigma: Whether the noise level's part is wanted.
    """
    # In exact numbers the share is at most 1, as the noise lies on the spike's side of a.
    share = (firing.hazard / normal_hazard(firing.side * noise)).clamp_(max=1)
    kept = 1 - firing.spike if wiped else None
    sigma = None
    if learn_sigma:
        sigma = noise - share * firing.level
        if kept is not None:
            sigma.mul_(kept)
    drift = share.neg_().add_(1)
    return Carried(drift if kept is None else drift.mul_(kept), sigma)


def wandering(firing: Firing, noise: Tensor, wiped: bool, score: Tensor | None = None) -> Tensor:
    """`eps - E[eps | s]`: what the membrane carries on beyond what its spike tells, over sigma.

    Args:
        firing: What the neuron did.
        noise: eps, (N, *).
        wiped: Whether a spike resets the membrane to a constant.
        score: `E[eps | s]`, the spike's own score, if it is known.
    """
    apart = noise - (firing.side * firing.hazard if score is None else score)
    return apart.addcmul_(apart, firing.spike, value=-1) if wiped else apart


def silent_mean(firing: Firing) -> Tensor:
    """`E[eps | s = 0] = -phi(a) / (1 - p)`, cut off where silence is next to impossible."""
    return firing.density / (firing.probability - 1).clamp_(max=-_RARE)


def gap(firing: Firing) -> Tensor:
    """`E[eps | s = 1] - E[eps | s = 0] = phi(a) / (p (1 - p))`, cut off likewise at both ends."""
    p = firing.probability
    return firing.density / (p * (1 - p)).clamp_(min=_RARE)
