"""The noise that one layer gets in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..neurons.base import NoisyNeuron
from .streams import Noise, TableNoise


@dataclass(eq=False, slots=True)
class LayerNoise:
    """The noise of a layer's calls. It holds no recording, so that what draws from it may be held.

    Attributes:
        noise: Where it comes from.
        index: Number of the pass.
        layer: Number of the layer.
        layers: How many there are.
        neuron: Who gets it.
    """

    noise: Noise
    index: int
    layer: int
    layers: int
    neuron: NoisyNeuron

    def draw(self, call: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """eps of a call, (N, *)."""
        return self.noise.draw(
            shape,
            dtype,
            self.neuron.sigma.device,
            index=self.index,
            layer=self.layer,
            call=call,
            layers=self.layers,
        )

    def read(self, calls: list[int], like: Tensor) -> tuple[list[Tensor], list[float]]:
        """The noise of some calls, but for a sign of each: what a table holds is not copied.

        Args:
            calls: Their numbers.
            like: (T, N, *), for shape and type.
        """
        numbers, signs = [], []
        shape, dtype = like.shape[1:], like.dtype
        for call in calls:
            found = None
            if isinstance(self.noise, TableNoise) and dtype == torch.float32:
                found = self.noise.read(shape, like.device, layer=self.layer, call=call)
                sign = self.noise.sign(self.layer, call, self.layers)
            numbers.append(self.draw(call, shape, dtype) if found is None else found)
            signs.append(1.0 if found is None else float(sign))
        return numbers, signs
