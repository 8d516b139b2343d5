"""The kernel of a Linear layer's gradient, its own source run on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from host.by_torch import cotangents
from host.linear import EDGES, Case, cases, with_bias
from host.runner import run_on_host
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nit_snn.dynamics.kernels import tiles
from nit_snn.dynamics.kernels.launch import Launch
from nit_snn.dynamics.kernels.linear_gradient.op import launched, linear_gradient
from nit_snn.dynamics.kernels.linear_gradient.reference import linear_gradient as reference
from nit_snn.dynamics.kernels.noisy_lif.reference import spread
from nit_snn.gradients import synapses

STEPS = st.one_of(st.integers(1, 9), st.integers(10, 34))


def by_kernel(case: Case) -> Tensor:
    return launched(
        case.bits, case.weight, case.scale, **vars(case.stream), **case.scalars, launch=run_on_host
    )


def by_reference(case: Case) -> Tensor:
    return reference(case.bits, case.weight, case.scale, case.stream, **case.scalars)


def assert_right(found: Tensor, case: Case) -> None:
    """Against float64: within 1e-5 of what all the terms' sizes come to, and 1e-6 of A / sigma."""
    factor = case.weight[:, None] * spread(case.scale, case.outputs)
    scores, x = factor * case.eps.double(), with_bias(case.spikes)
    wanted = torch.einsum("tno,tni->oi", scores, x)
    size = torch.einsum("tno,tni->oi", scores.abs(), x)
    most = 1e-6 * factor.abs().amax() if factor.numel() else 0.0
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    assert bool(((found - wanted).abs() <= 1e-5 * size + most).all())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(cases(STEPS))
def test_source_is_right(case: Case) -> None:
    assert_right(by_kernel(case), case)


@pytest.mark.parametrize("name", EDGES)
def test_source_is_right_at_the_edges(name: str) -> None:
    assert_right(by_kernel(EDGES[name]), EDGES[name])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(cases(STEPS))
def test_reference_is_right(case: Case) -> None:
    assert_right(by_reference(case), case)


@pytest.mark.parametrize("name", EDGES)
def test_reference_is_right_at_the_edges(name: str) -> None:
    assert_right(by_reference(EDGES[name]), EDGES[name])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases(STEPS))
def test_it_is_what_the_library_computes(case: Case) -> None:
    """Same noise, the scores of torch's executor, the gradient function of the layer."""
    sigma = 1 / spread(case.scale, case.outputs)
    module = nn.Linear(case.inputs, case.outputs)
    cotangent = cotangents(case.eps, case.weight, sigma)
    wanted = synapses.gradient_function(module)(module, case.spikes.float(), cotangent)
    found = by_kernel(case)
    torch.testing.assert_close(found[:, :-1], wanted["weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, -1], wanted["bias"], rtol=1e-4, atol=1e-4)


def test_parts_add_up_and_are_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(40, 3, 4, 7, slot=1)
    many = by_kernel(case)
    assert torch.equal(many, by_kernel(case))
    monkeypatch.setattr(tiles, "_BLOCKS", 1)
    torch.testing.assert_close(many, by_kernel(case))


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "steps"),
    [(2048, 784, 800, 8), (65536, 800, 10, 1), (64, 8192, 8192, 8), (16, 1, 1, 2**20)],
)
def test_a_large_gpu_is_filled_from_little_memory(
    rows: int, inputs: int, outputs: int, steps: int
) -> None:
    seen: list[Launch] = []
    bits = torch.empty((-(-steps // 8), rows, inputs), dtype=torch.uint8, device="meta")
    weight = torch.empty(rows, device="meta")
    scalars = Case(rows, inputs, outputs, steps).scalars
    launched(bits, weight, weight[:1], **vars(Case().stream), **scalars, launch=seen.append)
    (across, parts) = seen[0].grid
    assert across * parts >= 256
    assert parts < 2**16
    assert parts == 1 or parts * outputs * (inputs + 1) * 4 <= 2**26


def test_more_than_31_bits_of_spikes() -> None:
    """One tile of them; nothing else of the memory is ever touched."""
    case = Case(rows=40, inputs=2**26, outputs=3, steps=3)
    tile = replace(case, inputs=256)
    bits = torch.from_numpy(np.zeros((1, case.rows, case.inputs), np.uint8))  # not yet in memory
    bits[..., :256] = tile.bits

    def run_one_tile(what: Launch) -> None:
        run_on_host(replace(what, grid=(1, 1)))

    found = launched(
        bits, case.weight, case.scale, **vars(case.stream), **case.scalars, launch=run_one_tile
    )
    wanted = by_kernel(tile)
    torch.testing.assert_close(found[:, :256], wanted[:, :256])


def test_too_large_is_refused() -> None:
    bits = torch.empty((1, 2, 2**31 - 100), dtype=torch.uint8, device="meta")
    weight = torch.empty(2, device="meta")
    with pytest.raises(ValueError, match=r"smaller batches"):
        launched(bits, weight, weight[:1], **vars(Case().stream), **Case(2).scalars)


@pytest.mark.parametrize(
    "case", [Case(slot=2, first_step=4), Case(rows=0), Case(outputs=6, alike=3)]
)
def test_operator(case: Case) -> None:
    arguments = (case.bits, case.weight, case.scale)
    torch.library.opcheck(linear_gradient, arguments, {**vars(case.stream), **case.scalars})
    found = linear_gradient(*arguments, **vars(case.stream), **case.scalars)
    assert torch.equal(found, by_reference(case))
