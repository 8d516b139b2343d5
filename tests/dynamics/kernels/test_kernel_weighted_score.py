"""The kernel of the weighted score, its own source run on the CPU, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from host.layers import LayerCase, as_arguments, layers
from host.runner import run_on_host
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nit_snn.dynamics.firing import Firing
from nit_snn.dynamics.kernels.launch import REALS, Launch
from nit_snn.dynamics.kernels.noisy_lif.op import launched as launched_lif
from nit_snn.dynamics.kernels.noisy_lif.reference import Dynamics, noisy_lif, spread
from nit_snn.dynamics.kernels.replay import Replay
from nit_snn.dynamics.kernels.weighted_score.op import launched, weighted_score
from nit_snn.dynamics.kernels.weighted_score.reference import weighted_score as reference
from nit_snn.estimators import scores as rules
from nit_snn.noise.philox import Stream, noise


def by_kernel(case: LayerCase, **options: Any) -> tuple[Tensor, Tensor]:
    with patch("nit_snn.dynamics.kernels.launch._ENOUGH", case.enough):
        return launched(
            case.weight,
            case.scale,
            **vars(case.stream),
            **case.span,
            **as_arguments(case.replay),
            **options,
            launch=run_on_host,
        )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers(), st.booleans(), st.booleans(), st.sampled_from(list(REALS)))
def test_source_does_what_the_reference_does(
    case: LayerCase, signs: bool, summed: bool, dtype: torch.dtype
) -> None:
    options = {"signs": signs and case.replay is None, "summed": summed, "dtype": dtype}
    found, last = by_kernel(case, **options)
    wanted, state = reference(
        case.weight, case.scale, case.stream, **case.span, **options, replay=case.replay
    )
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    decided = case.decided()
    same = decided[-1] if summed else decided
    rtol = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(found[same], wanted[same], rtol=rtol, atol=1e-4)
    if case.replay is None:
        assert last.shape == state.shape == (0,)
    else:
        torch.testing.assert_close(last[decided[-1]], state[decided[-1]], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(replays=True), st.data())
def test_two_chunks_are_one(case: LayerCase, data: st.DataObject) -> None:
    whole, last = by_kernel(case)
    assert case.replay is not None
    steps = case.span["steps"]
    cut = data.draw(st.integers(0, steps))
    found, state = [], case.replay.state
    for part in (slice(0, cut), slice(cut, steps)):
        current, weight = case.replay.current, case.weight
        chunk = replace(
            case,
            weight=weight[part] if weight.dim() == 2 else weight,
            span={
                **case.span,
                "steps": part.stop - part.start,
                "first_step": case.span["first_step"] + part.start,
            },
            replay=replace(
                case.replay, state=state, current=current[part] if len(current) > 1 else current
            ),
        )
        scores, state = by_kernel(chunk)
        found.append(scores)
    assert torch.equal(torch.cat(found), whole)
    assert torch.equal(state, last)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(replays=True))
def test_a_replay_leaves_behind_what_the_layer_did(case: LayerCase) -> None:
    """To the last bit: the same spikes then had the same membranes."""
    assert case.replay is not None
    _, last = by_kernel(case)
    _, _, wanted = launched_lif(
        bits=None,
        **as_arguments(case.replay),
        **vars(case.stream),
        steps=case.span["steps"],
        first_step=case.span["first_step"],
        slot=0,
        wants_membranes=False,
        launch=run_on_host,
    )
    assert torch.equal(last, wanted)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(replays=False), st.sampled_from(rules.NAMES))
def test_reference_follows_the_rules(case: LayerCase, rule: str) -> None:
    sigma = spread(case.scale, case.span["inner"])
    scale = torch.ones(1) if rule == "nit-s" else 1 / case.scale
    signs = rule == "nit-s"
    found, _ = reference(case.weight, scale, case.stream, **case.span, signs=signs)
    weights = case.weight.expand(case.span["steps"], -1).clone()
    samples = max(1, len(weights[0]) // case.stream.replicas)
    if case.stream.layers:  # rows without noise get no weight
        replica = torch.arange(len(weights[0])) // samples
        weights[:, replica % case.stream.layers != case.stream.layer] = 0
    for ours, eps, weight in zip(found, case.eps, weights, strict=True):
        score = rules.scores(eps, rule, learn_sigma=False).drift
        wanted = rules.weighted_score(score, weight, sigma, rule)
        torch.testing.assert_close(ours, wanted)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers(replays=True))
def test_reference_conditions_as_the_rules_do(case: LayerCase) -> None:
    """The spikes and membranes are those of the forward kernel's reference."""
    stream = replace(case.stream, layers=0)
    case = replace(case, stream=stream)
    replay = case.replay
    assert replay is not None
    steps, first = case.span["steps"], case.span["first_step"]
    spikes, membranes, last = noisy_lif(
        bits=None, **vars(replay), stream=stream, steps=steps, first_step=first
    )
    found, state = reference(case.weight, 1 / replay.sigma, stream, **case.span, replay=replay)
    assert torch.equal(state, last)
    sigma, threshold = (spread(p, case.span["inner"]) for p in (replay.sigma, replay.threshold))
    for t, eps in enumerate(case.eps):
        firing = Firing((spikes[t] > 0).float(), (threshold - membranes[t] + sigma * eps) / sigma)
        score = rules.conditional_scores(eps, firing, learn_sigma=False).drift
        weight = case.weight if case.weight.dim() == 1 else case.weight[t]
        wanted = rules.weighted_score(score, weight, sigma)
        torch.testing.assert_close(found[t], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["noise", "signs", "spikes"])
def test_no_noise_is_no_score(kind: str) -> None:
    """Of 6 antithetic replicas and 3 layers, one pair of replicas has noise in layer 1."""
    stream = Stream(3, torch.tensor([0]), 1, 3, replicas=6, antithetic=True)
    one = torch.ones(1)
    # Far above the threshold every neuron fires, and the hazard is not zero.
    replay = Replay(torch.full((2, 12, 5), 1.5), None, one, one, one, one, Dynamics())
    case = LayerCase(
        weight=torch.ones(12),
        scale=one,
        stream=stream,
        span={"inner": 5, "steps": 2, "first_step": 0},
        replay=replay if kind == "spikes" else None,
        enough=1,
    )
    found = by_kernel(case, signs=kind == "signs")[0].view(2, 6, 2, 5)
    assert not found[:, [0, 2, 3, 5]].any()
    assert found[:, [1, 4]].all()
    drawn = noise(stream, range(2), 12, 5).view(2, 6, 2, 5)
    assert not drawn[:, [0, 2, 3, 5]].any()
    assert torch.equal(drawn[:, 4], -drawn[:, 1])


def example(**options: Any) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments of the operator."""
    replay = Replay(
        current=torch.ones(3, 4, 6),
        state=torch.zeros(4, 6),
        decay=torch.tensor([0.9]),
        gain=torch.ones(1),
        threshold=torch.ones(1),
        sigma=torch.rand(6) + 0.5,
        dynamics=Dynamics(reset="hard"),
    )
    stream = Stream(5, torch.tensor([2]), 0, 0, replicas=2, antithetic=True)
    replayed = as_arguments(replay) if options.pop("replays", False) else {}
    span = {"inner": 6, "steps": 3, "first_step": 4}
    return (torch.rand(4), torch.ones(2)), {**vars(stream), **span, **replayed, **options}


@pytest.mark.parametrize(
    "options",
    [{}, {"signs": True, "dtype": torch.float16}, {"replays": True}, {"summed": True}],
    ids=["noise", "signs", "spikes", "summed"],
)
def test_operator_is_sound(options: dict[str, Any]) -> None:
    torch.library.opcheck(weighted_score, *example(**options))


def test_kernel_gets_addresses_of_four_numbers() -> None:
    """However the membranes lie in the caller's memory, and whatever they are strided by."""
    (weight, scale), named = example(replays=True)
    wanted = weighted_score(weight, scale, **named)
    named["state"] = torch.zeros(25)[1:].view(4, 6)
    named["current"] = torch.ones(3, 4, 12)[..., 1::2]
    seen: list[Launch] = []

    def launch(what: Launch) -> None:
        seen.append(what)
        run_on_host(what)

    found = launched(weight, scale, **named, launch=launch)
    given = [a for a in seen[0].arguments if isinstance(a, Tensor) and a.numel() >= 24]
    assert len(given) == 4
    assert all(a.data_ptr() % 16 == 0 and a.is_contiguous() for a in given)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("operator", [weighted_score, launched])
def test_what_is_refused(operator: Any) -> None:
    positional, named = example(replays=True, signs=True)
    with pytest.raises(ValueError, match="not conditioned"):
        operator(*positional, **named)
    positional, named = example(replays=True)
    with pytest.raises(ValueError, match="needs decay"):
        operator(*positional, **{**named, "decay": None})
