"""Certified radii: within them no perturbation whatever changes the prediction.

Both certificates rest on the same fact. If a decision is made from Gaussian observations alone,
and a perturbation moves their means by mu standard deviations in all, then a probability p of
deciding for a class becomes at least `Phi(Phi^-1(p) - mu)`, by the lemma of Neyman and Pearson. So
a class with p > 1/2 stays the most frequent one while `mu < Phi^-1(p)`.

- Randomised smoothing (Cohen, Rosenfeld and Kolter 2019): noise of deviation s is added to the
  images, and `mu = |delta| / s`.
- A noisy network's own noise, where images enter it through the currents of its first noisy layer
  and nowhere else: its membranes are Gaussian observations of these, all that follows is made from
  them, and `mu` is what the perturbation does to the currents over sigma, over neurons and steps
  (noise behind a layer of bounded sensitivity: Lecuyer et al. 2019). No noise need be added.

What is certified is the decision by majority of single draws, not that of averaged logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..compat import require
from ..errors import ClassifierError
from ..neurons.base import check_module
from ..validation.to_python_scalar import is_number, to_python_scalar
from .classifier import NoisyClassifier
from .eot import evaluating
from .inputs import check_counts, check_numbers, check_positive
from .noise_sensitivity import sensitivity

ABSTAINS = -1


@dataclass(frozen=True)
class Certificate:
    """What is certain about the majority decision, image by image.

    Attributes:
        prediction: (N,), the class, or -1 where none is shown to have more than half of the votes.
        probability: (N,), a lower bound of its share of the votes, each at the confidence asked
            for.
        radius: (N,), how far an image may be moved, 0 where there is no prediction.
    """

    prediction: Tensor
    probability: Tensor
    radius: Tensor

    def accuracy(self, labels: Tensor, radius: float = 0.0) -> float:
        """Certified accuracy at a radius: the share that is right, and certainly so within it.

        Args:
            labels: (N,).
            radius: How far images may be moved.

        Raises:
            ValueError: There is not one label for each image.
        """
        if labels.shape != self.prediction.shape:
            raise ValueError(
                f"There must be a label for each of {len(self.prediction)} images, (N,), got "
                f"{tuple(labels.shape)}."
            )
        right = (self.prediction == labels) & (self.prediction != ABSTAINS)
        return float((right & (self.radius >= radius)).float().mean())


def certify_smoothing(
    model: nn.Module,
    images: Tensor,
    sigma: float,
    *,
    draws: int = 10_000,
    select: int = 100,
    alpha: float = 0.001,
    batch_size: int = 8192,
) -> Certificate:
    """Radii in the Euclidean norm, with noise added to the images (Cohen et al. 2019).

    Args:
        model: From images (N, \\*) to logits (N, K); if it is random, each row has to have
            randomness of its own.
        images: (N, \\*).
        sigma: Standard deviation of the noise, in units of the images; not clipped to [0, 1].
        draws: Votes per image that bound the probability.
        select: Other votes, that choose the class.
        alpha: How often a radius may be too large.
        batch_size: Rows in one call of the model.

    Raises:
        ValueError: A number is out of range, or an image holds NaN or infinity.
        ClassifierError: The classifier repeats its noise, or its logits are NaN.
    """
    check_positive(sigma=sigma)
    _check_random(model)
    sigma = float(sigma)
    found = _certified(model, images, sigma, draws, select, alpha, batch_size)
    return Certificate(found[0], found[1], sigma * found[2])


def certify_noise(
    classifier: NoisyClassifier,
    images: Tensor,
    *,
    norm: str = "l2",
    draws: int = 10_000,
    select: int = 100,
    alpha: float = 0.001,
    batch_size: int = 8192,
) -> Certificate:
    """Radii by the network's own noise alone; see `sensitivity` for which networks have any.

    Args:
        classifier: With one draw per call, each of which is a vote.
        images: (N, \\*).
        norm: What radii are measured in: "l2" or "linf".
        draws: Votes per image that bound the probability.
        select: Other votes, that choose the class.
        alpha: How often a radius may be too large.
        batch_size: Rows in one call of the network.

    Raises:
        TypeError: It is no `NoisyClassifier`.
        ValueError: A number is out of range, there is no such norm, or no image, or one that holds
            NaN or infinity.
        ClassifierError: The network's own noise certifies nothing, or not by these votes.
        RecordingError: A learner records the network.
    """
    if not isinstance(classifier, NoisyClassifier):
        raise TypeError(
            f"The noise of a NoisyClassifier certifies, got {type(classifier).__name__}. Wrap the "
            "network: NoisyClassifier(net)."
        )
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf', got {norm!r}.")
    if classifier.draws != 1:
        raise ClassifierError(
            f"Each draw has to be a vote, but this classifier averages {classifier.draws}. Make "
            "another of the same network, with draws=1."
        )
    _check_random(classifier)
    _check_votes(images, draws, select, alpha, batch_size)
    moved = sensitivity(classifier, images[:1])
    found = _certified(classifier, images, 0.0, draws, select, alpha, batch_size)
    return Certificate(found[0], found[1], found[2] / getattr(moved, norm))


@torch.no_grad()
def _certified(
    model: nn.Module,
    images: Tensor,
    sigma: float,
    draws: int,
    select: int,
    alpha: float,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Class, lower bound of its probability, and how many standard deviations it stands."""
    _check_votes(images, draws, select, alpha, batch_size)
    draws, select, alpha, batch_size = to_python_scalar((draws, select, alpha, batch_size))
    with evaluating(model):
        chosen = _votes(model, images, sigma, select, batch_size).argmax(1)
        votes = _votes(model, images, sigma, draws, batch_size)
    count = votes.gather(1, chosen[:, None])[:, 0].cpu().numpy()
    beta = require("scipy.stats", extra="robustness").beta
    # Clopper and Pearson's bound; scipy's is NaN where nothing was counted.
    bound = beta.ppf(alpha, count, draws - count + 1)
    probability = torch.from_numpy(bound).nan_to_num(0.0).to(images.device)
    certain = probability > 0.5
    stands = torch.special.ndtri(probability.clamp(min=0.5)) * certain
    return torch.where(certain, chosen, ABSTAINS), probability, stands


def _votes(model: nn.Module, images: Tensor, sigma: float, draws: int, batch_size: int) -> Tensor:
    """(N, K): how often each class was the largest of an image's logits."""
    at_once = max(1, batch_size // draws)
    counts = []
    for some in images.split(at_once):
        votes: Tensor | None = None
        for first in range(0, draws, batch_size):
            copies = min(batch_size, draws - first)
            rows = some.repeat_interleave(copies, 0)
            if sigma:
                rows = rows + sigma * torch.randn_like(rows)
            logits = model(rows)
            if logits.isnan().any():
                raise ClassifierError(
                    f"Logits of shape {tuple(logits.shape)} hold NaN, which vote for nothing. Look "
                    "at the network's weights."
                )
            ballot = nn.functional.one_hot(logits.argmax(1), logits.shape[1])
            found = ballot.unflatten(0, (-1, copies)).sum(1)
            votes = found if votes is None else votes + found
        assert votes is not None
        counts.append(votes)
    return torch.cat(counts)


def _check_votes(images: Tensor, draws: int, select: int, alpha: float, batch_size: int) -> None:
    check_numbers(images)
    check_counts(draws=draws, select=select, batch_size=batch_size)
    if not is_number(alpha) or not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}.")


def _check_random(model: nn.Module) -> None:
    check_module(model)
    inside = [m for m in model.modules() if isinstance(m, NoisyClassifier)]
    if any(classifier.seed is not None for classifier in inside):
        raise ClassifierError("With a seed the classifier's votes repeat each other; leave it out.")
