"""Exact expected loss, and its gradient, of a tiny noisy spiking network.

An independent truth for likelihood-ratio gradient estimators, in float64 NumPy and SciPy only.

The network reads one sample x over T steps through H noisy hidden neurons and K noisy output
neurons.  At step t every neuron i has a drift m and a noisy membrane

    u_{i,t} = m_{i,t} + sigma_i * eps_{i,t},    eps_{i,t} iid N(0, 1),
    s_{i,t} = [u_{i,t} > threshold].

The hidden current is I1_t = W1 x_t + b1, the output current I2_t = W2 s1_t + b2 with the hidden
spikes of the same step; both can be replaced by any function of theta.

The expectation is computed without sampling.  Given its currents, a neuron is a Markov chain in
its membrane: the density is carried from step to step on Gauss-Legendre panels that end at the
threshold, where the density and the reset are discontinuous.  Hidden neurons are independent of
each other, and output neurons are so given the hidden spikes, hence

    E[loss] = sum_h P(h) sum_{r_1..r_K} prod_k P(r_k | h) loss(r_1, .., r_K)

with h the joint hidden spike history and r_k the spike pattern, or the last membrane, of output
neuron k.  The gradient is the central finite difference of that number.

Arrays over histories enumerate them with the first step as the most significant digit; a digit is
a spike (base 2) or the joint spike vector of the hidden layer (base C = 2^H, first neuron first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import ceil, pi, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]
Theta = Mapping[str, Array]


# --- dynamics ---------------------------------------------------------------------------------


class Dynamics(Protocol):
    """A neuron's deterministic part; it must be hashable, and smooth away from the threshold."""

    @property
    def start(self) -> float:
        """State carried into the first step."""

    def drift(self, carried: Array, current: Array, threshold: float) -> Array:
        """Drift m_t from the carried state and the current I_t (broadcast together)."""

    def carry(self, u: Array, threshold: float) -> Array:
        """State carried into the next step from the noisy membrane u_t (elementwise)."""


@dataclass(frozen=True)
class Leaky:
    """snnTorch Leaky with reset_delay=True: the noisy membrane itself is carried.

    mem_0 = 0,  mem_t = u_t,  reset_t = [mem_{t-1} > threshold]
    'subtract':  m_t = beta * mem_{t-1} + I_t - reset_t * threshold
    'zero':      m_t = beta * (1 - reset_t) * mem_{t-1} + I_t
    'none':      m_t = beta * mem_{t-1} + I_t
    """

    beta: float
    reset: str = "subtract"

    def __post_init__(self) -> None:
        if self.reset not in ("subtract", "zero", "none"):
            raise ValueError(f"unknown reset: {self.reset!r}")

    @property
    def start(self) -> float:
        return 0.0

    def drift(self, carried: Array, current: Array, threshold: float) -> Array:
        reset = carried > threshold
        if self.reset == "subtract":
            return self.beta * carried + current - reset * threshold
        if self.reset == "zero":
            return self.beta * (1 - reset) * carried + current
        return self.beta * carried + current

    def carry(self, u: Array, threshold: float) -> Array:
        return u


def _reset_after_spike(u: Array, threshold: float, v_reset: float | None) -> Array:
    """Hard reset: v_t = v_reset if s_t else u_t.  Soft (None): v_t = u_t - threshold * s_t."""
    spike = u > threshold
    return u - threshold * spike if v_reset is None else np.where(spike, v_reset, u)


@dataclass(frozen=True)
class IF:
    """SpikingJelly IFNode.

    v_0 = v_reset (0 if None),  m_t = v_{t-1} + I_t,  then the hard or soft reset of u_t.
    """

    v_reset: float | None = 0.0

    @property
    def start(self) -> float:
        return self.v_reset or 0.0

    def drift(self, carried: Array, current: Array, threshold: float) -> Array:
        return carried + current

    def carry(self, u: Array, threshold: float) -> Array:
        return _reset_after_spike(u, threshold, self.v_reset)


@dataclass(frozen=True)
class LIF:
    """SpikingJelly LIFNode, with r = v_reset (0 if None) and v_0 = r.

    decay_input:      m_t = v_{t-1} + (I_t - (v_{t-1} - r)) / tau
    not decay_input:  m_t = v_{t-1} - (v_{t-1} - r) / tau + I_t
    then the hard or soft reset of u_t.
    """

    tau: float
    decay_input: bool = True
    v_reset: float | None = 0.0

    @property
    def start(self) -> float:
        return self.v_reset or 0.0

    def drift(self, carried: Array, current: Array, threshold: float) -> Array:
        leak = (carried - self.start) / self.tau
        return carried - leak + (current / self.tau if self.decay_input else current)

    def carry(self, u: Array, threshold: float) -> Array:
        return _reset_after_spike(u, threshold, self.v_reset)


# --- one neuron -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quadrature:
    """Gauss-Legendre panels on either side of the threshold.

    order: nodes per panel;  width: of the longest panel, in sigmas;
    reach: how far beyond the extreme drifts, in sigmas (8.5 leaves out less than 1e-16).
    """

    order: int = 16
    width: float = 1.5
    reach: float = 8.5


@dataclass(frozen=True)
class Neuron:
    """One noisy neuron: u_t = drift_t + sigma * eps_t, firing when u_t > threshold."""

    dynamics: Dynamics
    sigma: float
    threshold: float = 1.0
    quadrature: Quadrature = field(default_factory=Quadrature)

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")


def _panels(low: float, high: float, width: float, order: int) -> tuple[Array, Array]:
    """Nodes and weights on [low, high] cut into equal panels; none if the interval is empty."""
    if not high > low:
        return np.empty(0), np.empty(0)
    edges = np.linspace(low, high, ceil((high - low) / width) + 1)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return (middle[:, None] + half[:, None] * nodes).ravel(), np.outer(half, weights).ravel()


def _grid(neuron: Neuron, drift: Array) -> tuple[Array, Array]:
    """Nodes and weights (N,) for the next membrane, with a panel edge at the threshold."""
    rule, sigma, threshold = neuron.quadrature, neuron.sigma, neuron.threshold
    low, high = drift.min() - rule.reach * sigma, drift.max() + rule.reach * sigma
    width = rule.width * sigma
    quiet = _panels(low, min(high, threshold), width, rule.order)
    firing = _panels(max(low, threshold), high, width, rule.order)
    return np.concatenate((quiet[0], firing[0])), np.concatenate((quiet[1], firing[1]))


def _drift(neuron: Neuron, carried: Array, current: Array) -> Array:
    """Drifts (N, C) from every carried state (N,) under every possible current (C,)."""
    return neuron.dynamics.drift(carried[:, None], current, neuron.threshold)


def _advance(neuron: Neuron, carried: Array, mass: Array, current: Array) -> tuple[Array, Array]:
    """One step of p_t(u) = sum_v mass(v) N(u; drift(v, I_t), sigma^2), for each current.

    carried (N,), mass (histories, patterns, N), current (C,) ->
    nodes (M,), mass (histories * C, patterns, M); a mass is a density times its node's weight.
    """
    drift = _drift(neuron, carried, current)
    nodes, weights = _grid(neuron, drift)
    z = (nodes - drift[:, :, None]) / neuron.sigma
    kernel = np.exp(-0.5 * z**2) * (weights / (neuron.sigma * sqrt(2 * pi)))
    histories, patterns, size = mass.shape
    moved = mass.reshape(-1, size) @ kernel.reshape(size, -1)
    moved = moved.reshape(histories, patterns, current.size, nodes.size).swapaxes(1, 2)
    return nodes, moved.reshape(-1, patterns, nodes.size)


def _split_by_spike(mass: Array, spike: NDArray[np.bool_]) -> Array:
    """Separate quiet from firing mass: (histories, P, N) -> (histories, 2 P, N)."""
    split = mass[:, :, None, :] * np.stack((~spike, spike))
    return split.reshape(mass.shape[0], -1, mass.shape[2])


def _start(neuron: Neuron) -> tuple[Array, Array]:
    """The carried state (1,) before the first step, with all the mass (1, 1, 1)."""
    return np.array([neuron.dynamics.start], dtype=np.float64), np.ones((1, 1, 1))


def _pattern_table(neuron: Neuron, currents: Array) -> Array:
    """Probability of each spike pattern given each current history.

    currents (T, C), the C possible currents of each step -> (C^T, 2^T).
    """
    carried, mass = _start(neuron)
    for current in currents[:-1]:
        nodes, mass = _advance(neuron, carried, mass, current)
        mass = _split_by_spike(mass, nodes > neuron.threshold)
        carried = neuron.dynamics.carry(nodes, neuron.threshold)
    # The last step needs no grid: its two outcomes have closed forms.
    z = (_drift(neuron, carried, currents[-1]) - neuron.threshold) / neuron.sigma
    outcome = np.stack((ndtr(-z), ndtr(z)), axis=-1)
    table = np.tensordot(mass, outcome, axes=1).swapaxes(1, 2)
    return table.reshape(mass.shape[0] * currents.shape[1], -1)


def _membrane_table(neuron: Neuron, currents: Array) -> tuple[Array, Array]:
    """Law of the last membrane u_T: nodes (N,) and masses (C^T, N), currents (T, C)."""
    carried, mass = _start(neuron)
    nodes = carried
    for current in currents:
        nodes, mass = _advance(neuron, carried, mass, current)
        carried = neuron.dynamics.carry(nodes, neuron.threshold)
    return nodes, mass[:, 0]


def pattern_probabilities(neuron: Neuron, currents: Array) -> Array:
    """P(s_1, .., s_T) of one neuron with known currents (T,) -> array (2,) * T."""
    currents = np.asarray(currents, dtype=np.float64)
    return _pattern_table(neuron, currents[:, None]).reshape((2,) * len(currents))


def membrane_law(neuron: Neuron, currents: Array) -> tuple[Array, Array]:
    """Nodes (N,) and masses (N,) with E[f(u_T)] = masses @ f(nodes), currents (T,)."""
    currents = np.asarray(currents, dtype=np.float64)
    nodes, mass = _membrane_table(neuron, currents[:, None])
    return nodes, mass[0]


# --- losses -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpikeLoss:
    """Loss of the output spikes: `function` maps an int array (K, T) to a number."""

    function: Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class MembraneLoss:
    """Loss of the last noisy membranes, before any reset: `function` maps (.., K) to (..).

    It may jump or kink at the threshold (compose with `Dynamics.carry` to see v_T instead of
    u_T), but elsewhere the quadrature needs it smooth on the scale of the panels.  K <= 2.
    """

    function: Callable[[Array], Array]


def count_cross_entropy(label: int) -> SpikeLoss:
    """-log softmax(counts)[label], counts = sum_t s_t."""

    def function(patterns: NDArray[np.int64]) -> float:
        counts = patterns.sum(axis=1)
        return float(np.logaddexp.reduce(counts) - counts[label])

    return SpikeLoss(function)


def count_error(label: int) -> SpikeLoss:
    """0-1 error of the largest count, a tie of n neurons being right with chance 1/n."""

    def function(patterns: NDArray[np.int64]) -> float:
        best = patterns.sum(axis=1) == patterns.sum(axis=1).max()
        return 1.0 - float(best[label] / best.sum())

    return SpikeLoss(function)


def first_spike_latency(neuron: int = 0) -> SpikeLoss:
    """Step (from 0) of one output neuron's first spike, T if it stays silent."""

    def function(patterns: NDArray[np.int64]) -> float:
        spikes = patterns[neuron]
        return float(spikes.argmax() if spikes.any() else spikes.size)

    return SpikeLoss(function)


def membrane_square_error(target: Array) -> MembraneLoss:
    """mean_k (u_{k,T} - target_k)^2."""
    return MembraneLoss(lambda u: ((u - target) ** 2).mean(axis=-1))


def membrane_cross_entropy(label: int) -> MembraneLoss:
    """-log softmax(u_T)[label]."""
    return MembraneLoss(lambda u: np.logaddexp.reduce(u, axis=-1) - u[..., label])


# --- network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """What theta does not hold.

    x: the sample, (T, n_in); unused with a `hidden_current` of one's own.
    dynamics1, dynamics2: hidden and output layer;  threshold: of both, or of each.
    loss: a SpikeLoss or a MembraneLoss.
    hidden_current: theta -> (T, H), in place of W1 x_t + b1.
    output_current: (theta, s of shape (.., H)) -> (.., K), in place of W2 s + b2; it is
        called once with all 2^H joint spike vectors (float64 0/1), the same for every step.

    theta holds W1 (H, n_in), b1 (H,), W2 (K, H), b2 (K,), the biases being optional, and always
    sigma1 and sigma2, each a scalar or one per neuron.
    """

    x: Array | None
    dynamics1: Dynamics
    dynamics2: Dynamics
    threshold: float | tuple[float, float]
    loss: SpikeLoss | MembraneLoss
    hidden_current: Callable[[Theta], Array] | None = None
    output_current: Callable[[Theta, Array], Array] | None = None
    quadrature: Quadrature = field(default_factory=Quadrature)


def _hidden_currents(network: Network, theta: Theta) -> Array:
    """(T, H)."""
    if network.hidden_current is not None:
        return np.asarray(network.hidden_current(theta), dtype=np.float64)
    return np.asarray(network.x) @ theta["W1"].T + theta.get("b1", 0.0)


def _output_currents(network: Network, theta: Theta, hidden: int) -> Array:
    """(C, K): the output currents under each joint hidden spike vector."""
    spikes = np.array(list(product((0.0, 1.0), repeat=hidden)))
    if network.output_current is not None:
        return np.asarray(network.output_current(theta, spikes), dtype=np.float64)
    return spikes @ theta["W2"].T + theta.get("b2", 0.0)


def _neurons(network: Network, theta: Theta, layer: int, size: int) -> list[Neuron]:
    """The neurons of layer 1 or 2, each with its own sigma."""
    dynamics = network.dynamics1 if layer == 1 else network.dynamics2
    sigmas = np.broadcast_to(theta[f"sigma{layer}"], (size,))
    threshold = network.threshold
    own = threshold[layer - 1] if isinstance(threshold, tuple) else threshold
    return [Neuron(dynamics, float(s), own, network.quadrature) for s in sigmas]


def _joint_histories(tables: list[Array], steps: int) -> Array:
    """Probability of each joint hidden history, from H arrays of (2^T,) -> (2^H)^T."""
    joint = np.ones(())
    for table in tables:
        joint = np.multiply.outer(joint, table.reshape((2,) * steps))
    order = [neuron * steps + step for step in range(steps) for neuron in range(len(tables))]
    return joint.transpose(order).ravel()


@lru_cache(maxsize=24)
def _cached_table(
    neuron: Neuron, currents: tuple[float, ...], steps: int, membrane: bool
) -> tuple[Array, Array]:
    """Outcomes and their probabilities (C^T, outcomes) of one output neuron.

    Most finite differences leave most output neurons as they were, hence the cache.
    """
    possible = np.broadcast_to(np.array(currents), (steps, len(currents)))
    if membrane:
        outcomes, table = _membrane_table(neuron, possible)
    else:
        outcomes, table = np.arange(2.0**steps), _pattern_table(neuron, possible)
    for array in (outcomes, table):
        array.setflags(write=False)
    return outcomes, table


def _spike_losses(loss: SpikeLoss, outputs: int, steps: int) -> Array:
    """The loss of every combination of K patterns, (2^T,) * K."""
    patterns = list(product((0, 1), repeat=steps))
    values = [loss.function(np.array(rows)) for rows in product(patterns, repeat=outputs)]
    return np.array(values, dtype=np.float64).reshape((len(patterns),) * outputs)


def _membrane_losses(loss: MembraneLoss, nodes: list[Array]) -> Array:
    """The loss on the tensor grid of the K membranes' nodes."""
    if len(nodes) > 2:
        raise ValueError("a membrane loss takes at most two output neurons")
    grid = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1)
    values = np.asarray(loss.function(grid), dtype=np.float64)
    if values.shape != grid.shape[:-1]:
        raise ValueError(f"loss of membranes {grid.shape} has shape {values.shape}")
    return values


def _conditional_losses(tables: list[Array], losses: Array) -> Array:
    """E[loss | h] = sum_r prod_k P(r_k | h) loss(r), tables K x (C^T, n_k) -> (C^T,)."""
    expected = tables[0] @ losses.reshape(losses.shape[0], -1)
    for table in tables[1:]:
        expected = expected.reshape(*table.shape, -1)
        expected = np.einsum("hr,hrn->hn", table, expected)
    return expected[:, 0]


def _loss_given_hidden(network: Network, theta: Theta, hidden: int, steps: int) -> Array:
    """E[loss | h] for every joint hidden history h, (C^T,)."""
    currents = _output_currents(network, theta, hidden)
    outputs = currents.shape[1]
    membrane = isinstance(network.loss, MembraneLoss)
    laws = [
        _cached_table(neuron, tuple(current.tolist()), steps, membrane)
        for neuron, current in zip(_neurons(network, theta, 2, outputs), currents.T, strict=True)
    ]
    if isinstance(network.loss, MembraneLoss):
        losses = _membrane_losses(network.loss, [nodes for nodes, _ in laws])
    else:
        losses = _spike_losses(network.loss, outputs, steps)
    return _conditional_losses([table for _, table in laws], losses)


def _as_arrays(theta: Mapping[str, Array | float]) -> dict[str, Array]:
    return {name: np.asarray(value, dtype=np.float64) for name, value in theta.items()}


def hidden_probabilities(network: Network, theta: Theta) -> list[Array]:
    """P(s_1, .., s_T) of each hidden neuron: H arrays of shape (2,) * T."""
    theta = _as_arrays(theta)
    currents = _hidden_currents(network, theta)
    neurons = _neurons(network, theta, 1, currents.shape[1])
    return [pattern_probabilities(n, c) for n, c in zip(neurons, currents.T, strict=True)]


def expected_loss(network: Network, theta: Theta) -> float:
    """E[loss] over all the noise, exact to about 1e-13 for a loss of order one."""
    theta = _as_arrays(theta)
    tables = hidden_probabilities(network, theta)
    hidden, steps = len(tables), tables[0].ndim
    weights = _joint_histories(tables, steps)
    return float(weights @ _loss_given_hidden(network, theta, hidden, steps))


# Fourth order: a step of 1e-4 leaves no truncation error to speak of, only rounding.
_STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))


def gradient(network: Network, theta: Theta, step: float = 1e-4) -> dict[str, Array]:
    """Gradient of the expected loss for every entry of theta, shaped like theta.

    Central differences of fourth order, with f(n) the loss at theta_i + n * step:
    dE/dtheta_i = (f(-2) - 8 f(-1) + 8 f(1) - f(2)) / (12 step) + O(step^4).
    """
    theta = _as_arrays(theta)

    def shifted(name: str, index: tuple[int, ...], shift: float) -> float:
        value = theta[name].copy()
        value[index] += shift
        return expected_loss(network, {**theta, name: value})

    def derivative(name: str, index: tuple[int, ...]) -> float:
        return sum(c * shifted(name, index, n * step) for n, c in _STENCIL) / step

    return {
        name: np.array([derivative(name, i) for i in np.ndindex(v.shape)]).reshape(v.shape)
        for name, v in theta.items()
    }
