"""The kernel of a Linear layer's direction under NIT-S, its own source run on the CPU."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from host.by_torch import cotangents
from host.linear import EDGES, Case, cases, with_bias
from host.runner import run_on_host
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nit_snn.dynamics.kernels import tiles
from nit_snn.dynamics.kernels.launch import INCLUDE
from nit_snn.dynamics.kernels.linear_sign_gradient.op import launched, linear_sign_gradient
from nit_snn.dynamics.kernels.linear_sign_gradient.reference import (
    linear_sign_gradient as reference,
)
from nit_snn.gradients import synapses
from nit_snn.noise.philox import normals

STEPS = st.one_of(st.integers(1, 9), st.integers(23, 34), st.integers(60, 70))


def by_kernel(case: Case, weight: Tensor) -> Tensor:
    return launched(case.bits, weight, **vars(case.stream), **case.scalars, launch=run_on_host)


def by_reference(case: Case, weight: Tensor) -> Tensor:
    return reference(case.bits, weight, case.stream, **case.scalars)


def by_numbers(case: Case, weight: Tensor) -> Tensor:
    """In float64, which is exact for whole numbers."""
    score = weight[:, None].double() * torch.where(case.eps >= 0, 1.0, -1.0)
    return torch.einsum("tno,tni->oi", score, with_bias(case.spikes) * 2 - 1)


def assert_exact(found: Tensor, case: Case) -> None:
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), by_numbers(case, case.integers))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases(STEPS))
def test_source_is_exact_for_whole_numbers(case: Case) -> None:
    assert_exact(by_kernel(case, case.integers), case)


@pytest.mark.parametrize("name", EDGES)
def test_source_is_exact_at_the_edges(name: str) -> None:
    assert_exact(by_kernel(EDGES[name], EDGES[name].integers), EDGES[name])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases(STEPS))
def test_reference_is_exact_for_whole_numbers(case: Case) -> None:
    assert_exact(by_reference(case, case.integers), case)


@pytest.mark.parametrize("name", EDGES)
def test_reference_is_exact_at_the_edges(name: str) -> None:
    assert_exact(by_reference(EDGES[name], EDGES[name].integers), EDGES[name])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases(STEPS))
def test_source_is_close_for_any_numbers(case: Case) -> None:
    """Within 1e-6 of what the sizes of all the terms come to."""
    wanted = by_numbers(case, case.weight)
    size = 1e-6 * case.steps * float(case.weight.abs().sum())
    torch.testing.assert_close(by_kernel(case, case.weight), wanted.float(), rtol=0, atol=size)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases(STEPS))
def test_it_is_what_the_library_computes(case: Case) -> None:
    """Same noise, the signs of torch's executor, the gradient function of the layer."""
    module = nn.Linear(case.inputs, case.outputs)
    cotangent = cotangents(case.eps, case.integers, torch.ones(()), signs=True)
    spikes = 2 * case.spikes.float() - 1
    wanted = synapses.gradient_function(module)(module, spikes, cotangent)
    found = by_kernel(case, case.integers)
    assert torch.equal(found[:, :-1], wanted["weight"])
    assert torch.equal(found[:, -1], wanted["bias"])


def test_parts_are_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(100, 3, 4, 40, slot=1)
    many = by_kernel(case, case.weight)
    assert torch.equal(many, by_kernel(case, case.weight))
    monkeypatch.setattr(tiles, "_BLOCKS", 1)
    torch.testing.assert_close(many, by_kernel(case, case.weight))


@pytest.mark.parametrize("case", [Case(slot=2, first_step=4), Case(rows=0)])
def test_operator(case: Case) -> None:
    arguments = (case.bits, case.weight)
    torch.library.opcheck(linear_sign_gradient, arguments, {**vars(case.stream), **case.scalars})
    found = linear_sign_gradient(*arguments, **vars(case.stream), **case.scalars)
    assert torch.equal(found, by_reference(case, case.weight))


def test_sides_are_the_signs_of_the_noise(tmp_path: Path) -> None:
    """For words all over, and for those where a sine, a cosine or the radius is zero."""
    source, built = tmp_path / "sides.cpp", tmp_path / "sides.so"
    source.write_text(
        '#include "signs.cuh"\n'
        'extern "C" void sides(u32 a, u32 b, u32 *out) { two_sides(a, b, 0, out); }\n'
    )
    folders = [f"-I{INCLUDE}", f"-I{Path(__file__).parent / 'host'}"]
    command = ["g++", "-std=c++17", "-DNIT_HOST", "-shared", "-fPIC", *folders, str(source)]
    subprocess.run([*command, "-o", str(built)], check=True)
    sides = ctypes.CDLL(str(built)).sides
    sides.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]

    quarters = [q * 2**30 + d for q in range(5) for d in (-300, -130, -1, 0, 1, 130, 300)]
    angles = [w for w in quarters if 0 <= w < 2**32] + [k * 2654435761 % 2**32 for k in range(999)]
    radii = [0, 12345, 2**31, 2**32 - 257, 2**32 - 129, 2**32 - 128, 2**32 - 1]
    a, b = (w.flatten() for w in torch.meshgrid(*map(torch.tensor, (radii, angles)), indexing="ij"))
    found = torch.empty(len(a), 2, dtype=torch.int32)
    for row, first, second in zip(found, a.tolist(), b.tolist(), strict=True):
        sides(first, second, row.data_ptr())

    zero = torch.zeros_like(a)
    noise = normals([a, b, zero, zero])[:, :2]
    assert torch.equal(found.bool(), noise >= 0)
    assert 0 < int((noise == 0).sum()) < noise.numel()
