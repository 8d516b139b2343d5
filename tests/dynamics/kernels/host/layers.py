"""Layers for the kernels that draw their noise again: shapes, streams, weights, and replays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from nit_snn.dynamics.kernels.noisy_lif.reference import RESETS, Dynamics, spread
from nit_snn.dynamics.kernels.replay import Replay
from nit_snn.noise.philox import Stream, noise


@dataclass(frozen=True, eq=False)
class LayerCase:
    """A call of a kernel.

    Attributes:
        weight: A, (N,) or (T, N).
        scale: A parameter of the neurons.
        stream: Whose noise.
        span: `inner`, `steps` and `first_step`, as an operator takes them.
        replay: What is run once more, or None.
        enough: How many threads are said to fill a GPU.
    """

    weight: Tensor
    scale: Tensor
    stream: Stream
    span: dict[str, int]
    replay: Replay | None
    enough: int

    @property
    def eps(self) -> Tensor:
        first = self.span["first_step"]
        steps = range(first, first + self.span["steps"])
        return noise(self.stream, steps, self.weight.shape[-1], self.span["inner"])

    def decided(self) -> Tensor:
        """Where no spike has hung on rounding up to a step, bool, (T, N, F)."""
        if self.replay is None:
            return torch.ones_like(self.eps, dtype=torch.bool)
        _, level, _ = self.replay.run(self.eps)
        apart = spread(self.replay.sigma, self.span["inner"]) * (self.eps - level)
        return (apart.abs() < 1e-4).cumsum(0) == 0


def _fenced(x: Tensor) -> Tensor:
    """The same, with NaN in the memory behind it for whoever reads too far."""
    behind = torch.full((64,), torch.nan)
    return torch.cat([x.flatten(), behind])[: x.numel()].view(x.shape)


def as_arguments(replay: Replay | None) -> dict[str, Any]:
    """A replay as an operator takes it."""
    if replay is None:
        return {}
    fields = {**vars(replay), **vars(replay.dynamics)}
    del fields["dynamics"]
    return fields


@st.composite
def layers(draw: st.DrawFn, replays: bool | None = None) -> LayerCase:
    """Cases of any shape; with a replay, without one, or both."""
    replicas = draw(st.sampled_from([1, 2, 4, 6]))
    steps, inner = draw(st.integers(1, 12)), draw(st.integers(1, 13))
    rows = replicas * draw(st.integers(0, 7))
    divisors = st.sampled_from([n for n in range(1, inner + 1) if inner % n == 0])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def level() -> Tensor:
        return torch.rand(draw(divisors), generator=generator) + 0.1

    stream = Stream(
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        passes=torch.tensor([draw(st.integers(0, 2**40))]),
        layer=draw(st.integers(0, 2)),
        layers=draw(st.sampled_from([0, 3])),
        replicas=replicas,
        antithetic=replicas > 1 and draw(st.booleans()),
    )
    each = draw(st.booleans())
    weight = _fenced(torch.randn((steps, rows) if each else (rows,), generator=generator))
    replay = None
    if draw(st.booleans()) if replays is None else replays:
        seen = 1 if draw(st.booleans()) else steps
        state = torch.randn(rows, inner, generator=generator)
        replay = Replay(
            current=_fenced(torch.randn(seen, rows, inner, generator=generator)),
            state=state if draw(st.booleans()) else None,
            decay=level(),
            gain=level(),
            threshold=level(),
            sigma=level(),
            dynamics=Dynamics(
                rest=draw(st.sampled_from([0.0, 0.25])),
                v_reset=draw(st.sampled_from([0.0, -0.5])),
                reset=draw(st.sampled_from(RESETS)),
                delayed=draw(st.booleans()),
                or_equal=draw(st.booleans()),
            ),
        )
    first_step = draw(st.sampled_from([0, 5, 2**31 - 20]))
    span = {"inner": inner, "steps": steps, "first_step": first_step}
    enough = draw(st.sampled_from([1, 5, 12, 2**17]))
    return LayerCase(weight, level(), stream, span, replay, enough)
