"""Two protocols: the paper's, and one that adapts to what it attacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..auditing.surrogates import rectangle
from .attacks import Attack, apgd, paper_attacks, square
from .defender import Defender
from .eot import EOTPGD
from .gradients import gradients
from .nattack import NAttack
from .verdict import Verdict, started


def paper(
    defender: Defender,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.1,
    alpha: float = 0.01,
    steps: int = 15,
    iterations: int = 50,
    samples: int = 100,
    progress: bool = False,
) -> Verdict:
    """The protocol of the paper's section 4.1.

    What it leaves open is settled so: the network is attacked as it decides, with one draw of its
    noise in each call and no average over draws; the gradient goes through its spikes by a
    rectangle of width 1, the surrogate of STBP; an attacked image is judged once, by one draw of
    fresh noise. See `paper_attacks` for the attacks. **This is not a test of robustness**: where no
    membrane comes near its threshold, the gradient that it attacks by is zero. It is here for what
    it hides.

    Args:
        defender: Whom to attack; its own draws and surrogates do not count.
        images: Grey, (N, 1, H, W), in [0, 1].
        labels: (N,).
        eps: Radius of the L-infinity ball.
        alpha: Step size.
        steps: Steps of iterated attacks.
        iterations: NAttack's updates.
        samples: Its queries per update.
        progress: Show a bar.
    """
    judge = defender.deciding_by(1)
    options = {"surrogate": rectangle(1.0)} if len(gradients(defender)) > 1 else {}
    model = judge.classifier(**options)
    settings = {
        "eps": eps,
        "alpha": alpha,
        "steps": steps,
        "nattack": [iterations, samples],
        "surrogate": "rectangle of width 1" if options else "none",
        "draws": 1,
    }
    verdict = started("paper", judge.right(images, labels), settings)
    attacks = paper_attacks(
        model, eps=eps, alpha=alpha, steps=steps, iterations=iterations, samples=samples
    )
    for name, attack in tqdm(attacks.items(), desc="paper", leave=False, disable=not progress):
        verdict.add(name, judge.right(attacked(attack, images, labels, eps), labels))
    return verdict


def adaptive(
    defender: Defender,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.1,
    steps: int = 40,
    draws: int = 20,
    restarts: int = 3,
    apgd_steps: int = 100,
    queries: int = 5000,
    query_draws: int = 1,
    iterations: int = 50,
    samples: int = 100,
    twin: nn.Module | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Verdict:
    """The worst of many attacks, image by image, each told of all that defends.

    EOT-PGD by every gradient of `gradients(defender)`, the likelihood ratio's among them; then by
    the gradient that found most: EOT-PGD from more starts, APGD with cross-entropy and with the
    difference of logits ratio (AutoAttack's randomised version), and the paper's FGSM, BIM, PGD,
    MIM, DIM and TIM, all averaged over draws; NAttack, started where it can move; Square; and
    what was made for a twin. What each finds is judged by fresh noise, by the rule that the
    defender decides by.

    Args:
        defender: Whom to attack.
        images: (N, 1, H, W), in [0, 1].
        labels: (N,).
        eps: Radius of the L-infinity ball.
        steps: Of EOT-PGD, with a step size of eps / 10.
        draws: Draws of the noise in each gradient.
        restarts: Random starts of EOT-PGD by the gradient that found most; by others one.
        apgd_steps: Of APGD.
        queries: Of Square.
        query_draws: Draws of the noise in each query of Square and NAttack.
        iterations: NAttack's updates.
        samples: Its queries per update.
        twin: From images to logits: a network trained otherwise, whose attacked images are tried.
        seed: Of APGD and Square.
        progress: Show a bar.
    """
    noisy = defender.noise and len(gradients(defender)) > 1
    draws = draws if noisy else 1
    settings = {
        "eps": eps,
        "steps": steps,
        "draws": draws,
        "restarts": restarts,
        "apgd_steps": apgd_steps,
        "square_queries": queries,
        "query_draws": query_draws if noisy else 1,
        "nattack": [iterations, samples],
        "judged_by_draws": defender.draws,
        "average": defender.average,
        "seed": seed,
    }
    verdict = started("adaptive", defender.right(images, labels), settings)

    def model(name: str) -> nn.Module:
        return defender.classifier(draws=draws, **ways[name])

    def pgd(target: nn.Module, starts: int = 1) -> Attack:
        return EOTPGD(
            target, eps=eps, alpha=eps / 10, steps=steps, draws=1, restarts=starts, judgements=2
        )

    def judge(name: str, make: Callable[[], Attack]) -> None:
        bar.set_postfix_str(name)
        found = attacked(make(), images, labels, eps)
        verdict.add(name, defender.right(found, labels))
        bar.update()

    ways = gradients(defender)
    with tqdm(total=len(ways) + 11 + (twin is not None), leave=False, disable=not progress) as bar:
        for name in ways:
            judge(f"EOT-PGD, {name}", lambda name=name: pgd(model(name)))  # type: ignore[misc]
        best = min(ways, key=lambda name: verdict.attacks[f"EOT-PGD, {name}"])
        settings["gradient_that_found_most"] = best
        judge(f"EOT-PGD, {restarts} starts", lambda: pgd(model(best), restarts))
        for loss in ("ce", "dlr"):
            judge(
                f"APGD-{loss.upper()}",
                lambda loss=loss: apgd(model(best), loss, eps=eps, steps=apgd_steps, seed=seed),  # type: ignore[misc]
            )
        for name, attack in paper_attacks(model(best), eps=eps).items():
            if name != "NAttack":
                judge(name, lambda attack=attack: attack)  # type: ignore[misc]
        asked = defender.classifier(draws=query_draws if noisy else 1)
        judge(
            "NAttack",
            lambda: NAttack(
                asked, eps=eps, iterations=iterations, samples=samples, border=0.02, lr=0.1
            ),
        )
        judge("Square", lambda: square(asked, eps=eps, queries=queries, seed=seed))
        if twin is not None:
            judge("transfer from a twin", lambda: pgd(twin))
    return verdict


def attacked(attack: Attack, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """What an attack makes of the images; held to the ball and to [0, 1].

    Attacks may leave torch's random numbers where they like: some set seeds. They are put back.
    """
    with torch.random.fork_rng(devices=[]):
        found = attack(images.clone(), labels).detach()
    torch.rand(1)  # and go on from another place than before
    return torch.maximum(torch.minimum(found, images + eps), images - eps).clamp(0, 1)
