"""What multiplies the loss: the score of a membrane's noise under each learning rule.

For `u = m + sigma * eps`, `d log p(u) / dm = eps / sigma` and
`d log p(u) / d sigma = (eps^2 - 1) / sigma` (Eq. 8). A score here is kept without its `1 / sigma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..dynamics.firing import Firing
from ..training.saved_state import check, count, number
from ..validation.to_python_scalar import is_whole, plain

NAMES = ("nit", "nit-s")


@dataclass
class Scores:
    """Scores of one draw of noise, or sums over several draws; each of shape (N, *).

    Attributes:
        drift: `eps`, or its mean given the spikes, or `sign(eps)` under NIT-S.
        sigma: `eps^2 - 1`, or its mean given the spikes, if the noise level is learned.
    """

    drift: Tensor
    sigma: Tensor | None

    def __iadd__(self, other: Scores) -> Scores:
        self.drift += other.drift
        if self.sigma is not None and other.sigma is not None:
            self.sigma += other.sigma
        return self


def scores(noise: Tensor, rule: str, learn_sigma: bool) -> Scores:
    """The scores of a draw. Under "nit" the noise itself is handed on, not a copy.

    Args:
        noise: eps, (N, *).
        rule: "nit" (Eq. 8) or "nit-s" (Eq. 3, which takes the sign for the weights alone).
        learn_sigma: Whether the score of the noise level is wanted.
    """
    return Scores(
        sign(noise) if rule == "nit-s" else noise,
        noise.square() - 1 if learn_sigma else None,
    )


def conditional_scores(noise: Tensor, firing: Firing, learn_sigma: bool) -> Scores:
    """The scores' means given the spikes (Rao-Blackwell), for membranes that a spike wipes out.

    With a spike, that is `eps > a`, `E[eps | eps > a] = h(a)` and `E[eps^2 - 1 | eps > a] = a h(a)`
    with the hazard `h(a) = phi(a) / (1 - Phi(a))`; without one, the draw itself lives on in
    the membrane, and its score stays as it is.

    Args:
        noise: eps, (N, *).
        firing: What the neuron did.
        learn_sigma: Whether the score of the noise level is wanted.
    """
    fired = firing.spike != 0
    return Scores(
        torch.where(fired, firing.hazard, noise),
        torch.where(fired, firing.level * firing.hazard, noise.square() - 1)
        if learn_sigma
        else None,
    )


def weighted_score(score: Tensor, weight: Tensor, sigma: Tensor, rule: str = "nit") -> Tensor:
    """What multiplies `dm/dtheta`: `A * eps / sigma`, or `A * sign(eps)` under NIT-S.

    Args:
        score: `Scores.drift`, (N, *).
        weight: A, (N,), the loss minus its baseline over the number of rows.
        sigma: Scalar, or broadcasting to (*).
        rule: "nit" or "nit-s".

    Returns:
        (N, *).
    """
    scale = weight.to(score.dtype).view(-1, *(1,) * (score.dim() - 1))
    return score * (scale if rule == "nit-s" else scale / sigma.to(score.dtype))


def sigma_gradient(score: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 8, second line: `sum A * (eps^2 - 1) / sigma`, in the shape of `sigma`.

    Args:
        score: `Scores.sigma`, (N, *).
        weight: A, (N,).
        sigma: Scalar, or broadcasting to (*); what it is shared by is summed over.
    """
    scale = weight.to(score.dtype).view(-1, *(1,) * (score.dim() - 1))
    return (score * scale).sum_to_size(sigma.shape) / sigma.to(score.dtype)


def sign(x: Tensor) -> Tensor:
    """The sign of Eq. 3: +1 from zero on, -1 below.

    Example:
        >>> sign(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """
    return (x >= 0).to(x.dtype) * 2 - 1


def presynaptic_sign(x: Tensor) -> Tensor:
    """NIT-S's presynaptic factor: spikes 0 and 1 count as -1 and +1, real values by their sign.

    A tensor that holds nothing but zeros and ones is taken for spikes (section 3.3).

    Example:
        >>> presynaptic_sign(torch.tensor([0.0, 1.0, 1.0]))
        tensor([-1.,  1.,  1.])
        >>> presynaptic_sign(torch.tensor([0.0, 0.5, -1.0]))
        tensor([ 1.,  1., -1.])
    """
    if ((x == 0) | (x == 1)).all():
        return 2 * x - 1
    return sign(x)


class Ruled(Protocol):
    """Anything that learns by one of the rules, such as a NITLearner."""

    rule: str


class NITSPlus:
    """The schedule NIT-S+: NIT-S first, then NIT (section 3.2; the paper takes 70 and 30 epochs).

    Call `step` after each epoch, or after each update: that is what it counts.

    Args:
        learner: Its rule is set to "nit-s" now, and to "nit" when the time has come.
        after: Switch after so many steps.
        patience: Switch once the loss that `step` is given has not fallen by a hundredth of its
            best value for so many steps in a row.

    Raises:
        ValueError: Not exactly one of `after` and `patience` is given, or it is not positive.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import NITLearner, swap_neurons
        >>> learner = NITLearner(swap_neurons(snntorch.Leaky(beta=0.9)), replicas=2)
        >>> schedule = NITSPlus(learner, after=2)
        >>> for epoch in range(3):
        ...     print(learner.rule)
        ...     schedule.step()
        nit-s
        nit-s
        nit
    """

    def __init__(
        self, learner: Ruled, *, after: int | None = None, patience: int | None = None
    ) -> None:
        if (after is None) == (patience is None):
            raise ValueError("NITSPlus takes either after= or patience=.")
        counted = after if patience is None else patience
        if counted is None or not is_whole(counted) or counted < 1:
            raise ValueError(
                f"It must be a positive integer, got after={after}, patience={patience}."
            )
        if not hasattr(learner, "rule"):
            raise TypeError(f"NITSPlus takes a NITLearner, got {type(learner).__name__}.")
        self.learner = learner
        self.after, self.patience = plain((after, patience))
        self.steps = 0
        self.best = math.inf
        self.waited = 0
        learner.rule = "nit-s"

    @property
    def switched(self) -> bool:
        """Whether NIT has taken over."""
        if self.after is not None:
            return self.steps >= self.after
        return self.patience is not None and self.waited >= self.patience

    def step(self, loss: float | Tensor | None = None) -> None:
        """Counts one epoch or update, and switches the rule if it was the last under NIT-S.

        Args:
            loss: With `patience`, what is watched, usually a validation loss.

        Raises:
            ValueError: There is no loss, or one that is not finite, where it is needed. The step
                is not counted.
        """
        if not self.switched:
            if self.patience is not None:
                self._watch(loss)
            self.steps += 1
        if self.switched:
            self.learner.rule = "nit"

    def _watch(self, loss: float | Tensor | None) -> None:
        value = _finite(loss)
        if value is None:
            raise ValueError(f"patience= needs a finite loss at each step, got {loss!r}.")
        fell = self.best == math.inf or value < self.best - 0.01 * abs(self.best)
        self.best = min(self.best, value)
        self.waited = 0 if fell else self.waited + 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to switch at the same step."""
        return {"steps": self.steps, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the schedule that gave `state` stopped, and sets the learner's rule.

        Raises:
            CheckpointError: It is no such state; nothing was changed.
        """
        check(state, "schedule", {"steps": count, "best": number, "waited": count})
        self.steps, self.best = state["steps"], state["best"]
        self.waited = state["waited"]
        self.learner.rule = "nit" if self.switched else "nit-s"


def _finite(loss: Any) -> float | None:
    """The loss, if it is one finite number; of a tensor or an array, too."""
    try:
        return float(loss) if math.isfinite(loss) else None
    except (RuntimeError, TypeError, ValueError):
        return None
