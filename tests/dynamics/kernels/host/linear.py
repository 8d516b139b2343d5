"""Calls of the kernels that make a Linear layer's gradient, and what float64 says about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from nit_snn.noise.philox import Stream, noise, signed


@dataclass(frozen=True)
class Case:
    """Shapes and seeds of a call."""

    rows: int = 6
    inputs: int = 5
    outputs: int = 7
    steps: int = 3
    first_step: int = 0
    slot: int = 0
    spare_planes: int = 0
    seed: int = 0
    layer: int = 0
    replicas: int = 1
    antithetic: bool = False
    first_replica: int = 0
    alike: int = 1
    numbers: int = 0

    @property
    def stream(self) -> Stream:
        return Stream(
            signed(self.seed),
            torch.tensor([7]),
            self.layer,
            self.replicas,
            self.antithetic,
            self.first_replica,
        )

    @property
    def scalars(self) -> dict[str, Any]:
        """What an operator takes after its stream."""
        return {n: getattr(self, n) for n in ("outputs", "steps", "first_step", "slot")}

    @property
    def bits(self) -> Tensor:
        """Random in every bit, those beyond the steps that are asked for too."""
        planes = -(-(self.slot + self.steps) // 8) + self.spare_planes
        generator = torch.Generator().manual_seed(self.numbers)
        shape = (planes, self.rows, self.inputs)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    @property
    def weight(self) -> Tensor:
        """(N,)"""
        return torch.randn(self.rows, generator=torch.Generator().manual_seed(self.numbers + 1))

    @property
    def integers(self) -> Tensor:
        """(N,)"""
        return (8 * self.weight).round()

    @property
    def scale(self) -> Tensor:
        """(O / `alike`,), or (1,)."""
        generator = torch.Generator().manual_seed(self.numbers + 2)
        return torch.rand(self.outputs // self.alike, generator=generator) + 0.1

    @property
    def eps(self) -> Tensor:
        """(T, N, O)"""
        steps = range(self.first_step, self.first_step + self.steps)
        return noise(self.stream, steps, self.rows, self.outputs)

    @property
    def spikes(self) -> Tensor:
        """(T, N, I), float64."""
        found = np.unpackbits(self.bits.numpy(), axis=0, bitorder="little")
        shape = (self.steps, self.rows, self.inputs)
        return torch.from_numpy(found)[self.slot :][: self.steps].double().view(shape)


def with_bias(x: Tensor) -> Tensor:
    """One more column, of ones."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


@st.composite
def cases(draw: st.DrawFn, steps: st.SearchStrategy[int]) -> Case:
    """Small calls of every kind."""
    replicas = draw(st.sampled_from([1, 2, 3, 6, 12]))
    outputs = draw(st.integers(1, 20))
    return Case(
        rows=replicas * draw(st.integers(1, 3)),
        inputs=draw(st.integers(1, 40)),
        outputs=outputs,
        steps=draw(steps),
        first_step=draw(st.sampled_from([0, 5, 2**31 - 100])),
        slot=draw(st.integers(0, 17)),
        spare_planes=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 2**64 - 1)),
        layer=draw(st.integers(0, 2)),
        replicas=replicas,
        antithetic=replicas % 2 == 0 and draw(st.booleans()),
        first_replica=draw(st.sampled_from([0, 5])),
        alike=draw(st.sampled_from([n for n in range(1, outputs + 1) if outputs % n == 0])),
        numbers=draw(st.integers(0, 2**31)),
    )


#: Beyond a tile or a group of rows, at their edges, and nothing at all.
EDGES = {
    "one of everything": Case(1, 1, 1, 1),
    "a whole tile": Case(16, 256, 64, 2),
    "beyond a tile": Case(17, 257, 65, 1),
    "three tiles of inputs": Case(3, 513, 2, 9, slot=3),
    "three tiles of outputs": Case(3, 2, 131, 9, slot=3),
    "many steps": Case(2, 3, 5, 133, slot=6),
    "many rows": Case(150, 3, 4, 2, replicas=50),
    "parts that end within a row": Case(40, 3, 4, 7, slot=1),
    "antithetic pairs": Case(60, 9, 6, 4, layer=1, replicas=12, antithetic=True),
    "no rows": Case(rows=0),
    "no steps": Case(steps=0),
    "no inputs": Case(inputs=0),
}
