"""The kernel of sigma's gradient, its own source run on the CPU, against the reference."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import torch
from host.by_torch import sigma_scores
from host.layers import LayerCase, layers
from host.runner import run_on_host
from hypothesis import given, settings
from torch import Tensor

from nit_snn.dynamics.kernels.sigma_gradient.op import launched, sigma_gradient
from nit_snn.dynamics.kernels.sigma_gradient.reference import sigma_gradient as reference
from nit_snn.noise.philox import Stream


def by_kernel(case: LayerCase) -> Tensor:
    with patch("nit_snn.dynamics.kernels.launch._ENOUGH", case.enough):
        return launched(case.weight, **vars(case.stream), **case.span, launch=run_on_host)


def by_reference(case: LayerCase) -> Tensor:
    return reference(case.weight, case.stream, **case.span)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers())
def test_source_does_what_the_reference_does(case: LayerCase) -> None:
    found, wanted = by_kernel(case), by_reference(case)
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers())
def test_rows_are_split_into_parts_that_add_up(case: LayerCase) -> None:
    """Whatever the number of parts, and always to the same bits."""
    few, many = (by_kernel(replace(case, enough=n)) for n in (1, 2**17))
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-4)
    assert torch.equal(few, by_kernel(replace(case, enough=1)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers())
def test_reference_is_what_torch_computes(case: LayerCase) -> None:
    wanted = sigma_scores(case.eps, case.weight)
    torch.testing.assert_close(by_reference(case), wanted, rtol=1e-4, atol=1e-4)


def test_operator_is_sound() -> None:
    stream = Stream(5, torch.tensor([2]), 1, replicas=4)
    span = {"inner": 6, "steps": 3, "first_step": 4}
    torch.library.opcheck(sigma_gradient, (torch.rand(3, 4),), {**vars(stream), **span})
