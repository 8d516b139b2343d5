"""NIT-S+: NIT-S first, then NIT."""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor

from ..training.saved_state import check, count, number
from ..validation.to_python_scalar import is_whole, to_python_scalar


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
        self.after, self.patience = to_python_scalar((after, patience))
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
