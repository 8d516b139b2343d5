"""What a neuron was likely to do, and its scores given that, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, truncnorm
from torch import Tensor

from nit_snn.dynamics.firing import Firing, bell_, normal_hazard
from nit_snn.estimators.scores import (
    Scores,
    conditional_scores,
    scores,
    sigma_gradient,
    weighted_score,
)

LEVELS = torch.tensor([-3.0, -1.5, -0.4, 0.0, 0.7, 2.0, 4.5], dtype=torch.float64)


@pytest.fixture(params=[0.0, 1.0], ids=["silent", "spike"])
def firing(request: pytest.FixtureRequest) -> Firing:
    return Firing(torch.full_like(LEVELS, request.param), LEVELS.clone())


def assert_is(found: Tensor, wanted: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.as_tensor(wanted), rtol=1e-9, atol=1e-12)


def test_how_likely_it_was(firing: Firing) -> None:
    fires = norm.sf(LEVELS)
    spike = firing.spike.numpy()
    did = np.where(spike == 1, fires, 1 - fires)
    assert_is(firing.residual, spike - fires)  # before the likelihood is known, and after
    assert_is(firing.likelihood, did)
    del firing.residual
    assert_is(firing.residual, spike - fires)
    assert_is(firing.probability, fires)
    assert_is(firing.lesser, np.minimum(fires, 1 - fires))
    assert_is(firing.side, 2 * spike - 1)
    assert_is(firing.density, norm.pdf(LEVELS))
    assert_is(firing.hazard, norm.pdf(LEVELS) / did)


def test_hazard_and_bell() -> None:
    assert_is(normal_hazard(LEVELS), norm.pdf(LEVELS) / norm.sf(LEVELS))
    assert_is(bell_(LEVELS.square()), np.exp(-(LEVELS.numpy() ** 2) / 2))


@pytest.mark.parametrize("learns", [True, False])
def test_scores_are_means_given_a_spike_and_the_draw_without(learns: bool) -> None:
    noise = torch.cat([LEVELS + 0.3, LEVELS - 0.3])  # all above their levels, then all below
    level = LEVELS.repeat(2)
    found = conditional_scores(noise, Firing((noise > level).double(), level), learns)
    given = truncnorm(LEVELS.numpy(), np.inf)
    drift = np.concatenate([given.mean(), LEVELS - 0.3])
    square = np.concatenate([given.var() + given.mean() ** 2 - 1, (LEVELS - 0.3) ** 2 - 1])
    assert_is(found.drift, drift)
    if learns:
        assert_is(found.sigma, square)
    else:
        assert found.sigma is None


def test_weighted_scores_row_by_row() -> None:
    noise, weight = torch.randn(5, 3, 2).double(), torch.randn(5).double()
    sigma = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    found: Scores = scores(noise, "nit", True)
    wanted = np.stack([weight[n].numpy() * noise[n].numpy() / sigma.numpy() for n in range(5)])
    assert_is(weighted_score(found.drift, weight, sigma), wanted)
    signs = scores(noise, "nit-s", False)
    wanted = np.stack([weight[n].numpy() * np.sign(noise[n].numpy()) for n in range(5)])
    assert_is(weighted_score(signs.drift, weight, sigma, "nit-s"), wanted)
    each = np.stack([weight[n].numpy() * (noise[n].numpy() ** 2 - 1) for n in range(5)])
    wanted = each.sum((0, 2))[:, None] / sigma.numpy()
    assert_is(sigma_gradient(found.sigma, weight, sigma), wanted)
