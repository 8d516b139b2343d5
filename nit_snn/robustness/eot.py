"""PGD on an expectation: gradients averaged over the noise, several starts, the worst kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..validation.to_python_scalar import to_python_scalar
from .inputs import check_counts, check_pixels, check_radius, checked_labels


class EOTPGD:
    """Projected gradient ascent on the expected cross-entropy, in the L-infinity ball.

    Each step averages the gradient over `draws` calls of the model (expectation over
    transformation, Athalye et al., "Obfuscated Gradients Give a False Sense of Security", 2018),
    and moves by its sign (Madry et al., 2018). Every restart begins at a random point of the ball;
    for each image the end point with the highest loss is kept, judged by fresh draws. One where
    logits are NaN goes before all others: the model predicts no class there.

    A `NoisyClassifier` with `draws=20` averages its outputs by itself. With `draws=1` here that is
    the gradient of the loss of the mean output; with 20 here and 1 there, that of the mean loss.

    Args:
        model: From images (N, \\*) in [0, 1] to logits (N, K), random or not.
        eps: Radius of the ball.
        alpha: Step size.
        steps: Steps of each start.
        draws: Calls of the model over which a gradient is averaged.
        restarts: How many starts.
        judgements: Calls of the model over which end points are judged.

    Raises:
        ValueError: A number of something is no integer or below 1, or eps or alpha is negative.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> attacked = EOTPGD(model, eps=0.1, steps=3, restarts=1)(images, labels)
        >>> bool((attacked - images).abs().max() <= 0.1 + 1e-6)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 0.1,
        alpha: float = 0.01,
        steps: int = 40,
        draws: int = 20,
        restarts: int = 5,
        judgements: int = 20,
    ) -> None:
        check_counts(steps=steps, draws=draws, restarts=restarts, judgements=judgements)
        check_radius(eps)
        check_radius(alpha, finite=True, name="alpha")
        self.model = model
        self.eps, self.alpha = to_python_scalar((eps, alpha))
        self.steps, self.draws = int(steps), int(draws)
        self.restarts, self.judgements = int(restarts), int(judgements)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, \\*) within eps of those given, and within [0, 1]; labels (N,).

        Raises:
            ValueError: Pixels are NaN or not between 0 and 1, or labels no integers (N,).
        """
        check_pixels(images)
        images, labels = images.detach(), checked_labels(images, labels)
        with evaluating(self.model):
            worst, highest = images, self._losses(images, labels)
            for _ in range(self.restarts):
                found = self._ascend(images, labels)
                losses = self._losses(found, labels)
                better = losses > highest
                worst = torch.where(better.view(-1, *(1,) * (images.dim() - 1)), found, worst)
                highest = torch.where(better, losses, highest)
        return worst

    def _ascend(self, images: Tensor, labels: Tensor) -> Tensor:
        low, high = (images - self.eps).clamp_(0, 1), (images + self.eps).clamp_(0, 1)
        x = low + (high - low) * torch.rand_like(images)
        for _ in range(self.steps):
            total = torch.zeros_like(x)
            for _ in range(self.draws):
                leaf = x.detach().requires_grad_()
                with torch.enable_grad():
                    loss = F.cross_entropy(self.model(leaf), labels, reduction="sum")
                total += torch.autograd.grad(loss, leaf)[0]
            x = torch.maximum(torch.minimum(x + self.alpha * total.sign(), high), low)
        return x

    @torch.no_grad()
    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """-log of the mean probability of the label, (N,); infinite where logits are NaN."""
        logs = [-F.cross_entropy(self.model(images), labels, reduction="none")]
        for _ in range(self.judgements - 1):
            logs.append(-F.cross_entropy(self.model(images), labels, reduction="none"))
        losses = -torch.stack(logs).logsumexp(0)
        return losses.masked_fill(losses.isnan(), float("inf"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, as attack libraries have it, and every module back at the end.

    Back from train mode, too: torchattacks puts a whole model there if its outermost module was.
    """
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
