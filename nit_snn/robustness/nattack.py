"""NAttack: a black-box attack that learns a distribution of adversarial examples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..validation.to_python_scalar import to_python_scalar
from .eot import evaluating
from .inputs import check_counts, check_pixels, check_positive, check_radius, checked_labels


class NAttack:
    """NAttack of Li, Li, Wang, Zhang and Gong (ICML 2019), Algorithm 1, for many images at once.

    Perturbations are normal around a mean mu in the space of `z = atanh(2 x - 1)`:

        x' = proj((tanh(z + mu + sigma * eps) + 1) / 2),    eps ~ N(0, I),

    with the projection on the L-infinity ball around x. mu follows the natural evolution strategy
    on `f = max(0, l_y - max_{k != y} l_k)`, the margin of the logits l:

        mu <- mu - lr / (b sigma) * sum_i f_i^ eps_i,    f_i^ = (f_i - mean f) / std f.

    Only logits are asked for, `iterations * samples` of them per image. The paper stops at the
    first success. Here an image is pushed to the end, for with a random classifier one success may
    be luck; once all samples of an image succeed it stays where it is.

    Args:
        model: From images (N, \\*) in [0, 1] to logits (N, K), random or not.
        eps: Radius of the ball.
        iterations: Updates of mu.
        samples: b, queries per update.
        sigma: Standard deviation of the perturbation.
        lr: Step size.
        border: How far from black and white a pixel starts in the space of z, where these lie at
            infinity. The authors' code has 1e-6, with which a black or white pixel stays
            where it is, and so do most of a digit's.
        batch_size: Most images in one query of the model.

    Raises:
        ValueError: There are fewer than two samples, which cannot be compared, or another number is
            out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> attacked = NAttack(model, eps=0.1, iterations=2, samples=4)(images, labels)
        >>> bool((attacked - images).abs().max() <= 0.1 + 1e-6)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 0.1,
        iterations: int = 50,
        samples: int = 100,
        sigma: float = 0.1,
        lr: float = 0.02,
        border: float = 1e-6,
        batch_size: int = 4096,
    ) -> None:
        check_counts(2, samples=samples)
        check_counts(0, iterations=iterations)
        check_counts(batch_size=batch_size)
        check_radius(eps)
        check_positive(sigma=sigma, lr=lr, border=border)
        self.model = model
        self.iterations, self.samples, self.batch_size = to_python_scalar(
            (iterations, samples, batch_size)
        )
        self.eps, self.sigma, self.lr, self.border = to_python_scalar((eps, sigma, lr, border))

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, \\*) within eps of those given, and within [0, 1]; labels (N,).

        Raises:
            ValueError: Pixels are NaN or not between 0 and 1, or labels no integers (N,).
        """
        check_pixels(images)
        labels = checked_labels(images, labels)
        if not len(images):
            return images
        at_once = max(1, self.batch_size // self.samples)
        with evaluating(self.model):
            parts = [
                self._attacked(x, y)
                for x, y in zip(images.split(at_once), labels.split(at_once), strict=True)
            ]
        return torch.cat(parts)

    def _attacked(self, x: Tensor, y: Tensor) -> Tensor:
        z = ((1 - self.border) * (2 * x - 1)).atanh()
        mean = 1e-3 * torch.randn_like(z)
        targets = y.repeat(self.samples)
        for _ in range(self.iterations):
            noise = torch.randn((self.samples, *z.shape), dtype=z.dtype, device=z.device)
            tried = self._projected(z + mean + self.sigma * noise, x)
            losses = self._losses(tried.flatten(0, 1), targets).view(self.samples, -1)
            scores = (losses - losses.mean(0)) / (losses.std(0) + 1e-7)
            step = torch.einsum("bn,bn...->n...", scores, noise)
            mean -= self.lr / (self.samples * self.sigma) * step
        return self._projected(z + mean, x)

    def _projected(self, z: Tensor, x: Tensor) -> Tensor:
        moved = (z.tanh() + 1) / 2
        return torch.maximum(torch.minimum(moved, x + self.eps), x - self.eps).clamp_(0, 1)

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        rows = zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        return torch.cat([_margins(self.model(x), y) for x, y in rows]).clamp_(min=0)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the highest of the others, (N,); 0, which is wrong, if one is NaN."""
    own = labels[:, None]
    others = logits.scatter(1, own, float("-inf")).amax(1)
    margins = logits.gather(1, own)[:, 0] - others
    return margins.masked_fill(margins.isnan(), 0.0)
