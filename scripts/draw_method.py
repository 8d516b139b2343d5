"""Draws docs/images/method.png: why noise gives a gradient, computed with one noisy neuron.

python scripts/draw_method.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

TARGET = Path(__file__).parents[1] / "docs/images/method.png"
NOISE, SPIKE, PLAIN = "#2b6cb0", "#b7472a", "#888888"
SIGMA, WEIGHT, THRESHOLD, ROWS = 0.25, 0.9, 1.0, 400


def main() -> None:
    torch.manual_seed(3)
    figure, panels = plt.subplots(3, 1, figsize=(5.2, 8.4), dpi=110, constrained_layout=True)
    membranes(panels[0])
    probability(panels[1])
    regression(panels[2])
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(TARGET)


def membranes(panel: plt.Axes) -> None:
    """Three samples of the noise make the same neuron spike at different times."""
    steps, colours = 24, (NOISE, "#7fb0e0", "#1a365d")
    for colour in colours:
        membrane, path, spikes = 0.0, [], []
        for step in range(steps):
            membrane = 0.8 * membrane + 0.19 + 0.12 * float(torch.randn(()))
            path.append(membrane)
            if membrane > THRESHOLD:
                spikes.append(step)
                membrane = 0.0
        panel.plot(path, color=colour, lw=1.3)
        panel.plot(spikes, [path[s] for s in spikes], "o", color=SPIKE, ms=6, zorder=3)
    panel.axhline(THRESHOLD, color=PLAIN, lw=1, ls="--")
    panel.text(steps - 1, THRESHOLD + 0.03, "threshold", color=PLAIN, ha="right", fontsize=10)
    panel.set(xlabel="time step", ylabel="membrane", ylim=(-0.35, 1.45))
    panel.set_title("1. Noise decides when a neuron spikes", loc="left", fontsize=12)


def probability(panel: plt.Axes) -> None:
    """P(spike) against the weight, with and without noise."""
    weights = torch.linspace(0.2, 1.8, 400)
    panel.step(weights, (weights > THRESHOLD).float(), color=PLAIN, lw=1.5, ls="--")
    panel.plot(weights, fired_with_probability(weights), color=NOISE, lw=2)
    panel.text(1.03, 0.12, "without noise:\nno useful derivative", color=PLAIN, fontsize=10)
    panel.text(0.92, 0.62, "with noise:\nsmooth", color=NOISE, fontsize=10, ha="right")
    panel.set(xlabel="weight", ylabel="probability of a spike")
    panel.set_title("2. So the expected loss has a gradient", loc="left", fontsize=12)


def regression(panel: plt.Axes) -> None:
    """The slope of the loss over the noise is the likelihood-ratio gradient.

    Stein: E[L eps] / sigma is the derivative of E[L] in the drift.
    """
    noise = torch.randn(ROWS)
    losses = 1.0 - (WEIGHT + SIGMA * noise > THRESHOLD).float() + 0.15 * torch.rand(ROWS)
    estimate = float(((losses - losses.mean()) * noise).mean()) / SIGMA
    exact = -float(density(torch.tensor(WEIGHT)))
    panel.plot(noise, losses, "o", color=NOISE, ms=3, alpha=0.4, mec="none")
    ends = torch.tensor([-2.5, 2.5])
    panel.plot(ends, losses.mean() + SIGMA * estimate * ends, color=SPIKE, lw=2)
    panel.text(
        0.98,
        0.95,
        f"slope / sigma = {estimate:.2f}\nexact gradient = {exact:.2f}",
        color=SPIKE,
        fontsize=10,
        ha="right",
        va="top",
        transform=panel.transAxes,
    )
    panel.set(xlabel="noise sample, in units of sigma", ylabel="loss", xlim=(-3, 3))
    panel.set_title("3. The slope of loss over noise is that gradient", loc="left", fontsize=12)


def fired_with_probability(weights: Tensor) -> Tensor:
    return torch.special.ndtr((weights - THRESHOLD) / SIGMA)


def density(weights: Tensor) -> Tensor:
    """d P(spike) / d weight, for an input of 1."""
    return torch.exp(torch.distributions.Normal(THRESHOLD, SIGMA).log_prob(weights))


if __name__ == "__main__":
    main()
