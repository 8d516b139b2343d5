"""The pictures of the two MNIST examples: learning curves, and one sample seen from inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from nit_snn.inspect.probe import Activity, probe

NAMES = {"nit": "NIT", "stbp": "STBP", "stbp-n": "STBP-N", "nit-s": "NIT-S", "nit-s+": "NIT-S+"}
COLOURS = {name: f"C{i}" for i, name in enumerate(NAMES)}


def accuracy_over_epochs(histories: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Validation accuracy of each method after each epoch."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for method, history in histories.items():
        epochs = [entry["epoch"] for entry in history]
        values = [entry["validation"] for entry in history]
        axes.plot(epochs, values, "o-", ms=3, label=NAMES[method], color=COLOURS[method])
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@torch.no_grad()
def inside(net: nn.Module, image: Tensor, path: Path, seed: int, repeats: int) -> None:
    """One sample from inside: spikes of every layer, membranes and noise of the busiest neuron.

    The image is shown `repeats` times in a row, each time from rest and with noise of its own.
    """
    torch.manual_seed(seed)
    repeats = max(1, repeats)
    with probe(net) as layers:
        for _ in range(repeats):
            net(image.unsqueeze(0))
    hidden = next(iter(layers.values()))
    steps = len(hidden.spikes) // repeats
    figure, axes = plt.subplots(
        len(layers) + 2,
        1,
        figsize=(8, 7),
        sharex=True,
        layout="constrained",
        height_ratios=[*(3 if i == 0 else 1.4 for i in range(len(layers))), 2, 1],
    )
    for ax, (name, activity) in zip(axes, layers.items(), strict=False):
        _raster(ax, name, activity)
    _membrane(axes[-2], axes[-1], hidden, steps)
    for ax in axes:
        for boundary in range(0, len(hidden.spikes) + 1, steps):
            ax.axvline(boundary - 0.5, color="0.85", lw=0.8, zorder=0)
    axes[-1].set_xlabel(f"time step ({repeats} presentations of {steps} steps, each from rest)")
    axes[-1].set_xlim(-0.5, len(hidden.spikes) - 0.5)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _raster(ax: plt.Axes, name: str, activity: Activity) -> None:
    spikes = torch.stack(activity.spikes).flatten(1).cpu().numpy()
    times, neurons = spikes.nonzero()
    ax.scatter(times, neurons, marker=".", s=14, color="k", lw=0)
    ax.set(ylabel=f"neuron of {name}", ylim=(-1, spikes.shape[1]))


def _membrane(ax: plt.Axes, noise_ax: plt.Axes, activity: Activity, steps: int) -> None:
    spikes, membranes, drifts, noises = (
        torch.stack(values).flatten(1).cpu().numpy()
        for values in (activity.spikes, activity.membranes, activity.drifts, activity.noises)
    )
    # The neuron nearest to firing half of the time shows the most.
    neuron = int(abs(spikes.mean(0) - 0.5).argmin())
    times = torch.arange(len(spikes)).numpy()
    for start in range(0, len(times), steps):  # the line breaks where the membrane was reset
        part = slice(start, start + steps)
        ax.plot(times[part], drifts[part, neuron], ".--", color="C0", alpha=0.6)
        ax.plot(times[part], membranes[part, neuron], ".-", color="C0")
    ax.plot([], [], ".--", color="C0", alpha=0.6, label="drift $m_t$")
    ax.plot([], [], ".-", color="C0", label=r"membrane $u_t=m_t+\sigma\epsilon_t$")
    ax.axhline(1.0, color="C3", lw=1, label="threshold")
    fired = spikes[:, neuron] > 0
    ax.plot(times[fired], membranes[fired, neuron], "*", color="C3", ms=9, label="spike")
    ax.set(ylabel=f"neuron {neuron}")
    ax.legend(ncols=4, fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.25))
    noise_ax.bar(times, noises[:, neuron], color="C2", width=0.5)
    noise_ax.axhline(0, color="0.5", lw=0.6)
    noise_ax.set(ylabel="noise")
