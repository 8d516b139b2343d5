"""Adversarial training without a surrogate: attacked images from the likelihood ratio."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..learner import NITLearner
from ..validation.to_python_scalar import to_python_scalar
from .classifier import NoisyClassifier
from .eot import evaluating
from .inputs import check_counts, check_numbers, check_positive, check_radius, checked_labels


class AdversarialExpand:
    """Takes the place of `learner.expand`: the replicas of attacked images (Madry et al. 2018).

    `min_theta E max_{|d| <= eps} L(x + d)`, the infinity norm bounding d: the inner maximum by a
    few steps of projected gradient ascent from a random point of the ball,

        x <- P(x + alpha sign dL/dx),

    P the projection on the ball and on the bounds, L the cross-entropy of the mean logits over
    draws, and its gradient that of the likelihood ratio (see `NoisyClassifier`); the outer minimum
    by the learner. Both are forward passes and scores: nothing is differentiated through a spike.

    Random starts and noise come from torch's global generator, so that `torch.manual_seed`
    repeats them. The learner's own noise, its count of passes and all `.grad` are left alone;
    the neurons are reset. The network is attacked in eval mode, and is put back afterwards.

    Args:
        learner: Whose network is attacked; its noise levels are used as they are.
        eps: Radius of the ball, in units of the images. The attribute may be set between batches,
            so that it can grow over the first epochs.
        steps: Inner steps.
        draws: Draws of the noise in each inner gradient, at least 2.
        alpha: Step size over eps; None for 1.5 / steps, or 1.25 for one step.
        bounds: What images lie between.
        **options: Of `NoisyClassifier`: `encode`, `readout`, `dim`, `average`, `conditional`,
            `credit`. The last two are True and "time" if not given.

    Raises:
        TypeError: It is no learner.
        ValueError: A number is out of range.
        ClassifierError: The network does not allow for these options.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import NITLearner, swap_neurons
        >>> net = swap_neurons(torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), snntorch.Leaky(beta=0.5, init_hidden=True,
        ...     reset_mechanism="zero"), torch.nn.Linear(8, 3)))
        >>> learner = NITLearner(net, replicas=4, conditional=True, credit="time")
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
        **options: Any,
    ) -> None:
        if not isinstance(learner, NITLearner):
            raise TypeError(
                f"The first argument must be a NITLearner, got {type(learner).__name__}."
            )
        check_counts(steps=steps)
        if alpha is not None:
            check_positive(alpha=alpha)
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}.")
        self.learner = learner
        self.eps = eps
        self.steps, self.alpha, self.bounds = to_python_scalar((steps, alpha, bounds))
        options = {"conditional": True, "credit": "time", **options}
        self.classifier = NoisyClassifier(learner.net, draws=draws, gradient="lr", **options)

    @property
    def eps(self) -> float:
        """Radius of the ball; it can be set at any time."""
        return self._eps

    @eps.setter
    def eps(self, eps: float) -> None:
        check_radius(eps, finite=True)
        self._eps = float(eps)

    def __call__(self, images: Tensor, labels: Tensor) -> Any:
        """Attacked images and labels, expanded as by `learner.expand`, for `learner.record()`.

        Args:
            images: (B, \\*), within the bounds; before `encode` if there is one, as are the
                attacked ones.
            labels: (B,).

        Returns:
            (C * B, \\*) and (C * B,).

        Raises:
            ValueError: Images lie outside the bounds, or labels are no integers (B,).
            RecordingError: It is called inside `learner.record()`.
        """
        return self.learner.expand(self.attack(images, labels), labels)

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, \\*) within eps of those given and within the bounds; see `__call__`."""
        check_numbers(images)
        labels, images = checked_labels(images, labels), images.detach()
        low, high = self.bounds
        if images.numel() and not (images.min() >= low and images.max() <= high):
            raise ValueError(
                f"Images must lie within bounds={self.bounds}, got values from "
                f"{images.min():g} to {images.max():g}. Normalise in the network or in encode=..."
            )
        lowest, highest = (images - self.eps).clamp(min=low), (images + self.eps).clamp(max=high)
        factor = self.alpha or (1.25 if self.steps == 1 else 1.5 / self.steps)
        found = lowest + (highest - lowest) * torch.rand_like(images)
        with evaluating(self.learner.net):
            for _ in range(self.steps):
                leaf = found.requires_grad_()
                with torch.enable_grad():
                    loss = F.cross_entropy(self.classifier(leaf), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, leaf)
                moved = found.detach() + factor * self.eps * gradient.sign()
                found = torch.maximum(torch.minimum(moved, highest), lowest)
        return found


def trades(clean: Tensor, attacked: Tensor, labels: Tensor, beta: float = 6.0) -> Tensor:
    """TRADES' loss of each row (Zhang et al. 2019): `CE(f(x), y) + beta KL(f(x) || f(x'))`.

    For a learner both passes belong inside `record()`, each from reset neurons. The noise of each
    is independent, so that the mean over replicas of the divergence bounds that of the mean
    outputs from above.

    Args:
        clean: Logits of the images as they are, (N, K).
        attacked: Logits of the attacked images, (N, K).
        labels: (N,).
        beta: Weight of the second term.

    Returns:
        (N,).

    Raises:
        ValueError: The shapes are others.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> trades(logits, logits, labels, beta=6.0)          # no attack, no divergence
        tensor([0.1269])
    """
    if clean.dim() != 2 or clean.shape != attacked.shape or labels.shape != clean.shape[:1]:
        raise ValueError(
            "Logits must be (N, K) twice and labels (N,), got "
            f"{tuple(clean.shape)}, {tuple(attacked.shape)} and {tuple(labels.shape)}."
        )
    p, q = clean.log_softmax(-1), attacked.log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1)
    return F.nll_loss(p, labels, reduction="none") + beta * divergence


def loss_of_mean(logits: Tensor, labels: Tensor, replicas: int) -> Tensor:
    """Losses by which a learner lowers the cross-entropy of the mean logits over replicas.

    A `Defender` decides by the mean of many draws; the mean loss of single draws punishes their
    spread as well, which that mean does not have. Of replica c with logits f_c, and F their mean,
    the loss is

        CE(F, y) + <g, f_c - F>,    g = dCE/dF, held constant,

    whose mean over replicas is CE(F, y), and which differs between them by what each adds to F. As
    in `NoisyClassifier`, F is a mean of C draws, and the gradient has a bias of order 1 / C. By
    autograd it is exactly that of CE(F, y).

    Args:
        logits: (C * B, K), replica-major, as from `learner.expand`.
        labels: (C * B,).
        replicas: C.

    Returns:
        (C * B,).

    Raises:
        ValueError: The shapes are others.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> loss_of_mean(logits, labels, replicas=2)     # of one image, whose mean is undecided
        tensor([-0.3069,  1.6931])
    """
    check_counts(replicas=replicas)
    if logits.dim() != 2 or len(logits) % replicas or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Logits must be (C * B, K) and labels (C * B,) with C = {replicas}, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}. Did both go through expand()?"
        )
    each = logits.unflatten(0, (int(replicas), -1))
    mean = each.detach().mean(0)
    own = labels[: len(mean)]
    slope = mean.softmax(-1) - F.one_hot(own, mean.shape[-1])
    losses = F.cross_entropy(mean, own, reduction="none") + (slope * (each - mean)).sum(-1)
    return losses.flatten()
