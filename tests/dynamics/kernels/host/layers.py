"""Layers for the kernels that draw their noise again: shapes, streams and weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from nit_snn.noise.philox import Stream, noise


@dataclass(frozen=True, eq=False)
class LayerCase:
    """A call of a kernel.

    Attributes:
        weight: A, (N,) or (T, N).
        scale: A parameter of the neurons.
        stream: Whose noise.
        span: `inner`, `steps` and `first_step`, as an operator takes them.
        enough: How many threads are said to fill a GPU.
    """

    weight: Tensor
    scale: Tensor
    stream: Stream
    span: dict[str, int]
    enough: int

    @property
    def eps(self) -> Tensor:
        first = self.span["first_step"]
        steps = range(first, first + self.span["steps"])
        return noise(self.stream, steps, self.weight.shape[-1], self.span["inner"])


def _fenced(x: Tensor) -> Tensor:
    """The same, with NaN in the memory behind it for whoever reads too far."""
    behind = torch.full((64,), torch.nan)
    return torch.cat([x.flatten(), behind])[: x.numel()].view(x.shape)


@st.composite
def layers(draw: st.DrawFn) -> LayerCase:
    """Cases of any shape."""
    replicas = draw(st.sampled_from([1, 2, 4, 6]))
    steps, inner = draw(st.integers(1, 12)), draw(st.integers(1, 13))
    rows = replicas * draw(st.integers(0, 7))
    divisors = st.sampled_from([n for n in range(1, inner + 1) if inner % n == 0])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = torch.rand(draw(divisors), generator=generator) + 0.1
    stream = Stream(
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        passes=torch.tensor([draw(st.integers(0, 2**40))]),
        layer=draw(st.integers(0, 2)),
        replicas=replicas,
        antithetic=replicas > 1 and draw(st.booleans()),
    )
    each = draw(st.booleans())
    weight = _fenced(torch.randn((steps, rows) if each else (rows,), generator=generator))
    first_step = draw(st.sampled_from([0, 5, 2**31 - 20]))
    span = {"inner": inner, "steps": steps, "first_step": first_step}
    enough = draw(st.sampled_from([1, 5, 12, 2**17]))
    return LayerCase(weight, scale, stream, span, enough)
