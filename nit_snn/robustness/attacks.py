"""Attacks by name, with their settings: those of the paper, and those that it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..compat import require
from .nattack import NAttack

#: From images (N, *) in [0, 1] and labels (N,) to attacked images (N, *).
Attack = Callable[[Tensor, Tensor], Tensor]


class _InColour(nn.Module):
    """A model of grey images that is given them in three equal channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.mean(1, keepdim=True))
        return logits


def _translation_invariant(model: nn.Module, **options: float) -> Attack:
    """torchattacks' TIFGSM convolves three channels, no fewer: equal ones move alike."""
    attack = _torchattacks().TIFGSM(_InColour(model), diversity_prob=0.0, **options)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        attacked: Tensor = attack(images.expand(-1, 3, -1, -1).contiguous(), labels)[:, :1]
        return attacked

    return run


def paper_attacks(
    model: nn.Module,
    *,
    eps: float = 0.1,
    alpha: float = 0.01,
    steps: int = 15,
    momentum: float = 0.9,
    iterations: int = 50,
    samples: int = 100,
) -> dict[str, Attack]:
    """The seven attacks of the paper's section 4.1, with its settings.

    FGSM, BIM, PGD, MIM, DIM and TIM are torchattacks', NAttack is `NAttack`. What the paper
    leaves open: MIM, DIM and TIM all have its momentum of 0.9; TIM's input is not diversified (that
    is DIM's idea), its kernel is torchattacks' Gaussian of 15 pixels; DIM resizes to 0.9 with
    probability 0.5; PGD starts at random in the ball; NAttack is as its authors' code has it.

    Args:
        model: From grey images (N, 1, H, W) to logits.
        eps: Radius of the ball.
        alpha: Step size of iterated attacks.
        steps: Their number of steps.
        momentum: That of MIM, DIM and TIM.
        iterations: NAttack's updates.
        samples: Its queries per update.
    """
    torchattacks = _torchattacks()
    iterated = {"eps": eps, "alpha": alpha, "steps": steps}
    moving = {**iterated, "decay": momentum}
    return {
        "FGSM": torchattacks.FGSM(model, eps=eps),
        "BIM": torchattacks.BIM(model, **iterated),
        "PGD": torchattacks.PGD(model, **iterated),
        "MIM": torchattacks.MIFGSM(model, **moving),
        "NAttack": NAttack(model, eps=eps, iterations=iterations, samples=samples),
        "DIM": torchattacks.DIFGSM(model, **moving),
        "TIM": _translation_invariant(model, **moving),
    }


def apgd(model: nn.Module, loss: str, *, eps: float, steps: int, seed: int) -> Attack:
    """AutoAttack's APGD (Croce and Hein 2020), by torchattacks.

    Its randomised version is this for "ce" and "dlr", with gradients averaged over 20 draws: give
    it a `NoisyClassifier(draws=20)`.
    """
    attack: Attack = _torchattacks().APGD(model, eps=eps, steps=steps, loss=loss, seed=seed)
    return attack


def square(model: nn.Module, *, eps: float, queries: int, seed: int) -> Attack:
    """Square (Andriushchenko et al. 2020), by torchattacks: random search by logits alone."""
    attack: Attack = _torchattacks().Square(model, eps=eps, n_queries=queries, seed=seed)
    return attack


def _torchattacks() -> Any:
    return require("torchattacks", extra="robustness")
