"""Every registered synapse against autograd, over shapes and options that hypothesis draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import layer
from torch import nn
from torch.nn.utils import parametrizations, prune

import nit_snn.neurons.spikingjelly  # noqa: F401  (registers its layers)
from nit_snn.gradients.synapses import gradient_function
from nit_snn.gradients.synapses.few_outputs import few_outputs, suits


def assert_equals_autograd(module: nn.Module, x: torch.Tensor) -> None:
    """The gradient function gives autograd's vector-Jacobian product, in float64."""
    function = gradient_function(module)
    assert function is not None
    module.double()
    x = x.double()
    y = module(x)
    cotangent = torch.randn_like(y)
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(y, list(parameters.values()), cotangent)
    gradients = function(module, x, cotangent)
    assert set(gradients) == set(parameters)
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9)


@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    features=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    kind=st.sampled_from([nn.Linear, layer.Linear]),
)
def test_linear(leading: list[int], features: tuple[int, int], bias: bool, kind: Any) -> None:
    assert_equals_autograd(kind(*features, bias=bias), torch.randn(*leading, features[0]))


@st.composite
def convolutions(draw: st.DrawFn, kinds: tuple[type[nn.Module], ...]) -> tuple[nn.Module, Any]:
    """A convolution with drawn options, and an input that fits it."""
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * dims))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * dims))
    stride = draw(st.tuples(*[st.integers(1, 2)] * dims))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding: Any = draw(st.one_of(st.tuples(*[st.integers(0, 2)] * dims), st.just("valid")))
    if stride == (1,) * dims and draw(st.booleans()):
        padding = "same"
    module = kinds[dims - 1](
        *channels,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    spatial = [
        d * (k - 1) + 1 + draw(st.integers(2, 4)) for d, k in zip(dilation, kernel, strict=True)
    ]
    return module, (channels[0], *spatial)


@given(case=convolutions((nn.Conv1d, nn.Conv2d, nn.Conv3d)), batch=st.integers(0, 3))
def test_convolutions(case: tuple[nn.Module, Any], batch: int) -> None:
    module, shape = case
    assert_equals_autograd(module, torch.randn(batch, *shape))


@given(case=convolutions((layer.Conv1d, layer.Conv2d, layer.Conv3d)), time=st.integers(1, 3))
def test_multi_step_convolutions(case: tuple[nn.Module, Any], time: int) -> None:
    module, shape = case
    module.step_mode = "m"
    assert_equals_autograd(module, torch.randn(time, 2, *shape))


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3),
        prune.l1_unstructured(nn.Linear(3, 3), "weight", 1),
        parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.LazyLinear(3),
        type("MyLinear", (nn.Linear,), {"forward": lambda self, x: -x})(3, 3),
    ],
    ids=["unknown", "pruned", "weight norm", "lazy", "subclass"],
)
def test_what_computes_something_else_takes_the_general_route(module: nn.Module) -> None:
    assert gradient_function(module) is None


@given(
    outputs=st.integers(1, 15),
    leading=st.lists(st.integers(0, 4), max_size=3),
    bias=st.booleans(),
    frozen=st.booleans(),
)
def test_few_outputs(outputs: int, leading: list[int], bias: bool, frozen: bool) -> None:
    """The padded product and its gradients are those of the layer."""
    module = nn.Linear(5, outputs, bias=bias)
    module.weight.requires_grad = not (frozen and bias)
    trained = [p for p in module.parameters() if p.requires_grad]
    x = torch.randn(*leading, 5)
    expected, found = module(x), few_outputs(x, module.weight, module.bias)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, trained, cotangent),
        torch.autograd.grad(expected, trained, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(4, 6, 5), (6, 5)])
def test_few_outputs_that_are_summed_over_the_first_dimension(shape: tuple[int, ...]) -> None:
    """Their cotangent is one slice for all, which takes a way of its own."""
    module, x = nn.Linear(5, 3), torch.randn(*shape, requires_grad=True)
    wanted = [x, *module.parameters()]
    expected, found = module(x), few_outputs(x, module.weight, module.bias)
    weight = torch.randn(expected.shape[1:])
    for a, b in zip(
        torch.autograd.grad((found.sum(0) * weight).sum(), wanted),
        torch.autograd.grad((expected.sum(0) * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_few_outputs_are_for_large_batches_without_a_gradient_of_their_own() -> None:
    module, x = nn.Linear(5, 10), torch.randn(4096, 5)
    assert suits(module, x)
    assert not suits(nn.Linear(5, 16), x) and not suits(nn.Linear(5, 2), x)
    assert suits(nn.Linear(5, 3), x) and not suits(module, x[:4095])
    several = x[:1024].view(512, 2, 5)
    assert suits(module, several) and not suits(module, several[:511])
    assert not suits(module, x.clone().requires_grad_())
    assert not suits(module, x.double()) and not suits(module.double(), x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not suits(nn.Linear(5, 10), x)


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_few_outputs_of_steps_that_have_a_gradient(summed: bool, frozen: bool) -> None:
    """Where outputs are summed over the steps their gradient comes expanded."""
    torch.manual_seed(0)
    module = nn.Linear(5, 4).requires_grad_(not frozen)
    x = torch.rand(6, 200, 5, requires_grad=True)
    assert suits(module, x)
    slope = torch.randn(200, 4)
    if not summed:
        slope = slope * torch.rand(6, 1, 1)
    found = []
    for outputs in (module(x), few_outputs(x, module.weight, module.bias)):
        read = outputs.sum(0) if summed else outputs
        wanted = [t for t in (x, module.weight, module.bias) if t.requires_grad]
        found.append([outputs.detach(), *torch.autograd.grad((read * slope).sum(), wanted)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-4)
