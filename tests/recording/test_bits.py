"""Spikes as bits: what goes in comes out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nit_snn.recording import bits


@given(st.integers(0, 40), st.integers(0, 5), st.integers(0, 4), st.integers(0, 2**31))
def test_spikes_come_back_from_their_bits(steps: int, rows: int, inner: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spikes = torch.randint(2, (steps, rows, inner), generator=generator).float()
    packed = bits.pack(spikes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (bits.planes(steps), rows, inner)
    assert torch.equal(bits.unpack(packed, range(steps)), spikes)
    half = bits.unpack(packed, range(steps // 2, steps), torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), spikes[steps // 2 :])


def test_a_step_sets_its_own_bit_alone() -> None:
    packed = bits.empty(16, (3,))
    bits.pack_into(packed, torch.tensor([True, False, True]), 0)
    bits.pack_into(packed, torch.tensor([0.0, 1.0, 1.0]), 9)
    assert packed.tolist() == [[1, 0, 1], [0, 2, 2]]


def test_one_bit_for_each_spike() -> None:
    assert bits.pack(torch.ones(64, 10)).nbytes == 64 * 10 // 8
