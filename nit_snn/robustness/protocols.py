"""Two protocols: the paper's, and one that adapts to what it attacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..compat import cuda_devices
from ..inspect.audit.surrogates import rectangle
from ..neurons.base import check_module, noisy_neurons
from ..validation.to_python_scalar import to_python_scalar
from .attacks import Attack, apgd, paper_attacks, square
from .chance import worst_by_chance
from .defender import Defender
from .eot import EOTPGD, evaluating
from .gradients import gradients
from .inputs import check_counts, check_numbers, check_pixels, check_radius, checked_labels
from .nattack import NAttack
from .progress import bar
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

    Raises:
        TypeError: It is no defender, or images and labels are no tensors.
        ValueError: The images are not grey, or not finite and between 0 and 1, labels are no
            classes, or a number is out of range. Nothing was attacked.
    """
    labels = check_images(defender, images, labels)
    check_radius(eps, finite=True)
    check_radius(alpha, finite=True, name="alpha")
    check_counts(steps=steps)
    check_counts(2, samples=samples)
    check_counts(0, iterations=iterations)
    eps, alpha, steps = to_python_scalar((eps, alpha, steps))
    iterations, samples = to_python_scalar((iterations, samples))
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
    with bar(len(attacks), "paper", progress) as shown, evaluating(defender.net):
        for name, attack in attacks.items():
            verdict.add(name, judge.right(attacked(attack, images, labels, eps), labels))
            shown.update()
    verdict.worst_by_chance = worst_by_chance(judge, images, labels, 1 + len(verdict.attacks))
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
    """The worst of many attacks, image by image, each given all that defends.

    EOT-PGD by every gradient of `gradients(defender)`, the likelihood ratio's among them; then by
    the gradient that found most: EOT-PGD from more starts, and the paper's FGSM, BIM, PGD, MIM, DIM
    and TIM, all averaged over draws; and what was made for a twin. The images that have survived
    all this then meet what takes long: APGD with cross-entropy and with the difference of logits
    ratio (AutoAttack's randomised version), NAttack, started where it can move, and Square. Under
    these the accuracy that is given counts all others as lost ("on survivors"). What each
    finds is judged by fresh noise, by the rule that the defender decides by.

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

    Raises:
        TypeError: It is no defender, or images and labels are no tensors.
        ValueError: The images are not grey, or not finite and between 0 and 1, labels are no
            classes, or a number is out of range. Nothing was attacked.
    """
    labels = check_images(defender, images, labels)
    check_radius(eps, finite=True)
    check_counts(steps=steps, draws=draws, restarts=restarts, apgd_steps=apgd_steps)
    check_counts(queries=queries, query_draws=query_draws)
    check_counts(2, samples=samples)
    check_counts(0, iterations=iterations, seed=seed)
    if twin is not None:
        check_module(twin)
    eps, steps, draws, restarts = to_python_scalar((eps, steps, draws, restarts))
    apgd_steps, queries, query_draws = to_python_scalar((apgd_steps, queries, query_draws))
    iterations, samples, seed = to_python_scalar((iterations, samples, seed))
    noisy = defender.noise and bool(noisy_neurons(defender.net))
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

    def judge(name: str, attack: Attack, survivors: bool = False) -> None:
        shown.set_postfix_str(name)
        rows = verdict.robust if survivors else torch.ones_like(verdict.robust)
        right = torch.zeros_like(rows)
        found = attacked(attack, images[rows], labels[rows], eps)
        right[rows] = defender.right(found, labels[rows])
        verdict.add(f"{name}, on survivors" if survivors else name, right)
        shown.update()

    ways = gradients(defender)
    total = len(ways) + 11 + (twin is not None)
    with bar(total, "adaptive", progress) as shown, evaluating(defender.net):
        for name in ways:
            judge(f"EOT-PGD, {name}", pgd(model(name)))
        best = min(ways, key=lambda name: verdict.attacks[f"EOT-PGD, {name}"])
        settings["gradient_that_found_most"] = best
        judge(f"EOT-PGD, {restarts} starts", pgd(model(best), restarts))
        for name, attack in paper_attacks(model(best), eps=eps).items():
            if name != "NAttack":
                judge(name, attack)
        if twin is not None:
            judge("transfer from a twin", pgd(twin))
        with torch.no_grad():
            classes = defender.classifier(draws=1)(images[:1]).shape[1]
        for loss in ("ce", "dlr") if classes > 2 else ("ce",):  # DLR is a matter of three
            attack = apgd(model(best), loss, eps=eps, steps=apgd_steps, seed=seed)
            judge(f"APGD-{loss.upper()}", attack, survivors=True)
        for name, attack in black_box(defender, settings).items():
            judge(name, attack, survivors=True)
    verdict.worst_by_chance = worst_by_chance(defender, images, labels, 1 + len(verdict.attacks))
    return verdict


def check_images(defender: Defender, images: Tensor, labels: Tensor) -> Tensor:
    """Grey images between black and white, a label for each, that the defender could predict.

    Args:
        defender: Who is attacked.
        images: (N, 1, H, W).
        labels: (N,), integers.

    Returns:
        The labels, of 64 bits.

    Raises:
        TypeError: There is no defender, or images and labels are no tensors.
        ValueError: They are no such images and labels.
    """
    if not isinstance(defender, Defender):
        raise TypeError(
            f"A Defender is attacked, got {type(defender).__name__}. It says by which rule a "
            "network decides: Defender(net)."
        )
    check_numbers(images)
    if not isinstance(labels, Tensor):
        raise TypeError(f"Labels must be a tensor (N,), got {type(labels).__name__}.")
    if images.dim() != 4 or images.shape[1] != 1 or labels.shape != images.shape[:1]:
        raise ValueError(
            "Grey images (N, 1, H, W) and labels (N,) are attacked here, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}. A network that takes another shape "
            "gets it from Defender(encode=...)."
        )
    if not len(images):
        raise ValueError("There must be images, at least one.")
    check_pixels(images)
    with torch.random.fork_rng(cuda_devices()), evaluating(defender.net), torch.no_grad():
        classes = defender.classifier()(images[:1]).shape[1]
    return checked_labels(images, labels, classes)


def black_box(defender: Defender, settings: dict[str, Any]) -> dict[str, Attack]:
    """NAttack and Square with the settings of an adaptive verdict."""
    eps = settings["eps"]
    iterations, samples = settings["nattack"]
    asked = defender.classifier(draws=settings["query_draws"])
    return {
        "NAttack": NAttack(
            asked, eps=eps, iterations=iterations, samples=samples, border=0.02, lr=0.1
        ),
        "Square": square(asked, eps=eps, queries=settings["square_queries"], seed=settings["seed"]),
    }


def attacked(attack: Attack, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """What an attack makes of the images; held to the ball and to [0, 1].

    Attacks may leave torch's random numbers where they like: some set seeds. They are put back.
    """
    if not len(images):
        return images
    with torch.random.fork_rng(cuda_devices()):
        found = attack(images.clone(), labels).detach()
    found = torch.where(found.isnan(), images, found)  # of which a spiking network would be silent
    torch.rand(1)  # and go on from another place than before
    if images.is_cuda:
        torch.rand(1, device=images.device)
    return torch.maximum(torch.minimum(found, images + eps), images - eps).clamp(0, 1)
