"""One noisy step in closed form, against its formula in plain numbers, neuron by neuron."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from nit_snn.dynamics.lif import (
    Dynamics,
    Lif,
    add,
    after_reset,
    noisy_step,
    number,
    spikes_of,
)

THRESHOLD, SIGMA = 0.8, 0.3
CURRENT, STATE, NOISE = (
    torch.tensor(column, dtype=torch.float64)
    for column in zip(*product((-0.6, 1.2), (0.2, 0.8, 1.9), (-1.0, 0.5)), strict=True)
)
RESETS = ("none", "hard", "soft", "whole")


def stepped(lif: Lif, decay: float, gain: float) -> Tensor:
    """u, number by number."""
    found = []
    d = lif.dynamics
    for i, v, eps in zip(CURRENT.tolist(), STATE.tolist(), NOISE.tolist(), strict=True):
        fired = d.delayed and (v >= THRESHOLD if d.or_equal else v > THRESHOLD)
        if fired and d.reset == "hard":
            v = d.v_reset
        drift = decay * (v - d.rest) + d.rest + gain * i
        if fired and d.reset == "soft":
            drift -= THRESHOLD
        if fired and d.reset == "whole":
            drift = 0.0
        found.append(drift + SIGMA * eps)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("delayed", [True, False])
@pytest.mark.parametrize(("rest", "v_reset"), [(0.0, 0.0), (0.4, -0.1)])
@pytest.mark.parametrize("gain", [1.0, 2.0])
@pytest.mark.parametrize("each", [False, True], ids=["one number", "one per neuron"])
def test_a_step(
    reset: str, delayed: bool, rest: float, v_reset: float, gain: float, each: bool
) -> None:
    def given(x: float) -> float | Tensor:
        return torch.full_like(STATE, x) if each else x

    for or_equal in (False, True):
        dynamics = Dynamics(rest, v_reset, reset, delayed, or_equal)
        lif = Lif(dynamics, given(0.9), given(gain) if gain != 1.0 else 1.0)
        wanted = stepped(lif, 0.9, gain)
        fired = spikes_of(STATE, THRESHOLD, or_equal)
        for known in (None, fired):
            state = STATE.clone()
            found = noisy_step(
                CURRENT, state, known, lif, given(THRESHOLD), given(SIGMA), NOISE.clone()
            )
            torch.testing.assert_close(found, wanted)
            assert torch.equal(state, STATE)  # whose it is


def test_the_membrane_fires_above_the_threshold_or_at_it() -> None:
    out = torch.empty_like(STATE)
    assert spikes_of(STATE, 0.8, False, out) is out
    assert torch.equal(out, (STATE > 0.8).double())
    assert torch.equal(spikes_of(STATE, torch.full_like(STATE, 0.8), True), (STATE >= 0.8).double())


@pytest.mark.parametrize("v_reset", [0.0, -0.1])
def test_what_a_step_leaves(v_reset: float) -> None:
    fired = (STATE > THRESHOLD).double()
    whole = {
        "none": STATE,
        "hard": torch.where(fired == 1, v_reset, STATE),
        "soft": STATE - THRESHOLD * fired,
    }
    for reset, wanted in whole.items():
        lif = Lif(Dynamics(0.0, v_reset, reset))
        torch.testing.assert_close(after_reset(STATE.clone(), fired, lif, THRESHOLD), wanted)
        later = Lif(Dynamics(0.0, v_reset, reset, delayed=True))
        assert torch.equal(after_reset(STATE.clone(), fired, later, THRESHOLD), STATE)


@pytest.mark.filterwarnings("error")
def test_numbers_and_tensors() -> None:
    one, many = torch.tensor([2.0], requires_grad=True), torch.ones(2, requires_grad=True)
    assert type(number(one)) is float and number(one) == 2.0 and number(3) == 3.0
    assert type(number(3)) is float and not number(many).requires_grad
    x = torch.ones(2)
    assert add(x, torch.ones(2), 2.0) is x and (x == 3).all()
    assert add(x, torch.ones(2), torch.tensor(2.0).double()) is x and (x == 5).all()
