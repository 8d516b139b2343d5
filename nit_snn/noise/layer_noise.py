"""The noise that one layer gets in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .streams import Noise


@dataclass(eq=False, slots=True)
class LayerNoise:
    """The noise of a layer's calls. It holds no recording, so that what draws from it may be held.

    Attributes:
        noise: Where it comes from.
        index: Number of the pass.
        layer: Number of the layer.
        layers: How many there are.
        device: Where it is drawn.
    """

    noise: Noise
    index: int
    layer: int
    layers: int
    device: torch.device

    def draw(self, call: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """eps of a call, (N, *)."""
        return self.noise.draw(
            shape,
            dtype,
            self.device,
            index=self.index,
            layer=self.layer,
            call=call,
            layers=self.layers,
        )
