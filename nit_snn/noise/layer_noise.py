"""The noise that one layer gets in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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
        draw: `draw(shape, dtype, call=call)` is eps of a call, (N, *).
    """

    noise: Noise
    index: int
    layer: int
    layers: int
    device: torch.device
    draw: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.draw = partial(
            self.noise.draw,
            device=self.device,
            index=self.index,
            layer=self.layer,
            layers=self.layers,
        )
