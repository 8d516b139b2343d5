"""The kernel of the weighted score, its own source run on the CPU, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from host.by_torch import cotangents
from host.layers import LayerCase, layers
from host.runner import run_on_host
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nit_snn.dynamics.kernels.launch import REALS
from nit_snn.dynamics.kernels.noisy_lif.reference import spread
from nit_snn.dynamics.kernels.weighted_score.op import launched, weighted_score
from nit_snn.dynamics.kernels.weighted_score.reference import weighted_score as reference
from nit_snn.noise.philox import Stream


def by_kernel(case: LayerCase, **options: Any) -> Tensor:
    with patch("nit_snn.dynamics.kernels.launch._ENOUGH", case.enough):
        return launched(
            case.weight,
            case.scale,
            **vars(case.stream),
            **case.span,
            **options,
            launch=run_on_host,
        )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers(), st.booleans(), st.booleans(), st.sampled_from(list(REALS)))
def test_source_does_what_the_reference_does(
    case: LayerCase, signs: bool, summed: bool, dtype: torch.dtype
) -> None:
    options = {"signs": signs, "summed": summed, "dtype": dtype}
    found = by_kernel(case, **options)
    wanted = reference(case.weight, case.scale, case.stream, **case.span, **options)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    rtol = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(), st.booleans(), st.data())
def test_two_chunks_are_one(case: LayerCase, signs: bool, data: st.DataObject) -> None:
    """However the steps are cut up, to the last bit."""
    whole = by_kernel(case, signs=signs)
    steps, found = case.span["steps"], []
    cut = data.draw(st.integers(0, steps))
    for part in (slice(0, cut), slice(cut, steps)):
        span = {"steps": part.stop - part.start, "first_step": case.span["first_step"] + part.start}
        weight = case.weight[part] if case.weight.dim() == 2 else case.weight
        chunk = replace(case, weight=weight, span={**case.span, **span})
        found.append(by_kernel(chunk, signs=signs))
    assert torch.equal(torch.cat(found), whole)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(), st.booleans(), st.booleans())
def test_reference_is_what_torch_computes(case: LayerCase, signs: bool, summed: bool) -> None:
    scale = torch.ones(1) if signs else case.scale
    options = {"signs": signs, "summed": summed}
    found = reference(case.weight, scale, case.stream, **case.span, **options)
    sigma = 1 / spread(case.scale, case.span["inner"])
    wanted = cotangents(case.eps, case.weight, sigma, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("signs", [False, True])
def test_antithetic_replicas_have_opposite_scores(signs: bool) -> None:
    stream = Stream(3, torch.tensor([0]), 1, replicas=6, antithetic=True)
    span = {"inner": 5, "steps": 2, "first_step": 0}
    case = LayerCase(torch.ones(12), torch.ones(1), stream, span, enough=1)
    first, second = by_kernel(case, signs=signs).chunk(2, 1)
    assert torch.equal(second, -first) and first.all()
    assert not torch.equal(first[:, :2], first[:, 2:4])


def example(**options: Any) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments of the operator."""
    stream = Stream(5, torch.tensor([2]), 0, replicas=2, antithetic=True)
    span = {"inner": 6, "steps": 3, "first_step": 4}
    return (torch.rand(4), torch.ones(2)), {**vars(stream), **span, **options}


@pytest.mark.parametrize(
    "options",
    [{}, {"signs": True, "dtype": torch.float16}, {"summed": True}],
    ids=["noise", "signs", "summed"],
)
def test_operator_is_sound(options: dict[str, Any]) -> None:
    torch.library.opcheck(weighted_score, *example(**options))


@pytest.mark.parametrize("steps", [(), (3,)])
def test_weights_may_lie_in_memory_as_they_like(steps: tuple[int, ...]) -> None:
    (_, scale), named = example()
    strided = torch.rand(*steps, 8)[..., 1::2]
    shared = torch.rand(1).expand(*steps, 4)
    for weight in (strided, shared):
        found = launched(weight, scale, **named, launch=run_on_host)
        plain = weight.clone(memory_format=torch.contiguous_format)
        assert torch.equal(found, launched(plain, scale, **named, launch=run_on_host))
        torch.testing.assert_close(found, weighted_score(weight, scale, **named))
