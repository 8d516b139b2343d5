"""Who is attacked: a network, how images get into it, and the rule that it decides by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..validation.to_python_scalar import to_python_scalar
from .classifier import NoisyClassifier


@dataclass(frozen=True, eq=False)
class Defender:
    """A network, spiking or not, and its rule of decision.

    Attributes:
        net: The network.
        draws: Over how many draws of its noise it averages before it decides.
        noise: Whether its noise is on.
        average: What it averages; see `NoisyClassifier`.
        encode: See there.
        dim: See there.
        readout: See there.
    """

    net: nn.Module
    draws: int = 1
    noise: bool = True
    average: str = "logits"
    encode: Callable[[Tensor], Tensor] | None = None
    dim: int = 0
    readout: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "draws", to_python_scalar(self.draws)
        )  # past the frozen class's own

    def classifier(self, **options: Any) -> NoisyClassifier:
        """The network as a module of logits, with other options than its own where given."""
        own = {
            "draws": self.draws,
            "noise": self.noise,
            "average": self.average,
            "encode": self.encode,
            "dim": self.dim,
            "readout": self.readout,
        }
        return NoisyClassifier(self.net, **{**own, **options})

    def deciding_by(self, draws: int) -> Defender:
        """The same with another number of draws."""
        return replace(self, draws=draws)

    @torch.no_grad()
    def right(self, images: Tensor, labels: Tensor, rows: int = 50_000) -> Tensor:
        """(N,) whether each image is classified correctly, by fresh noise; so many rows at once.

        An image whose logits are NaN counts as classified wrongly.

        Raises:
            ValueError: There is not one label for each image.
        """
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"There must be a label for each of {len(images)} images, (N,), got "
                f"{tuple(labels.shape)}."
            )
        classifier = self.classifier()
        training = [module for module in self.net.modules() if module.training]
        self.net.eval()
        try:
            found = [
                _decided(classifier(some)) for some in images.split(max(1, rows // self.draws))
            ]
        finally:
            for module in training:
                module.training = True
        decided, known = (torch.cat(part) for part in zip(*found, strict=True))
        return (decided == labels) & known


def _decided(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each image, (N,), and whether there is one."""
    return logits.argmax(1), ~logits.isnan().any(1)
