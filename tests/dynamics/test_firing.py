"""What a neuron was likely to do, and its scores given that, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, truncnorm
from torch import Tensor

from nit_snn.dynamics.executor import Steps
from nit_snn.dynamics.firing import Firing, bell_, normal_hazard
from nit_snn.dynamics.lif import MembraneRule
from nit_snn.dynamics.needs import Needs
from nit_snn.dynamics.torch_executor import TorchExecutor
from nit_snn.noise.layer_noise import LayerNoise
from nit_snn.recording.memory_budget import MemoryBudget

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


def test_scores_are_means_given_a_spike() -> None:
    """`E[eps | s]` and, times the level, the score of sigma: both of the spike alone."""
    above, below = truncnorm(LEVELS.numpy(), np.inf), truncnorm(-np.inf, LEVELS.numpy())
    for spike, given in ((1.0, above), (0.0, below)):
        firing = Firing(torch.full_like(LEVELS, spike), LEVELS)
        assert_is(firing.score, given.mean())
        # d log P(s) / d sigma is (E[eps^2 | s] - 1) / sigma.
        assert_is(firing.score * LEVELS, given.var() + given.mean() ** 2 - 1)
    # Where it was silent, and how much more a spike says, on average.
    firing = Firing(torch.zeros_like(LEVELS), LEVELS)
    assert_is(firing.silent_mean, below.mean())
    assert_is(firing.gap, above.mean() - below.mean())


@pytest.mark.parametrize("spike", [0.0, 1.0])
@pytest.mark.parametrize("wiped", [True, False])
def test_what_a_membrane_carries_on_given_its_spike(spike: float, wiped: bool) -> None:
    """Central differences of `F^-1(U; m, sigma, s)`, the noise of one quantile of a truncated
    normal; a spike that wipes the membrane out leaves nothing."""
    drift = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
    uniform, sigma, step = 0.37, 0.6, 1e-5

    def membrane(m: np.ndarray, level: float) -> np.ndarray:
        a = (1 - m) / level
        low, high = (norm.cdf(a), 1.0) if spike else (0.0, norm.cdf(a))
        return m + level * norm.ppf(low + uniform * (high - low))

    m = drift.numpy()
    noise = torch.as_tensor((membrane(m, sigma) - m) / sigma)
    firing = Firing(torch.full_like(drift, spike), (1 - drift) / sigma, noise, wiped)
    by_drift = (membrane(m + step, sigma) - membrane(m - step, sigma)) / (2 * step)
    by_sigma = (membrane(m, sigma + step) - membrane(m, sigma - step)) / (2 * step)
    kept = 0.0 if wiped and spike else 1.0
    torch.testing.assert_close(firing.decay, torch.as_tensor(by_drift * kept), rtol=1e-6, atol=1e-8)
    found = firing.level_decay
    torch.testing.assert_close(found, torch.as_tensor(by_sigma * kept), rtol=1e-6, atol=1e-8)
    assert_is(firing.wandering, (noise - firing.score).numpy() * kept)


class Given:
    """Noise that is known, of one call after the other."""

    replicas = 1

    def __init__(self, *calls: Tensor) -> None:
        self.calls = calls

    def draw(self, shape: object, *args: object, call: int, **others: object) -> Tensor:
        return self.calls[call]


@pytest.mark.parametrize("kept", [True, False])
def test_weighted_scores_row_by_row(kept: bool) -> None:
    first, second = torch.randn(2, 5, 3, 2).double()
    weight, weights = torch.randn(5).double(), torch.randn(2, 5).double()
    sigma = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    noise = LayerNoise(Given(first, second), 0, 0, 1, torch.device("cpu"))
    eps, level = np.stack([first.numpy(), second.numpy()]), sigma.numpy()
    for signs in (False, True):
        executor = TorchExecutor(noise, sigma, Needs(signs=signs), MemoryBudget(), True)
        score = np.sign(eps) if signs else eps / level
        steps = Steps([0, 1], first.shape, torch.float64, True, MembraneRule())
        if kept:
            steps.noise = torch.stack([first, second])
        for given in (weight, weights):
            rows = given.numpy().reshape(-1, 5, 1, 1)
            for total in (False, True):
                chunks = executor.weighted_scores(steps, given, 1.0, total)
                found = torch.cat([values for _, values in chunks])
                wanted = rows * score
                assert_is(found, wanted.sum(0, keepdims=True) if total else wanted)
            moved = (rows * (eps**2 - 1)).sum((0, 1))
            assert_is(executor.sigma_scores(steps, given), moved)
