"""What the loop refuses, by name, before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nit_snn.dynamics.lif import Dynamics, Lif
from nit_snn.errors import LoopError
from nit_snn.loop import Layer, Loop, Observed

T, N = 4, 6
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((T, N, 3))
X = (RNG.random((T, N, 5)) < 0.5) * 1.0
LOSSES = np.arange(N) * 1.0
WEIGHTS, BIAS = RNG.standard_normal((3, 5)), RNG.standard_normal(3)


def seen(**changes: Any) -> dict[str, Observed]:
    return {"out": Observed(**{"inputs": X, "noise": NOISE, **changes})}


def simulated(noise: np.ndarray, delay: int = 0) -> np.ndarray:
    """Spikes of a layer that forgets everything at each step."""
    return np.roll((X @ WEIGHTS.T + BIAS + 0.25 * noise > 1) * 1.0, delay, axis=0)


def test_what_fits_is_taken() -> None:
    loop = Loop({"out": Layer(5, 3)}, replicas=2)
    assert loop.gradients(LOSSES, seen())["out"].weights.shape == (3, 5)
    assert "Loop(credit='none'" in repr(loop)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"inputs": X[1:]}, r"inputs of out must have shape .* = \(4, 6, 5\).*\(3, 6, 5\)"),
    "features": ({"inputs": X[..., 1:]}, r"inputs of out .*got \(4, 6, 4\)"),
    "text": ({"inputs": "spikes"}, r"inputs of out must be an array of numbers, got str"),
    "complex": ({"inputs": X * 1j}, r"inputs of out must be real"),
    "nan": ({"inputs": X * np.nan}, r"inputs of out of shape \(4, 6, 5\) holds NaN"),
    "events of numbers": ({"inputs": np.ones((2, 3))}, r"whole numbers of shape \(events, 3\)"),
    "events of pairs": ({"inputs": np.ones((2, 2), int)}, r"got \(2, 2\) of torch.int64"),
    "events outside": (
        {"inputs": np.array([[0, 0, 0], [4, 0, 0]])},
        r"Event 1 of inputs of out, \[4, 0, 0\], lies outside",
    ),
    "noise's rows": ({"noise": NOISE[:, 1:]}, r"6 losses for 5 rows of noise"),
    "noise's neurons": ({"noise": NOISE[..., 1:]}, r"noise of out must have shape \(4, 6, 3\)"),
    "noise's type": ({"noise": (NOISE > 0) * 1}, r"noise of out must be floating-point"),
    "no noise": ({"noise": None}, r"no noise of out.*loop.noise"),
    "no spikes": ({"spikes": NOISE}, r"spikes of out must be zeros and ones"),
    "weights": ({"weights": WEIGHTS.T, "bias": BIAS}, r"weights of out must have shape \(3, 5\)"),
    "no bias": ({"weights": WEIGHTS}, r"out has a bias"),
    "bias": ({"weights": WEIGHTS, "bias": BIAS[1:]}, r"bias of out must have shape \(3,\)"),
    "sigma": ({"sigma": -1.0}, r"sigma of out must be positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_was_observed(case: str) -> None:
    changes, message = BAD[case]
    loop = Loop({"out": Layer(5, 3)}, replicas=2)
    with pytest.raises(LoopError, match=message):
        loop.gradients(LOSSES, seen(**changes))
    assert loop.learner.passes == 0


def test_losses_and_names() -> None:
    loop = Loop({"out": Layer(5, 3)}, replicas=2)
    with pytest.raises(LoopError, match=r"losses must have shape \(rows,\)"):
        loop.gradients(LOSSES[None], seen())
    with pytest.raises(LoopError, match="5 losses cannot be shared out over 2 replicas"):
        loop.gradients(LOSSES[1:], seen())
    with pytest.raises(LoopError, match="holds NaN"):
        loop.gradients(LOSSES * np.nan, seen())
    with pytest.raises(LoopError, match="must have the layers out, got other"):
        loop.gradients(LOSSES, {"other": seen()["out"]})
    with pytest.raises(LoopError, match="errors are for credit='feedback' alone"):
        loop.gradients(LOSSES, seen(), errors=np.zeros((N, 3)))
    with pytest.raises(LoopError, match="steps must be a positive whole number"):
        loop.noise(0, 3)


def test_spikes_that_do_not_follow_from_the_noise() -> None:
    """A step's delay between noise and spikes is found, and where it is first."""
    layer = Layer(5, 3, Lif(Dynamics(), 0.0))
    loop = Loop({"out": layer}, replicas=2, conditional=True)
    parts: dict[str, Any] = {"weights": WEIGHTS, "bias": BIAS}
    loop.gradients(LOSSES, seen(spikes=simulated(NOISE), **parts))
    wrong = simulated(NOISE, delay=1)
    step, row, index = np.argwhere(wrong != simulated(NOISE))[0]
    with pytest.raises(LoopError, match=rf"step {step}, row {row}, neuron {index}: .*spike with"):
        loop.gradients(LOSSES, seen(spikes=wrong, **parts))
    with pytest.raises(LoopError, match=r"spikes of out, shape .* do not follow"):  # without credit
        Loop({"out": layer}, replicas=2).gradients(LOSSES, seen(spikes=wrong, **parts))
    loose = Loop({"out": Layer(5, 3, Lif(Dynamics(), 0.0), exact=False)}, replicas=2)
    loose.gradients(LOSSES, seen(spikes=wrong, **parts))


def test_noise_that_is_scaled_already() -> None:
    loop = Loop({"out": Layer(5, 300)}, replicas=2)
    noise = 0.25 * np.random.default_rng(0).standard_normal((T, N, 300))
    with pytest.raises(LoopError, match="eps, not sigma"):
        loop.gradients(LOSSES, seen(noise=noise))


def test_pairs_that_are_none() -> None:
    loop = Loop({"out": Layer(5, 3)}, replicas=2, antithetic=True, baseline="none")
    with pytest.raises(LoopError, match="minus the noise of the first"):
        loop.gradients(LOSSES, seen())
    half = NOISE[:, : N // 2]
    loop.gradients(LOSSES, seen(noise=np.concatenate([half, -half], 1)))


def test_feedback_asks_for_more() -> None:
    loop = Loop({"out": Layer(5, 3, Lif(Dynamics(), 0.0))}, credit="feedback")
    errors = np.ones((N, 3))
    with pytest.raises(LoopError, match=r"needs errors: .* shape \(6, 3\)"):
        loop.gradients(LOSSES, seen())
    with pytest.raises(LoopError, match="no spikes of out"):
        loop.gradients(LOSSES, seen(), errors)
    with pytest.raises(LoopError, match="no weights of out"):
        loop.gradients(LOSSES, seen(spikes=simulated(NOISE)), errors)
    parts: dict[str, Any] = {"spikes": simulated(NOISE), "weights": WEIGHTS, "bias": BIAS}
    with pytest.raises(LoopError, match=r"errors must have shape \(6, 3\) or \(4, 6, 3\)"):
        loop.gradients(LOSSES, seen(**parts), errors[1:])
    loop.gradients(LOSSES, seen(**parts), errors)
    loop.gradients(LOSSES, seen(**parts), np.ones((T, N, 3)))


LAYERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no layer"),
    "name": ({"a.b": Layer(2, 2)}, "cannot be the name"),
    "taken": ({"forward": Layer(2, 2)}, "cannot be the name"),
    "size": ({"a": Layer(0, 2)}, "a has inputs=0"),
    "reset": ({"a": Layer(2, 2, Lif(Dynamics(reset="whole")))}, "'whole' is delayed always"),
    "memory": ({"a": Layer(2, 2, current_decay=1.0)}, "current_decay of a"),
    "sigma": ({"a": Layer(2, 2, sigma=[1.0, 1.0, 1.0])}, r"sigma of a .*\(2,\), got \(3,\)"),
}


@pytest.mark.parametrize("case", LAYERS)
def test_descriptions(case: str) -> None:
    layers, message = LAYERS[case]
    with pytest.raises(LoopError, match=message):
        Loop(layers)


def test_options() -> None:
    layers = {"a": Layer(2, 2)}
    with pytest.raises(LoopError, match="has no option 'route'"):
        Loop(layers, route="general")
    with pytest.raises(LoopError, match="a network that torch does not run"):
        Loop(layers, credit="layers")
    loose = {"a": Layer(2, 2, exact=False)}
    with pytest.raises(LoopError, match="how likely their spikes were"):
        Loop(loose, conditional=True)
    with pytest.raises(LoopError, match="how likely their spikes were"):
        Loop(loose, credit="feedback", replicas=4)
    Loop(loose, credit="feedback", replicas=4, residual=0)
