"""Adversarial training without a surrogate: attacked images from the likelihood ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..learner import NITLearner
from .classifier import NoisyClassifier
from .eot import evaluating


class AdversarialExpand:
    """Takes the place of `learner.expand`: the replicas of attacked images (Madry et al. 2018).

    `min_theta E max_{|d| <= eps} E L(x + d)`: the inner maximum by a few steps of projected
    gradient ascent from a random point of the ball, along the sign of the likelihood ratio's
    gradient of the expected loss in the images, averaged over draws; the outer minimum by the
    learner. Both are forward passes and scores: nothing is differentiated through a spike.

    The learner is not disturbed: call this before `learner.record()`, or inside it with
    images that `attack` gave before.

    Args:
        learner: Whose network is attacked; its noise levels are used as they are.
        eps: Radius of the ball, in units of the images; may be set between batches, so that it
            can grow over the first epochs.
        steps: Inner steps.
        draws: Draws of the noise in each inner gradient, at least 2.
        alpha: Step size over eps; None for 1.5 / steps, or 1.25 for one step.
        bounds: What images lie between.
        loss: From logits (N, K) and labels (N,) to losses (N,), which the attack raises.
        **options: Of `NoisyClassifier`: `encode`, `readout`, `dim`, `conditional`, `control`. The
            last two are "pathwise" and "time" if not given.

    Raises:
        ValueError: A number is out of range.
        ClassifierError: The network does not allow for these options.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import NITLearner, swap_neurons
        >>> net = swap_neurons(torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), snntorch.Leaky(beta=0.5, init_hidden=True,
        ...     reset_mechanism="zero"), torch.nn.Linear(8, 3)))
        >>> learner = NITLearner(net, replicas=4, conditional="pathwise", control="time")
        >>> expand = AdversarialExpand(learner, eps=0.1)
        >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> attacked, targets = expand(x, y)
        >>> with learner.record():
        ...     losses = torch.nn.functional.cross_entropy(net(attacked), targets, reduction="none")
        >>> loss = learner.backward(losses)
    """

    def __init__(
        self,
        learner: NITLearner,
        eps: float = 0.1,
        steps: int = 2,
        draws: int = 4,
        alpha: float | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        if eps < 0 or steps < 1:
            raise ValueError(f"eps must not be negative, steps positive; got {eps} and {steps}.")
        if alpha is not None and alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}.")
        self.learner = learner
        self.eps = eps
        self.steps = steps
        self.alpha = alpha
        self.bounds = bounds
        self.loss = loss
        options = {"conditional": "pathwise", "control": "time", **options}
        self.classifier = NoisyClassifier(learner.net, draws=draws, gradient="lr", **options)

    def __call__(self, images: Tensor, labels: Tensor) -> Any:
        """Attacked images and labels, expanded as by `learner.expand`.

        Args:
            images: (B, \\*), as the network takes them.
            labels: (B,).

        Returns:
            (C * B, \\*) and (C * B,).
        """
        return self.learner.expand(self.attack(images, labels), labels)

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, \\*) within eps of those given and within the bounds; labels (B,)."""
        low = (images - self.eps).clamp(*self.bounds)
        high = (images + self.eps).clamp(*self.bounds)
        factor = self.alpha or (1.25 if self.steps == 1 else 1.5 / self.steps)
        found = low + (high - low) * torch.rand_like(images)
        with evaluating(self.learner.net):
            for _ in range(self.steps):
                leaf = found.detach().requires_grad_()
                with torch.enable_grad():
                    logits = self.classifier(leaf)
                    losses = (
                        F.cross_entropy(logits, labels, reduction="none")
                        if self.loss is None
                        else self.loss(logits, labels)
                    )
                (gradient,) = torch.autograd.grad(losses.sum(), leaf)
                moved = found + factor * self.eps * gradient.sign()
                found = torch.maximum(torch.minimum(moved, high), low)
        return found.detach()
