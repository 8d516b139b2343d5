"""Checks of an evaluation: does the attack work, or does it only look as if the network did?

What Carlini et al. ("On Evaluating Adversarial Robustness", 2019) and Athalye et al. (2018) ask
for. An evaluation that fails one says nothing about robustness: gradients are masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..inspect.audit.surrogates import rectangle
from ..validation.to_python_scalar import to_python_scalar
from .attacks import paper_attacks
from .defender import Defender
from .eot import EOTPGD, evaluating
from .gradients import gradients
from .inputs import check_radius
from .progress import bar
from .protocols import attacked, black_box, check_images
from .verdict import Verdict, percent

#: Of Square and NAttack.
_QUERIES = {"square_queries": 1000, "query_draws": 1, "seed": 0}
EPSILONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


def check(
    verdict: Verdict,
    defender: Defender,
    images: Tensor,
    labels: Tensor,
    *,
    epsilons: Sequence[float] = EPSILONS,
    progress: bool = False,
) -> None:
    """Adds the checks to a verdict, in place; `verdict.masked` then names those that failed.

    With the protocol's own attack: PGD as in the paper, or EOT-PGD by the gradient that found most.

    - "falls to zero": with growing eps accuracy falls to (nearly) nothing: no more than 5% at the
      largest, which covers all images there are if it is 1. And it never rises on the way.
    - "steps": more steps never help the defender.
    - "draws": nor do more draws in each gradient (adaptive protocol).
    - "black box": NAttack and Square, which see logits alone, find no more than that attack.

    Each comparison allows for two standard errors of a difference of two accuracies at one half.
    `compare` adds one more, between two protocols.

    Args:
        verdict: What `paper` or `adaptive` returned.
        defender: Whom it is about.
        images: (N, 1, H, W), fewer may do.
        labels: (N,).
        epsilons: The radii of the curve, ascending.
        progress: Show a bar.

    Raises:
        TypeError: It is no verdict, no defender, or images and labels are no tensors.
        ValueError: The images are not grey, or not finite and between 0 and 1, labels are no
            classes, or the radii do not ascend. The verdict is as it was.
    """
    labels = check_images(defender, images, labels)
    if not isinstance(verdict, Verdict):
        raise TypeError(f"A Verdict is checked, got {type(verdict).__name__}.")
    epsilons = to_python_scalar(tuple(epsilons))
    if not epsilons:
        raise ValueError("There must be radii for the curve: epsilons is empty.")
    for eps in epsilons:
        check_radius(eps, finite=True)
    if any(b <= a for a, b in pairwise(epsilons)):
        raise ValueError(f"epsilons must ascend, got {epsilons}.")
    adaptive = verdict.protocol == "adaptive"
    judge = defender if adaptive else defender.deciding_by(1)
    settings = verdict.settings
    slack = _slack(len(labels))
    checks: dict[str, Any] = {}  # all or none: a check that is missing looks like one that passed

    def accuracy(eps: float, steps: int, draws: int) -> float:
        made = _attack(verdict, defender, eps, steps, draws)
        shown.update()
        return percent(judge.right(attacked(made, images, labels, eps), labels))

    steps, draws = settings["steps"], settings["draws"]
    with bar(len(epsilons) + 6, "sanity", progress) as shown, evaluating(defender.net):
        curve = {0.0: percent(judge.right(images, labels))}
        curve |= {eps: accuracy(eps, steps, draws) for eps in epsilons}
        values = list(curve.values())
        rises = max((b - a for a, b in pairwise(values)), default=0.0)
        checks["falls to zero"] = {
            "passed": values[-1] <= 5.0 and rises <= slack,
            "curve": [{"eps": eps, "accuracy": value} for eps, value in curve.items()],
        }
        few, many = max(1, steps // 4), 2 * steps
        own = settings["eps"]
        by_steps = {n: accuracy(own, n, draws) for n in (few, many)}
        checks["steps"] = {
            "passed": by_steps[many] <= by_steps[few] + slack,
            "accuracy_by_steps": {str(n): value for n, value in by_steps.items()},
        }
        if adaptive and draws > 1:
            by_draws = {n: accuracy(own, steps, n) for n in (2, 2 * draws)}
            checks["draws"] = {
                "passed": by_draws[2 * draws] <= by_draws[2] + slack,
                "accuracy_by_draws": {str(n): value for n, value in by_draws.items()},
            }
        asked = {**settings, **_QUERIES}
        found = {}
        for name, attack in black_box(judge, asked).items():
            found[name] = percent(judge.right(attacked(attack, images, labels, own), labels))
            shown.update()
        white = curve.get(own, by_steps[many])
        checks["black box"] = {
            "passed": white <= min(found.values()) + slack,
            "white_box": white,
            "accuracy": found,
        }
    verdict.checks.update(checks)


def compare(verdict: Verdict, stronger: Verdict) -> None:
    """Adds the check "stronger attack" to a verdict, in place.

    It fails where another protocol breaks the same network at the same eps, further than chance
    explains: then this protocol's attacks were no measure of robustness, even if they pass all that
    `check` asks of them.

    Args:
        verdict: What `paper` returned.
        stronger: What `adaptive` returned for the same network, eps and images.

    Raises:
        ValueError: They differ in eps or in the number of images.
    """
    own, other = (v.settings["eps"] for v in (verdict, stronger))
    count = len(verdict.robust)
    if own != other or count != len(stronger.robust):
        raise ValueError(
            f"Compare verdicts at one eps and on the same images; these are at {own:g} and "
            f"{other:g}, on {count} and {len(stronger.robust)}."
        )
    verdict.checks["stronger attack"] = {
        "passed": verdict.worst <= stronger.worst + _slack(count),
        "protocol": stronger.protocol,
        "worst": stronger.worst,
    }


def _slack(images: int) -> float:
    """Two standard errors of a difference of two accuracies at one half, in percent."""
    return 200 * math.sqrt(0.5 / max(1, images))


def _attack(
    verdict: Verdict, defender: Defender, eps: float, steps: int, draws: int
) -> Callable[[Tensor, Tensor], Tensor]:
    if verdict.protocol == "paper":
        options = {"surrogate": rectangle(1.0)} if len(gradients(defender)) > 1 else {}
        model = defender.classifier(draws=1, **options)
        return paper_attacks(model, eps=eps, alpha=eps / 10, steps=steps)["PGD"]
    ways: dict[str, Any] = gradients(defender)
    chosen = ways[verdict.settings["gradient_that_found_most"]]
    model = defender.classifier(draws=draws, **chosen)
    return EOTPGD(model, eps=eps, alpha=eps / 10, steps=steps, draws=1, restarts=1, judgements=1)
