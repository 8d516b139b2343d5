"""Bits as numbers, by the kernel's own source run on the CPU, against torch."""

from __future__ import annotations

import pytest
import torch
from host.runner import run_on_host
from hypothesis import given, settings
from hypothesis import strategies as st

from nit_snn.dynamics.kernels.launch import REALS, Launch
from nit_snn.dynamics.kernels.unpack_bits.op import launched
from nit_snn.dynamics.kernels.unpack_bits.reference import unpack_bits as reference


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 40),
    st.integers(0, 20),
    st.integers(0, 5),
    st.integers(0, 9),
    st.sampled_from([*REALS, torch.float64]),
    st.integers(0, 2**31),
)
def test_source_does_what_the_reference_does(
    steps: int, slot: int, rows: int, inner: int, dtype: torch.dtype, seed: int
) -> None:
    planes = max(1, -(-(slot + steps) // 8))
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(256, (planes, rows, inner), dtype=torch.uint8, generator=generator)
    ours = launched(bits, slot, steps, dtype, launch=run_on_host)
    assert ours.dtype == dtype
    assert torch.equal(ours, reference(bits, slot, steps, dtype))


def test_a_sequence_takes_one_launch() -> None:
    launches: list[Launch] = []
    launched(torch.zeros(16, 4, 100, dtype=torch.uint8), 0, 128, torch.float32, launches.append)
    assert [what.kernel for what in launches] == ["unpack_bits"]


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_the_operator_takes_the_reference_on_a_cpu(dtype: torch.dtype) -> None:
    bits = torch.randint(256, (2, 3, 5), dtype=torch.uint8)
    found = torch.ops.nit_snn.unpack_bits(bits, 3, 9, dtype)
    assert torch.equal(found, reference(bits, 3, 9, dtype))
