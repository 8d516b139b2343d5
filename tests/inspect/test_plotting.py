"""Pictures hold the numbers that they were given, on axes that say what they are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from conftest import SnnTorchNet, SpikingJellyNet

from nit_snn import swap_neurons
from nit_snn.inspect import plotting
from nit_snn.inspect.probe import Activity, probe


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def seen(net: torch.nn.Module, name: str) -> Activity:
    swap_neurons(net, sigma=0.5)
    with torch.no_grad(), probe(net) as layers:
        net(2 * torch.randn(5, 4))
    return layers[name]


def stacked(steps: list[Tensor], sample: int) -> Tensor:
    return torch.stack([step[sample].flatten() for step in steps])


@pytest.mark.parametrize(("build", "name"), [(SnnTorchNet, "lif1"), (SpikingJellyNet, "body.1")])
def test_a_raster_has_a_dot_for_each_spike(build: type, name: str) -> None:
    layer = seen(build(steps=9), name)
    ax = plotting.raster(layer, sample=3)
    wanted = stacked(layer.spikes, 3).nonzero().numpy()
    assert len(wanted) > 0
    assert np.array_equal(np.asarray(ax.collections[0].get_offsets()), wanted)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (steps)", "neuron")
    assert ax.get_xlim() == (-0.5, 8.5) and ax.get_ylim() == (-0.5, 5.5)


def test_a_membrane_is_in_units_of_the_threshold() -> None:
    layer = seen(SnnTorchNet(steps=9, threshold=2.0), "lif1")
    ax = plotting.membrane(layer, sample=1, neuron=4, threshold=2.0)
    lines = {line.get_label(): line for line in ax.lines}
    drift, membrane = lines["drift $m_t$"], lines[r"$u_t=m_t+\sigma\epsilon_t$"]
    assert np.allclose(drift.get_ydata(), stacked(layer.drifts, 1)[:, 4] / 2)
    assert np.allclose(membrane.get_ydata(), stacked(layer.membranes, 1)[:, 4] / 2)
    assert list(lines["threshold"].get_ydata()) == [1.0, 1.0]
    fired = stacked(layer.spikes, 1)[:, 4].bool()
    assert list(lines["spike"].get_xdata()) == fired.nonzero().flatten().tolist()
    assert (np.asarray(lines["spike"].get_ydata()) > 1).all()
    assert "neuron 4" in ax.get_ylabel() and "thresholds" in ax.get_ylabel()
    assert {text.get_text() for text in ax.get_legend().get_texts()} >= {"threshold", "spike"}


def test_noise_is_what_was_added() -> None:
    layer = seen(SnnTorchNet(steps=9), "lif1")
    ax = plotting.noise(layer, sample=2, neuron=0)
    heights = [bar.get_height() for bar in ax.patches]
    assert np.allclose(heights, stacked(layer.noises, 2)[:, 0])
    added = stacked(layer.membranes, 2)[:, 0] - stacked(layer.drifts, 2)[:, 0]
    assert np.allclose(heights, added) and np.abs(heights).max() > 0.1


def test_an_activity_shows_the_same_neuron_twice_and_takes_axes() -> None:
    layer = seen(SnnTorchNet(steps=9), "lif1")
    _, panels = plt.subplots(3, 1)
    top, middle, bottom = plotting.activity(layer, axes=panels)
    assert top is panels[0]
    rates = stacked(layer.spikes, 0).mean(0)
    neuron = int((rates - 0.5).abs().argmin())
    assert f"neuron {neuron}" in middle.get_ylabel()
    heights = [bar.get_height() for bar in bottom.patches]
    assert np.allclose(heights, stacked(layer.noises, 0)[:, neuron])
    assert bottom.get_xlabel() == "time (steps)" and not middle.get_xlabel()
    with pytest.raises(ValueError, match="three axes, got 2"):
        plotting.activity(layer, axes=panels[:2])


def test_what_is_not_there_is_an_error() -> None:
    layer = seen(SnnTorchNet(), "lif1")
    with pytest.raises(ValueError, match="no sample 5; the batch has 5"):
        plotting.raster(layer, sample=5)
    with pytest.raises(ValueError, match="no neuron 6; the layer has 6"):
        plotting.membrane(layer, neuron=6)
    with pytest.raises(ValueError, match="saw no step"):
        plotting.noise(Activity())
    with pytest.raises(ValueError, match="must be positive"):
        plotting.membrane(layer, threshold=0.0)
    for draw in (plotting.gradient_variance, plotting.accuracy_against_eps):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw({"NIT": []})
    with pytest.raises(ValueError, match="history is empty"):
        plotting.sigma_over_training([])
    with pytest.raises(ValueError, match="2 entries, but 1 times"):
        plotting.sigma_over_training([{}, {}], times=[0])
    assert not plt.get_fignums()  # and no empty figure is left behind


def test_gradient_variance_beside_what_independent_replicas_give() -> None:
    rows = [{"replicas": c, "variance": 8 / c**1.5} for c in (16, 4, 8)]  # in any order
    other = [{"replicas": 4, "variance": 0.5}]
    ax = plotting.gradient_variance({"leave-one-out": rows, "pathwise": other})
    first, second, ideal = ax.lines
    assert list(first.get_xdata()) == [4, 8, 16]
    assert np.allclose(first.get_ydata(), [8 / 8, 8 / 8**1.5, 8 / 64])
    assert list(second.get_ydata()) == [0.5]
    assert np.allclose(ideal.get_ydata(), [1.0, 0.5, 0.25])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["leave-one-out", "pathwise", "as 1 / replicas"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["4", "8", "16"]
    assert ax.get_xlabel() == "replicas per sample"
    assert ax.get_ylabel() == "variance of the gradient"


def test_accuracy_against_eps() -> None:
    curves = {
        "STBP": [{"eps": 0.1, "accuracy": 5.0}, {"eps": 0.0, "accuracy": 97.0}],
        "NIT": [{"eps": 0.0, "accuracy": 96.0, "seed": 1}, {"eps": 0.1, "accuracy": 40.0}],
    }
    _, own = plt.subplots()
    ax = plotting.accuracy_against_eps(curves, unit="pixels from 0 to 255", ax=own)
    assert ax is own
    drawn = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in ax.lines}
    assert [list(values) for values in drawn["STBP"]] == [[0.0, 0.1], [97.0, 5.0]]
    assert [list(values) for values in drawn["NIT"]] == [[0.0, 0.1], [96.0, 40.0]]
    assert ax.get_ylim() == (0, 100)
    assert ax.get_xlabel() == "perturbation, eps (pixels from 0 to 255)"
    assert ax.get_ylabel() == "accuracy (%)"


def test_sigma_over_training_shows_mean_and_range() -> None:
    history = [
        {"lif1": torch.tensor([1.0, 1.0]), "lif2": torch.tensor(0.5)},
        {"lif1": torch.tensor([0.6, 1.0]), "lif2": torch.tensor(0.4)},
    ]
    ax = plotting.sigma_over_training(history, times=[0, 50], unit="training steps")
    lines = {line.get_label(): line for line in ax.lines}
    assert np.allclose(lines["lif1"].get_ydata(), [1.0, 0.8])
    assert np.allclose(lines["lif2"].get_ydata(), [0.5, 0.4])
    assert list(lines["lif1"].get_xdata()) == [0, 50]
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0.6) and corners[:, 1].max() == pytest.approx(1.0)
    assert ax.get_xlabel() == "training steps"
    assert ax.get_ylabel() == "noise level sigma (membrane units)"


def test_matplotlib_is_imported_late_and_named_when_missing() -> None:
    code = """
import sys
from nit_snn.inspect import plotting
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None
try:
    plotting.accuracy_against_eps({"NIT": [{"eps": 0.0, "accuracy": 1.0}]})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "nit-snn[train]"' in done.stdout
