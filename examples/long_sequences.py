"""640 time steps: backpropagation through time takes more than 1 GiB, NIT forward only does not.

    python examples/long_sequences.py
    python examples/long_sequences.py --epochs 0    # the memory alone

The spoken digits in steps of 1 ms instead of 10 ms: 80-256-256-10 of snnTorch's neurons with beta
0.995, 128 recordings a batch. First a learning step of each method is measured at several lengths,
each in a process of its own; then NIT forward only trains at the full length. Memory and accuracy
go to --output, and the curve into a picture beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import comparison
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import spoken_digits
import torch
from torch import Tensor, nn
from tqdm import tqdm

FINER = 10
LENGTHS = (80, 160, 320, 640)
WIDTH, BETA, LIMIT = 256, 0.995, 1024
COLOURS = {"STBP": "C1", "auto": "C0", "forward only": "C2"}
NAMES = {"STBP": "STBP (BPTT)", "auto": "NIT", "forward only": "NIT, forward only"}


class Net(spoken_digits.Net):
    """80-256-256-10; each of the 64 steps of its input becomes ten, the first with the spikes."""

    def __init__(self, steps: int = LENGTHS[-1]) -> None:
        super().__init__(width=WIDTH, beta=BETA)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """From spikes, (N, 64, channels), to class scores, (N, classes)."""
        finer = x.new_zeros(len(x), self.steps, x.shape[2])
        finer[:, ::FINER] = x[:, : self.steps // FINER]
        return super().forward(finer)


def task_of(steps: int = LENGTHS[-1]) -> comparison.Task:
    """The digits at a length."""

    def make() -> nn.Module:
        return Net(steps)

    return comparison.Task(
        network=f"80-{WIDTH}-{WIDTH}-10, T = {steps}, beta {BETA}",
        data="spoken digits, 1 ms",
        make=make,
        parts=lambda: spoken_digits.parts(None),
        batch=128,
    )


def curve(args: argparse.Namespace) -> list[dict[str, Any]]:
    """MiB of a learning step by method and length, each in a process of its own."""
    rows = []
    for method in COLOURS:
        for steps in tqdm(args.lengths, method):
            command = [sys.executable, sys.argv[0], "--peak", method, "--lengths", str(steps)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            peak = json.loads(found.stdout.splitlines()[-1])
            rows.append({"method": method, "steps": steps, **peak})
    return rows


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Memory against length, with the limit."""
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    for method, colour in COLOURS.items():
        own = [row for row in rows if row["method"] == method]
        steps, peaks = [row["steps"] for row in own], [row["resident_mib"] for row in own]
        axis.plot(steps, peaks, "o-", color=colour)
        axis.annotate(
            f"{NAMES[method]}, {peaks[-1]:.0f} MiB",
            (steps[-1], peaks[-1]),
            (-4, 6 if method != "forward only" else -40),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    axis.axhline(LIMIT, color="0.5", ls=":")
    axis.annotate(
        "1 GiB", (rows[0]["steps"], LIMIT), (0, 4), textcoords="offset points", color="0.4"
    )
    axis.set_ylim(top=2 * max(row["resident_mib"] for row in rows))
    axis.set(xscale="log", yscale="log", xlabel="time steps T", ylabel="memory of a step (MiB)")
    axis.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=list(LENGTHS))
    add("--epochs", type=int, default=8)
    add("--rate", type=float, default=3e-3)
    add("--seed", type=int, default=0)
    add("--samples", type=int, help="fewer samples, for a trial")
    add("--threads", type=int, default=1)
    add("--peak", metavar="METHOD", help=argparse.SUPPRESS)  # in a process of its own
    add("--output", type=Path, default=Path("docs/results/long_sequences.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    if args.peak:
        print(json.dumps(comparison.peak_here(task_of(args.lengths[0]), args.peak, args)))
        return
    rows = curve(args)
    task = task_of()
    train_set, validation, test = task.parts()
    both = comparison.joined(comparison.few(train_set, args.samples), validation)
    trained = comparison.Trained(task, "forward only", args.rate, args.seed)
    history: list[dict[str, float]] = []
    results = {
        "command": " ".join(["python", *sys.argv]),
        "network": task.network,
        "data": task.data,
        "batch": task.batch,
        "seed": args.seed,
        "rate": args.rate,
        "chosen": repr(trained.learner).split(", rule")[0].partition("(")[2],
        **comparison.where(args),
        "peaks": rows,
        "history": history,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    picture(rows, args.output.with_suffix(".png"))
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    seconds = 0.0
    for epoch in range(args.epochs):
        seconds += trained.fit(both, 1, first=epoch)
        score = trained.score(comparison.few(test, args.samples))
        history.append({"epoch": epoch + 1, "cpu_seconds": round(seconds, 1), "test": score})
        print(history[-1], flush=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
