"""The kernel of sigma's gradient, its own source run on the CPU, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from host.layers import LayerCase, as_arguments, layers
from host.runner import run_on_host
from hypothesis import given, settings
from torch import Tensor

from nit_snn.dynamics.firing import Firing
from nit_snn.dynamics.kernels.noisy_lif.reference import Dynamics, noisy_lif, spread
from nit_snn.dynamics.kernels.replay import Replay
from nit_snn.dynamics.kernels.sigma_gradient.op import launched, sigma_gradient
from nit_snn.dynamics.kernels.sigma_gradient.reference import sigma_gradient as reference
from nit_snn.estimators import scores as rules
from nit_snn.noise.philox import Stream


def by_kernel(case: LayerCase) -> Tensor:
    with patch("nit_snn.dynamics.kernels.launch._ENOUGH", case.enough):
        return launched(
            case.weight,
            **vars(case.stream),
            **case.span,
            **as_arguments(case.replay),
            launch=run_on_host,
        )


def by_reference(case: LayerCase) -> Tensor:
    return reference(case.weight, case.stream, **case.span, replay=case.replay)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers())
def test_source_does_what_the_reference_does(case: LayerCase) -> None:
    found, wanted = by_kernel(case), by_reference(case)
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    same = case.decided().flatten(0, 1).all(0)
    torch.testing.assert_close(found[same], wanted[same], rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers())
def test_rows_are_split_into_parts_that_add_up(case: LayerCase) -> None:
    """Whatever the number of parts, and always to the same bits."""
    few, many = (by_kernel(replace(case, enough=n)) for n in (1, 2**17))
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-4)
    assert torch.equal(few, by_kernel(replace(case, enough=1)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(replays=False))
def test_reference_follows_the_rules(case: LayerCase) -> None:
    sigma = spread(case.scale, case.span["inner"]).expand(case.span["inner"])
    weights = case.weight.expand(case.span["steps"], -1).clone()
    if case.stream.layers:  # rows without noise get no weight
        rows = len(weights[0])
        replica = torch.arange(rows) // max(1, rows // case.stream.replicas)
        weights[:, replica % case.stream.layers != case.stream.layer] = 0
    wanted = torch.zeros_like(sigma)
    for eps, weight in zip(case.eps, weights, strict=True):
        score = rules.scores(eps, "nit", learn_sigma=True).sigma
        assert score is not None
        wanted += rules.sigma_gradient(score, weight, sigma)
    torch.testing.assert_close(by_reference(case) / sigma, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(replays=True))
def test_reference_conditions_as_the_rules_do(case: LayerCase) -> None:
    """The spikes and membranes are those of the forward kernel's reference."""
    case = replace(case, stream=replace(case.stream, layers=0))
    replay, inner = case.replay, case.span["inner"]
    assert replay is not None
    spikes, membranes, _ = noisy_lif(
        bits=None,
        **vars(replay),
        stream=case.stream,
        steps=case.span["steps"],
        first_step=case.span["first_step"],
    )
    sigma, threshold = (spread(p, inner).expand(inner) for p in (replay.sigma, replay.threshold))
    wanted = torch.zeros_like(sigma)
    for t, eps in enumerate(case.eps):
        firing = Firing((spikes[t] > 0).float(), (threshold - membranes[t] + sigma * eps) / sigma)
        score = rules.conditional_scores(eps, firing, learn_sigma=True).sigma
        assert score is not None
        weight = case.weight if case.weight.dim() == 1 else case.weight[t]
        wanted += rules.sigma_gradient(score, weight, sigma)
    torch.testing.assert_close(by_reference(case) / sigma, wanted, rtol=1e-4, atol=1e-3)


def example(replays: bool) -> tuple[tuple[Tensor], dict[str, Any]]:
    """Arguments of the operator."""
    one = torch.ones(1)
    replay = Replay(torch.ones(1, 4, 6), None, one, one, one, one, Dynamics(reset="hard"))
    stream = Stream(5, torch.tensor([2]), 1, 2, replicas=4)
    span = {"inner": 6, "steps": 3, "first_step": 4}
    named = {**vars(stream), **span, **(as_arguments(replay) if replays else {})}
    return (torch.rand(3, 4),), named


@pytest.mark.parametrize("replays", [False, True])
def test_operator_is_sound(replays: bool) -> None:
    torch.library.opcheck(sigma_gradient, *example(replays))


@pytest.mark.parametrize("replays", [False, True])
def test_rows_without_noise_add_nothing(replays: bool) -> None:
    """Replica 1 of 4, and 3, have noise in layer 1 of 2."""
    (weight,), named = example(replays)
    masked = weight * torch.tensor([0.0, 1.0, 0.0, 1.0])
    for weights in (weight, masked):
        found = launched(weights, **named, launch=run_on_host)
        assert found.all()
        torch.testing.assert_close(found, sigma_gradient(masked, **named))


@pytest.mark.parametrize("operator", [sigma_gradient, launched])
def test_replay_needs_all_of_the_neurons(operator: Any) -> None:
    positional, named = example(replays=True)
    with pytest.raises(ValueError, match="needs decay"):
        operator(*positional, **{**named, "threshold": None})
