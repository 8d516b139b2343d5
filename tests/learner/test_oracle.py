"""The oracle against closed forms and against brute-force simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

try:
    from tests import oracle
except ImportError:  # tests/ itself is on the path
    import oracle

Array = np.ndarray
Step = Callable[[Array, Array, Array], tuple[Array, Array, Array]]

THRESHOLD = 0.8
RUNS = 400_000
ERRORS = 4.5


# --- a second, naive statement of the dynamics ------------------------------------------------


def leaky_step(beta: float, reset: str) -> Step:
    """(mem, current, noise) -> (u, spike, mem) of snnTorch's Leaky."""

    def step(mem: Array, current: Array, noise: Array) -> tuple[Array, Array, Array]:
        u = np.where(mem > THRESHOLD, 0.0, beta * mem) if reset == "zero" else beta * mem
        u = u + current + noise
        if reset == "subtract":
            u = np.where(mem > THRESHOLD, u - THRESHOLD, u)
        return u, u > THRESHOLD, u

    return step


def spikingjelly_step(
    tau: float | None, decay_input: bool = True, v_reset: float | None = 0.0
) -> Step:
    """(v, current, noise) -> (u, spike, v) of SpikingJelly's IF (no tau) and LIF."""
    rest = 0.0 if v_reset is None else v_reset

    def step(v: Array, current: Array, noise: Array) -> tuple[Array, Array, Array]:
        if tau is None:
            charged = v + current
        elif decay_input:
            charged = v + (current - (v - rest)) / tau
        else:
            charged = v - (v - rest) / tau + current
        u = charged + noise
        spike = u > THRESHOLD
        return u, spike, np.where(spike, u - THRESHOLD if v_reset is None else v_reset, u)

    return step


@dataclass(frozen=True)
class Case:
    dynamics: oracle.Dynamics
    step: Step
    start: float = 0.0


CASES = {
    "leaky-subtract": Case(oracle.Leaky(0.9), leaky_step(0.9, "subtract")),
    "leaky-zero": Case(oracle.Leaky(0.7, "zero"), leaky_step(0.7, "zero")),
    "leaky-none": Case(oracle.Leaky(0.8, "none"), leaky_step(0.8, "none")),
    "if-hard": Case(oracle.IF(-0.2), spikingjelly_step(None, v_reset=-0.2), -0.2),
    "if-soft": Case(oracle.IF(None), spikingjelly_step(None, v_reset=None)),
    "lif-decay-hard": Case(oracle.LIF(2.0, True, 0.1), spikingjelly_step(2.0, True, 0.1), 0.1),
    "lif-decay-soft": Case(oracle.LIF(1.5, True, None), spikingjelly_step(1.5, True, None)),
    "lif-hard": Case(oracle.LIF(2.0, False, -0.3), spikingjelly_step(2.0, False, -0.3), -0.3),
    "lif-soft": Case(oracle.LIF(3.0, False, None), spikingjelly_step(3.0, False, None)),
}
LOSSES = {
    "count cross-entropy": oracle.count_cross_entropy(1),
    "count error": oracle.count_error(0),
    "latency": oracle.first_spike_latency(1),
    "membrane square error": oracle.membrane_square_error(np.array([1.0, -0.5])),
    "membrane cross-entropy": oracle.membrane_cross_entropy(0),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# --- helpers ----------------------------------------------------------------------------------


def small_network(
    case: Case, loss: oracle.SpikeLoss | oracle.MembraneLoss, hidden: int = 2, steps: int = 3
) -> tuple[oracle.Network, dict[str, Array]]:
    """A 3-hidden-2 network with a time-varying input and a sigma for every neuron."""
    rng = np.random.default_rng(5)
    theta = {
        "W1": rng.normal(0.0, 0.7, (hidden, 3)),
        "b1": rng.normal(0.3, 0.2, hidden),
        "W2": rng.normal(0.3, 0.8, (2, hidden)),
        "b2": rng.normal(0.3, 0.2, 2),
        "sigma1": rng.uniform(0.3, 0.7, hidden),
        "sigma2": np.array([0.4, 0.6]),
    }
    x = rng.normal(0.4, 0.8, (steps, 3))
    return oracle.Network(x, case.dynamics, case.dynamics, THRESHOLD, loss), theta


def simulate(
    network: oracle.Network, theta: dict[str, Array], hidden: Case, output: Case, seed: int
) -> tuple[Array, Array]:
    """Run the whole network RUNS times: output spikes (RUNS, K, T), last membranes (RUNS, K)."""
    rng = np.random.default_rng(seed)
    state1 = np.full((RUNS, len(theta["b1"])), hidden.start)
    state2 = np.full((RUNS, len(theta["b2"])), output.start)
    spikes = []
    for x in network.x:
        noise = theta["sigma1"] * rng.standard_normal(state1.shape)
        _, spike, state1 = hidden.step(state1, theta["W1"] @ x + theta["b1"], noise)
        noise = theta["sigma2"] * rng.standard_normal(state2.shape)
        u, spike, state2 = output.step(state2, spike @ theta["W2"].T + theta["b2"], noise)
        spikes.append(spike)
    return np.stack(spikes, axis=-1).astype(np.int64), u


def sampled_losses(
    loss: oracle.SpikeLoss | oracle.MembraneLoss, spikes: Array, membranes: Array
) -> Array:
    """The loss of every run, (RUNS,)."""
    if isinstance(loss, oracle.MembraneLoss):
        return loss.function(membranes)
    flat = spikes.reshape(len(spikes), -1)
    codes = flat @ (1 << np.arange(flat.shape[1]))
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.array([loss.function(spikes[i]) for i in first])[inverse]


def assert_simulation_agrees(
    network: oracle.Network, theta: dict[str, Array], hidden: Case, output: Case, seed: int
) -> None:
    spikes, membranes = simulate(network, theta, hidden, output, seed)
    for name, loss in LOSSES.items():
        sample = sampled_losses(loss, spikes, membranes)
        exact = oracle.expected_loss(replace(network, loss=loss), theta)
        error = sample.std() / np.sqrt(RUNS)
        assert 0 < error < 0.01, name
        assert abs(sample.mean() - exact) < ERRORS * error, name


# --- one neuron -------------------------------------------------------------------------------


@every_case
def test_single_step_probability_is_phi(case: Case) -> None:
    neuron = oracle.Neuron(case.dynamics, 0.45, THRESHOLD)
    for current in (-3.0, 0.2, 0.8, 2.5):
        drift, _, _ = case.step(np.array(case.start), np.array(current), np.array(0.0))
        expected = norm.cdf((drift - THRESHOLD) / 0.45)
        quiet, firing = oracle.pattern_probabilities(neuron, np.array([current]))
        assert firing == pytest.approx(expected, rel=1e-12, abs=0)
        assert quiet == pytest.approx(1 - expected, abs=1e-12)


@every_case
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_probabilities_sum_to_one(case: Case, sigma: float) -> None:
    neuron = oracle.Neuron(case.dynamics, sigma, THRESHOLD)
    currents = np.array([0.9, -0.4, 1.3, 0.2])
    patterns = oracle.pattern_probabilities(neuron, currents)
    assert patterns.shape == (2, 2, 2, 2)
    assert patterns.min() >= 0
    assert patterns.sum() == pytest.approx(1, abs=1e-10)
    assert oracle.membrane_law(neuron, currents)[1].sum() == pytest.approx(1, abs=1e-10)


@every_case
def test_earlier_spikes_do_not_depend_on_later_currents(case: Case) -> None:
    neuron = oracle.Neuron(case.dynamics, 0.5, THRESHOLD)
    currents = np.array([0.9, -0.4, 1.3])
    longer = oracle.pattern_probabilities(neuron, np.append(currents, 5.0)).sum(axis=-1)
    shorter = oracle.pattern_probabilities(neuron, currents)
    np.testing.assert_allclose(longer, shorter, rtol=0, atol=1e-12)


def two_step_closed_form(case: Case, sigma: float, first: float, second: float) -> Array:
    """P(s_1, s_2) from bivariate normal distribution functions, (2, 2).

    On either side of the threshold u_2 = a u_1 + c + sigma eps_2, so that (u_1, u_2) is the
    restriction of a normal vector of covariance sigma^2 [[1, a], [a, a^2 + 1]].
    """
    zero = np.array(0.0)
    mean, _, _ = case.step(np.array(case.start), np.array(first), zero)

    def next_drift(u: float) -> float:
        _, _, state = case.step(np.array(case.start), np.array(first), u - mean)
        return float(case.step(state, np.array(second), zero)[0])

    table = np.empty((2, 2))
    for spike, sign in ((0, 1.0), (1, -1.0)):
        near, far = THRESHOLD - sign, THRESHOLD - 2 * sign
        a = (next_drift(far) - next_drift(near)) / (far - near)
        c = next_drift(near) - a * near
        law = multivariate_normal(
            [sign * mean, a * mean + c], sigma**2 * np.array([[1, sign * a], [sign * a, a * a + 1]])
        )
        table[spike, 0] = law.cdf([sign * THRESHOLD, THRESHOLD])
        table[spike, 1] = norm.cdf(sign * (THRESHOLD - mean) / sigma) - table[spike, 0]
    return table


@every_case
@pytest.mark.parametrize("sigma", [0.2, 0.6])
def test_two_steps_are_bivariate_normal(case: Case, sigma: float) -> None:
    for first, second in product((-0.5, 0.7, 1.6), repeat=2):
        neuron = oracle.Neuron(case.dynamics, sigma, THRESHOLD)
        table = oracle.pattern_probabilities(neuron, np.array([first, second]))
        expected = two_step_closed_form(case, sigma, first, second)
        np.testing.assert_allclose(table, expected, rtol=0, atol=1e-10)


def test_membrane_without_reset_is_gaussian() -> None:
    """u_T has mean sum_t beta^(T-t) I_t and variance sigma^2 sum_t beta^(2 (T-t))."""
    beta, sigma, currents = 0.8, 0.5, np.array([0.9, -0.4, 1.3, 0.2])
    neuron = oracle.Neuron(oracle.Leaky(beta, "none"), sigma, THRESHOLD)
    nodes, mass = oracle.membrane_law(neuron, currents)
    decay = beta ** np.arange(3, -1, -1)
    mean, variance = decay @ currents, sigma**2 * (decay**2).sum()
    assert mass @ nodes == pytest.approx(mean, abs=1e-12)
    assert mass @ (nodes - mean) ** 2 == pytest.approx(variance, abs=1e-12)
    assert mass @ (nodes - mean) ** 4 == pytest.approx(3 * variance**2, abs=1e-12)
    characteristic = np.exp(-0.5 * variance * 4) * np.cos(2 * mean)
    assert mass @ np.cos(2 * nodes) == pytest.approx(characteristic, abs=1e-12)


@every_case
def test_spike_and_membrane_laws_agree(case: Case) -> None:
    neuron = oracle.Neuron(case.dynamics, 0.5, THRESHOLD)
    currents = np.array([0.9, -0.4, 1.3])
    nodes, mass = oracle.membrane_law(neuron, currents)
    last = oracle.pattern_probabilities(neuron, currents).sum(axis=(0, 1))
    assert mass[nodes > THRESHOLD].sum() == pytest.approx(last[1], abs=1e-12)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="reset"):
        oracle.Leaky(0.9, "sideways")
    with pytest.raises(ValueError, match="sigma"):
        oracle.Neuron(oracle.IF(), 0.0)


# --- losses -----------------------------------------------------------------------------------


def test_losses_on_known_outcomes() -> None:
    spikes = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    softmax = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    for label in range(3):
        value = oracle.count_cross_entropy(label).function(spikes)
        assert value == pytest.approx(-np.log(softmax[label]))
    assert oracle.count_error(0).function(spikes) == 0
    assert oracle.count_error(1).function(spikes) == 1
    assert oracle.count_error(0).function(spikes[1:]) == 0
    assert oracle.count_error(0).function(np.array([[1, 0], [0, 1]])) == 0.5
    latencies = [oracle.first_spike_latency(k).function(spikes) for k in range(3)]
    assert latencies == [1, 0, 3]
    membranes = np.array([[2.0, 1.0, 0.0]])
    square = oracle.membrane_square_error(np.array([0.0, 1.0, 1.0])).function(membranes)
    assert square == pytest.approx([5 / 3])
    crossed = oracle.membrane_cross_entropy(1).function(membranes)
    assert crossed == pytest.approx([-np.log(softmax[1])])


# --- the whole network ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_simulation_agrees(name: str) -> None:
    """400,000 runs of a 3-2-2 network over 3 steps, every loss within 4.5 standard errors.

    A right answer fails one comparison with probability 7e-6 over seeds; the seed is fixed.
    """
    network, theta = small_network(CASES[name], LOSSES["latency"])
    seed = list(CASES).index(name)
    assert_simulation_agrees(network, theta, CASES[name], CASES[name], seed)


def test_simulation_of_mixed_dynamics_agrees() -> None:
    """400,000 runs, 3 hidden neurons, 4 steps, layers of two kinds; 4.5 standard errors."""
    hidden, output = CASES["leaky-subtract"], CASES["lif-soft"]
    network, theta = small_network(hidden, LOSSES["latency"], hidden=3, steps=4)
    network = replace(network, dynamics2=output.dynamics)
    assert_simulation_agrees(network, theta, hidden, output, seed=100)


@every_case
def test_refinement_changes_nothing(case: Case) -> None:
    """Twice the nodes and wider tails move no expected loss by 1e-11."""
    finer = oracle.Quadrature(order=32, reach=10.0)
    for name, loss in LOSSES.items():
        network, theta = small_network(case, loss)
        value = oracle.expected_loss(network, theta)
        refined = oracle.expected_loss(replace(network, quadrature=finer), theta)
        assert refined == pytest.approx(value, abs=1e-11), name


def test_constant_loss() -> None:
    for loss in (
        oracle.SpikeLoss(lambda patterns: 3.0),
        oracle.MembraneLoss(lambda u: np.full(u.shape[:-1], 3.0)),
    ):
        network, theta = small_network(CASES["if-soft"], loss)
        assert oracle.expected_loss(network, theta) == pytest.approx(3.0, abs=1e-12)


def test_membrane_loss_may_jump_at_the_threshold() -> None:
    """The number of last spikes, as a function of membranes and of patterns."""
    last_spikes = oracle.SpikeLoss(lambda patterns: patterns[:, -1].sum())
    network, theta = small_network(CASES["leaky-zero"], last_spikes)
    jump = oracle.MembraneLoss(lambda u: (u > THRESHOLD).sum(axis=-1))
    by_membranes = oracle.expected_loss(replace(network, loss=jump), theta)
    assert by_membranes == pytest.approx(oracle.expected_loss(network, theta), abs=1e-12)


def test_membrane_loss_of_the_wrong_shape_is_refused() -> None:
    network, theta = small_network(CASES["if-soft"], oracle.MembraneLoss(lambda u: u))
    with pytest.raises(ValueError, match="shape"):
        oracle.expected_loss(network, theta)


# --- gradients --------------------------------------------------------------------------------


def single_neurons(
    loss: oracle.SpikeLoss | oracle.MembraneLoss,
) -> tuple[oracle.Network, dict[str, Array]]:
    """A 2-1-1 network over one step."""
    theta = {
        "W1": np.array([[0.6, -0.3]]),
        "b1": np.array([0.2]),
        "W2": np.array([[0.9]]),
        "b2": np.array([0.25]),
        "sigma1": np.array([0.4]),
        "sigma2": np.array([0.55]),
    }
    x = np.array([[0.7, -1.1]])
    leaky = oracle.Leaky(0.9)
    return oracle.Network(x, leaky, leaky, THRESHOLD, loss), theta


def single_neurons_gradient(
    network: oracle.Network,
    theta: dict[str, Array],
    value: Callable[[float, float], float],
    slope_m: Callable[[float, float], float],
    slope_sigma: Callable[[float, float], float],
) -> tuple[float, dict[str, Array]]:
    """E = (1 - p) g(b2) + p g(W2 + b2), p = Phi(z), z = (W1 x + b1 - threshold) / sigma1.

    g(m) = value(m, sigma2) is the expected loss of an output neuron of drift m.
    """
    x, sigma1, sigma2 = network.x[0], theta["sigma1"][0], theta["sigma2"][0]
    z = (theta["W1"][0] @ x + theta["b1"][0] - THRESHOLD) / sigma1
    p, density = norm.cdf(z), norm.pdf(z) / sigma1
    off, on = theta["b2"][0], theta["b2"][0] + theta["W2"][0, 0]
    gain = value(on, sigma2) - value(off, sigma2)
    by_on, by_off = p * slope_m(on, sigma2), (1 - p) * slope_m(off, sigma2)
    by_sigma2 = p * slope_sigma(on, sigma2) + (1 - p) * slope_sigma(off, sigma2)
    return value(off, sigma2) + p * gain, {
        "W1": np.array([density * gain * x]),
        "b1": np.array([density * gain]),
        "W2": np.array([[by_on]]),
        "b2": np.array([by_on + by_off]),
        "sigma1": np.array([-density * z * gain]),
        "sigma2": np.array([by_sigma2]),
    }


def assert_gradients_close(
    found: dict[str, Array], expected: dict[str, Array], atol: float
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


def test_gradient_of_a_spike_loss_in_closed_form() -> None:
    """g(m) = 0.3 + 1.7 Phi((m - threshold) / sigma)."""
    network, theta = single_neurons(oracle.SpikeLoss(lambda r: 0.3 + 1.7 * r[0, 0]))
    value, expected = single_neurons_gradient(
        network,
        theta,
        lambda m, s: 0.3 + 1.7 * norm.cdf((m - THRESHOLD) / s),
        lambda m, s: 1.7 * norm.pdf((m - THRESHOLD) / s) / s,
        lambda m, s: -1.7 * norm.pdf((m - THRESHOLD) / s) * (m - THRESHOLD) / s**2,
    )
    assert oracle.expected_loss(network, theta) == pytest.approx(value, abs=1e-13)
    assert_gradients_close(oracle.gradient(network, theta), expected, 1e-10)


def test_gradient_of_a_membrane_loss_in_closed_form() -> None:
    """g(m) = E[(u - 0.4)^2] = (m - 0.4)^2 + sigma^2."""
    network, theta = single_neurons(oracle.membrane_square_error(np.array([0.4])))
    value, expected = single_neurons_gradient(
        network,
        theta,
        lambda m, s: (m - 0.4) ** 2 + s**2,
        lambda m, s: 2 * (m - 0.4),
        lambda m, s: 2 * s,
    )
    assert oracle.expected_loss(network, theta) == pytest.approx(value, abs=1e-13)
    assert_gradients_close(oracle.gradient(network, theta), expected, 1e-10)


@pytest.mark.parametrize("loss", ["count cross-entropy", "membrane cross-entropy"])
def test_gradient_does_not_depend_on_the_step(loss: str) -> None:
    network, theta = small_network(CASES["leaky-subtract"], LOSSES[loss], steps=2)
    fine, coarse = (oracle.gradient(network, theta, step) for step in (1e-4, 1e-3))
    assert_gradients_close(fine, coarse, 1e-9)
    assert max(np.abs(value).max() for value in fine.values()) > 0.05


def test_currents_of_ones_own() -> None:
    """I1 = gain * (W x) + b1 and I2 = scale * (V s + c): the chain rule ties both gradients."""
    network, theta = small_network(CASES["lif-hard"], LOSSES["count cross-entropy"])
    gain, scale = np.array([1.3, 0.7]), np.array(0.8)
    weight, readout = theta["W1"] / gain[:, None], (theta["W2"] / scale, theta["b2"] / scale)
    sigmas = {"sigma1": theta["sigma1"], "sigma2": theta["sigma2"]}
    own = replace(
        network,
        x=None,
        hidden_current=lambda t: t["gain"] * (network.x @ weight.T) + t["b1"],
        output_current=lambda t, s: t["scale"] * (s @ readout[0].T + readout[1]),
    )
    found = oracle.gradient(own, {"gain": gain, "b1": theta["b1"], "scale": scale, **sigmas})
    linear = oracle.gradient(network, theta)
    expected = {name: linear[name] for name in ("b1", "sigma1", "sigma2")}
    expected["gain"] = (linear["W1"] * weight).sum(axis=1)
    expected["scale"] = (linear["W2"] * readout[0]).sum() + linear["b2"] @ readout[1]
    assert_gradients_close(found, {name: np.asarray(expected[name]) for name in found}, 1e-9)


def test_one_sigma_for_a_layer() -> None:
    """A shared sigma has the sum of the gradients of the sigmas it stands for."""
    network, theta = small_network(CASES["if-hard"], LOSSES["latency"])
    theta["sigma1"] = np.full(2, 0.5)
    each = oracle.gradient(network, theta)
    shared = oracle.gradient(network, {**theta, "sigma1": np.array(0.5)})
    assert shared["sigma1"].shape == ()
    assert shared["sigma1"] == pytest.approx(each["sigma1"].sum(), abs=1e-9)
