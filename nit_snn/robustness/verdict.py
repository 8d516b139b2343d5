"""What an evaluation found, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Verdict:
    """Accuracies in percent; the tensors are (N,), one entry for each image.

    Attributes:
        protocol: "paper" or "adaptive".
        clean: Accuracy on the images as they are.
        attacks: Accuracy under each attack alone.
        worst: Accuracy under the worst of them, image by image.
        worst_by_chance: What the worst case of as many judgements is on images as they are.
        robust: Which images are classified correctly as they are, and under every attack.
        settings: What was used.
        checks: What the sanity checks found; see `nit_snn.robustness.sanity`.
    """

    protocol: str
    clean: float
    attacks: dict[str, float] = field(default_factory=dict)
    worst: float = 0.0
    worst_by_chance: float = 0.0
    robust: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    settings: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def masked(self) -> list[str]:
        """The sanity checks that failed, by name; the accuracies are not to be believed then."""
        return [name for name, check in self.checks.items() if not check["passed"]]

    def add(self, name: str, right: Tensor) -> None:
        """Notes which images were classified correctly under an attack."""
        self.attacks[name] = percent(right)
        self.robust = self.robust & right
        self.worst = percent(self.robust)

    def row(self, method: str) -> dict[str, Any]:
        """For a table of results."""
        return {
            "method": method,
            "protocol": self.protocol,
            "clean": self.clean,
            "attacks": self.attacks,
            "worst": self.worst,
            "worst_by_chance": self.worst_by_chance,
            "masked": self.masked,
            "checks": self.checks,
            "settings": self.settings,
        }


def percent(right: Tensor) -> float:
    return round(100 * float(right.float().mean()), 3) if len(right) else 0.0


def started(protocol: str, right: Tensor, settings: dict[str, Any]) -> Verdict:
    """A verdict that knows the clean accuracy alone."""
    clean = percent(right)
    return Verdict(protocol, clean, worst=clean, robust=right, settings=settings)
