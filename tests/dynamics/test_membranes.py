"""The membrane equations, each against its formula in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from nit_snn.dynamics import lif as f

CURRENTS, MEMBRANES = (-0.7, 0.0, 1.3), (-0.4, 0.6, 2.0)


def agree(
    found: Callable[[Tensor, Tensor], Tensor], wanted: Callable[[float, float], float]
) -> None:
    """Both give the same for all pairs of a current (or a spike) and a membrane."""
    pairs = list(product(CURRENTS, MEMBRANES))
    first, second = torch.tensor(pairs, dtype=torch.float64).T
    expected = torch.tensor([wanted(*pair) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(found(first, second), expected)


def numbers(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


@pytest.mark.parametrize(("given", "counts"), [(-0.3, 0.0), (0.8, 0.8), (1.7, 1.0)])
def test_decays_count_from_0_to_1(given: float, counts: float) -> None:
    (decay,) = numbers(given)
    agree(lambda i, u: f.leaky_charge(i, u, decay), lambda i, u: counts * u + i)
    agree(lambda i, u: f.synaptic_current(i, u, decay), lambda i, u: counts * u + i)


def test_lapicque() -> None:
    r, c, dt = 3.0, 0.5, 0.2
    agree(
        lambda i, u: f.lapicque_charge(i, u, *numbers(r, c, dt)),
        lambda i, u: (1 - dt / (r * c)) * u + dt / c * i,
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 0.8), (1.6, 0.8), (0.9, 1.6)])
def test_alpha(alpha: float, beta: float) -> None:
    a, b = (math.log(min(1.0, x)) for x in (alpha, beta))
    agree(
        lambda x, y: f.alpha_charge(x, y, *numbers(alpha, beta)),
        lambda x, y: (a / (b - a) + 1) * (x + y),
    )


def test_integrate_and_fire() -> None:
    agree(f.if_charge, lambda i, v: v + i)


@pytest.mark.parametrize("v_reset", [None, 0.0, 0.3])
@pytest.mark.parametrize("decay_input", [True, False])
def test_leaky_integrate_and_fire(decay_input: bool, v_reset: float | None) -> None:
    tau, rest = 2.5, v_reset or 0.0
    (rate,) = numbers(1 / tau)
    driven = 1 / tau if decay_input else 1.0

    def wanted(i: float, v: float) -> float:
        return v - (v - rest) / tau + driven * i

    agree(lambda i, v: f.lif_charge(i, v, tau, decay_input, v_reset), wanted)
    agree(lambda i, v: f.plif_charge(i, v, rate, decay_input, v_reset), wanted)


def test_noise_is_added_in_the_type_of_the_drift() -> None:
    (sigma,) = numbers(0.7)
    agree(lambda eps, m: f.perturb(m, sigma, eps), lambda eps, m: m + 0.7 * eps)
    half = f.perturb(torch.ones(2).bfloat16(), torch.tensor(0.5), torch.ones(2))
    assert half.dtype == torch.bfloat16 and (half == 1.5).all()


@pytest.mark.parametrize("spike", [0.0, 1.0])
def test_resets(spike: float) -> None:
    def fired(u: Tensor) -> Tensor:
        return torch.full_like(u, spike)

    agree(lambda _, u: f.hard_reset(u, fired(u), -0.2), lambda _, u: -0.2 if spike else u)
    agree(lambda _, u: f.soft_reset(u, fired(u), 1.5), lambda _, u: u - 1.5 * spike)
