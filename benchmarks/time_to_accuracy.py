"""The training time until 95% of the test images are told right, method by method in one process.

    python benchmarks/time_to_accuracy.py --data-dir data

784-50-10 over 8 steps on full MNIST: backpropagation through time in snnTorch and in SpikingJelly,
SpikingJelly's memory-optimised training, and NIT on both frameworks' networks, each with settings
of its own. All start from the same weights, and see the images in the same order. The methods take
turns, seed by seed. Only the steps are timed; the accuracy, of NIT with one draw of its noise, is
told each time another --every seconds have been trained for, and counts where the next one holds
it as well; there a run ends. Writes time_to_accuracy.json and time_to_accuracy.png to --output.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from time_to_accuracy_training import Data, Run, Setting, reached, training
from torch.utils.data import TensorDataset
from tqdm import tqdm

from nit_snn import backends, keep_freed_memory
from nit_snn.datasets import Splits, load, split

# Only the rows with "current once" are other code than that of the frameworks' tutorials: there the
# first layer is not computed anew at each step.
SHARED: dict[str, Any] = {"batch_size": 128, "lr": 4e-3, "horizon": 312, "center": True}
SNN_BPTT = Setting("snnTorch", surrogate=("fast sigmoid", 10.0), floor=0.1, **SHARED)
SJ_BPTT = Setting("SpikingJelly", surrogate=("sigmoid", 8.0), beta2=0.99, floor=0.3, **SHARED)
SJ_NIT = Setting(
    "SpikingJelly",
    learner={
        "replicas": 4,
        "credit": "time",
        "residual": 1,
        "conditional": True,
        "noise_reuse": True,
    },
    sigma=0.3,
    beta2=0.99,
    floor=0.1,
    **SHARED,
)
SNN_NIT = replace(SJ_NIT, framework="snnTorch")  # the same function of the same weights
SETTINGS: dict[str, Setting] = {
    "snnTorch, BPTT": SNN_BPTT,
    "snnTorch, BPTT, current once": replace(SNN_BPTT, once=True),
    "snnTorch, NIT": SNN_NIT,
    "SpikingJelly, BPTT": SJ_BPTT,
    "SpikingJelly, BPTT, current once": replace(SJ_BPTT, once=True),
    "SpikingJelly, memopt": replace(SJ_BPTT, memopt=True),
    "SpikingJelly, NIT": SJ_NIT,
}
REFERENCE = "snnTorch, BPTT"
STYLES = {
    "snnTorch, BPTT": ("C0", "-"),
    "snnTorch, BPTT, current once": ("C0", ":"),
    "snnTorch, NIT": ("C3", "--"),
    "SpikingJelly, BPTT": ("C2", "-"),
    "SpikingJelly, BPTT, current once": ("C2", ":"),
    "SpikingJelly, memopt": ("C4", "-"),
    "SpikingJelly, NIT": ("C3", "-"),
}


def test_data(splits: Splits) -> Data:
    (images, labels), (shown, known) = splits.train.tensors, splits.test.tensors
    return Data(images.flatten(1), labels, TensorDataset(shown.flatten(1), known))


def measure(data: dict[bool, Data], args: argparse.Namespace) -> dict[str, list[Any]]:
    """Each method's curves, one for each seed."""
    for setting in SETTINGS.values():  # first calls load and compile what they need
        run = Run(setting, data[setting.center], args.seeds[0], args.hidden, args.steps)
        for _ in range(5):
            run.step()
    curves: dict[str, list[Any]] = {name: [] for name in SETTINGS}
    turns = [(seed, name) for seed in args.seeds for name in SETTINGS]
    for seed, name in tqdm(turns, desc="runs", leave=False):
        setting = SETTINGS[name]
        run = Run(setting, data[setting.center], seed, args.hidden, args.steps)
        curves[name].append(run.curve(args.seconds, args.every, args.target))
    return curves


def median(values: list[float | None]) -> float | None:
    """None, a run that did not get there, counts as longer than all."""
    found = statistics.median([float("inf") if v is None else v for v in values])
    return None if found == float("inf") else found


def rows_of(curves: dict[str, list[Any]], target: float) -> list[dict[str, Any]]:
    """Times, steps and spread of every method, and its median over the reference's."""
    rows: list[dict[str, Any]] = []
    for name, runs in curves.items():
        points = [reached(curve, target) for curve in runs]
        row: dict[str, Any] = {"method": name, "settings": SETTINGS[name].described()}
        for key in ("seconds", "cpu_seconds", "steps"):
            row[key] = [None if p is None else p[key] for p in points]
            row[f"median_{key}"] = median(row[key])
        known = [s for s in row["seconds"] if s is not None]
        row["spread"] = [min(known), max(known)] if known else None
        row["milliseconds_of_a_step"] = statistics.median(
            1000 * curve[-1]["seconds"] / curve[-1]["steps"] for curve in runs
        )
        row["last_test"] = [curve[-1]["test"] for curve in runs]
        if "test_noise_off" in runs[0][-1]:
            row["test_noise_off"] = [None if p is None else p["test_noise_off"] for p in points]
        rows.append(row)
    reference = next(row for row in rows if row["method"] == REFERENCE)["median_seconds"]
    for row in rows:
        known = row["median_seconds"] is not None and reference is not None
        row["over_reference"] = row["median_seconds"] / reference if known else None
    return rows


def picture(curves: dict[str, list[Any]], target: float, path: Path) -> None:
    """Accuracy against training time: median over the seeds, and from worst to best."""
    figure, axis = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for name, runs in curves.items():
        colour, line = STYLES[name]
        points = list(zip(*runs, strict=False))
        times = [statistics.median(p["seconds"] for p in same) for same in points]
        tests = [sorted(p["test"] for p in same) for same in points]
        middle = [statistics.median(t) for t in tests]
        axis.plot(times, middle, color=colour, ls=line, label=name, lw=1.6)
        axis.fill_between(
            times, [t[0] for t in tests], [t[-1] for t in tests], color=colour, alpha=0.1, lw=0
        )
    axis.axhline(target, color="k", lw=0.8)
    axis.set(xlabel="seconds of training", ylabel="test accuracy, percent")
    axis.set(xlim=(0, None), ylim=(target - 8, target + 1.5))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--target", type=float, default=95.0, help="percent")
    add("--seconds", type=float, default=8.0, help="training time of a run at most")
    add("--every", type=float, default=0.05, help="seconds of training between evaluations")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="weights, order and noise")
    add("--hidden", type=int, default=50)
    add("--steps", type=int, default=8)
    add("--threads", type=int, default=1)
    add("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    training.skip_denormals()
    keep_freed_memory()
    splits = split(*load("mnist", args.data_dir), seed=0)
    plain = test_data(splits)
    curves = measure({False: plain, True: plain.centered()}, args)
    rows = rows_of(curves, args.target)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "network": f"784-{args.hidden}-10, T={args.steps}, beta 0.5, reset to zero",
        "images": {part: len(getattr(splits, part)) for part in splits._fields},
        "target": args.target,
        "every": args.every,
        "split_seed": 0,
        "seeds": args.seeds,
        "versions": training.installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
        "backend": str(backends()["cpu"]),
        "rows": rows,
        "curves": {
            name: [[[round(value, 4) for value in p.values()] for p in curve] for curve in runs]
            for name, runs in curves.items()
        },
        "curve_columns": {name: list(runs[0][0]) for name, runs in curves.items()},
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "time_to_accuracy.json").write_text(json.dumps(results) + "\n")
    picture(curves, args.target, args.output / "time_to_accuracy.png")
    print(f"{'':36}{'seconds':>9}{'spread':>15}{'steps':>7}{'ms/step':>9}{'ratio':>7}")
    for row in rows:
        seconds, spread = row["median_seconds"], row["spread"]
        shown = "never" if seconds is None else f"{seconds:.2f}"
        width = "-" if spread is None else f"{spread[0]:.2f}-{spread[1]:.2f}"
        steps = "-" if row["median_steps"] is None else f"{row['median_steps']:.0f}"
        ratio = "-" if row["over_reference"] is None else f"{row['over_reference']:.2f}"
        print(
            f"{row['method']:36}{shown:>9}{width:>15}{steps:>7}"
            f"{row['milliseconds_of_a_step']:>9.2f}{ratio:>7}"
        )


if __name__ == "__main__":
    main()
