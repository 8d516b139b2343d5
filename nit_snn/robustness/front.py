"""The layers that the images enter: once per image, however many draws and steps see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..gradients.synapses import gradient_function
from ..recording.expansion import Expansion
from ..recording.provenance import repeats_over_time


@contextmanager
def once(net: nn.Module, encoded: Tensor, draws: int, dim: int) -> Iterator[Tensor]:
    """Repeats an input over draws, and lets the synapses that it enters see it once.

    Inside, an instance of a registered synapse (`nit_snn.gradients.synapses`) that is given the
    repeated input, a mere reshape of it, or either of them repeated over time, computes its output
    for `encoded` and repeats that. Unlike a learner's taps this keeps the graph, so that a gradient
    is summed over draws and steps before it meets the weights.

    Args:
        net: The network.
        encoded: What goes in, with its batch dimension at `dim`.
        draws: C, how often.
        dim: The batch dimension.

    Yields:
        The input, (.., C * N, ..), draw-major.
    """
    expansion = Expansion(draws, dim)
    repeated = expansion.make(encoded)
    fronts = [
        _Front(m, encoded, expansion)
        for m in net.modules()
        if gradient_function(m) is not None and "forward" not in vars(m)
    ]
    try:
        for front in fronts:
            front.module.forward = front
        yield repeated
    finally:
        for front in fronts:
            if vars(front.module).get("forward") is front:
                del front.module.forward


@dataclass(eq=False)
class _Output:
    """What came out of a call, and under which conditions the same would come out again."""

    conditions: tuple[object, ...]
    value: Tensor
    version: int


class _Front:
    """Stands in for the forward of one synapse."""

    def __init__(self, module: nn.Module, encoded: Tensor, expansion: Expansion) -> None:
        self.module = module
        self._encoded = encoded
        self._expansion = expansion
        self._last: _Output | None = None

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return self._forward(*args, **kwargs)
        static = repeats_over_time(args[0])
        x = args[0][0] if static else args[0]
        if Expansion.of(x) is not self._expansion:
            return self._forward(args[0])
        conditions = (
            x.shape,
            static,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(x.device.type),
            *((id(p), p._version) for p in self.module._parameters.values() if p is not None),
        )
        last = self._last
        # Whoever writes to what was handed out writes to what is kept.
        if last is None or last.conditions != conditions or last.version != last.value._version:
            value = self._compute(x, static)
            self._last = last = _Output(conditions, value, value._version)
        if static:
            return last.value.expand(len(args[0]), *last.value.shape).clone()
        return last.value.view_as(last.value)

    def _compute(self, x: Tensor, static: bool) -> Tensor:
        dim = self._expansion.dim
        shape = (*x.shape[:dim], self._encoded.shape[dim], *x.shape[dim + 1 :])
        inner = self._encoded.reshape(shape)
        output = self._forward(inner.unsqueeze(0))[0] if static else self._forward(inner)
        return self._expansion.repeat(output)

    def _forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return type(self.module).forward(self.module, *args, **kwargs)  # type: ignore[no-any-return]
