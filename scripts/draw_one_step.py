"""Draws docs/images/one_step.png: the way of one learning step through the package.

python scripts/draw_one_step.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

TARGET = Path(__file__).parents[1] / "docs/images/one_step.png"
FORWARD, BACKWARD, USER = "#2b6cb0", "#b7472a", "#555555"

#: Folder, what happens there, what is handed on; from top to bottom.
ROOMS = [
    (FORWARD, "neurons/", "snnTorch or SpikingJelly calls\nits noisy neuron", "MembraneUpdate"),
    (
        FORWARD,
        "recording/recorder.py",
        "finds the synapse that made the current\n(synapse_taps.py, provenance.py)",
        "current, membrane",
    ),
    (
        FORWARD,
        "dynamics/ and noise/",
        "an executor adds epsilon and lets it fire\n(lif.py: the equations)",
        "membrane, spikes",
    ),
    (FORWARD, "recording/trace.py", "one Segment a call, end to end in a Timeline", "spikes"),
    (USER, "your code", "losses, one for each row", "losses"),
    (
        BACKWARD,
        "estimators/estimator.py",
        "credit c, baseline, score, residual:\nestimate(trace, losses)",
        "cotangents of the drifts",
    ),
    (
        BACKWARD,
        "gradients/accumulate.py",
        "to synapses by their gradient functions,\nelse through the local graph",
        "gradients",
    ),
    (BACKWARD, "gradients/update.py", "into .grad: all of it, or nothing", None),
]


def main() -> None:
    figure, axes = plt.subplots(figsize=(5.2, 8.8), dpi=110)
    axes.set_xlim(0, 10)
    axes.set_ylim(-len(ROOMS) * 2.05 + 0.55, 0.25)
    axes.axis("off")
    for number, (colour, room, what, handed) in enumerate(ROOMS):
        top = -2.05 * number
        box = FancyBboxPatch(
            (0.3, top - 1.38),
            9.4,
            1.38,
            boxstyle="round,pad=0.02,rounding_size=0.15",
            linewidth=1.6,
            edgecolor=colour,
            facecolor="white",
        )
        axes.add_patch(box)
        axes.text(
            5,
            top - 0.27,
            room,
            ha="center",
            va="center",
            fontsize=12.5,
            weight="bold",
            color=colour,
        )
        axes.text(5, top - 0.88, what, ha="center", va="center", fontsize=10.5, linespacing=1.15)
        if handed is not None:
            arrow = FancyArrowPatch(
                (5, top - 1.4), (5, top - 2.02), arrowstyle="-|>", mutation_scale=14, color=colour
            )
            axes.add_patch(arrow)
            axes.text(
                5.3, top - 1.71, handed, ha="left", va="center", fontsize=10.5, style="italic"
            )
    figure.savefig(TARGET, bbox_inches="tight", pad_inches=0.05)


if __name__ == "__main__":
    main()
