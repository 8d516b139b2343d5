"""Looks for the settings that reach the target soonest, with equal care for every method.

    python benchmarks/time_to_accuracy_search.py --data-dir data

Each method draws as many candidates at random, from the same space where they share an option, half
of them anew and half as variations of the best so far. A candidate is trained until it has
reached the target on validation images and held it, or has taken a quarter longer than the best so
far. The best few are trained again from other seeds; the smallest median wins. Seeds and
images are others than those of `time_to_accuracy.py`. Writes time_to_accuracy_search.json to
--output.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from time_to_accuracy_training import Data, Run, Setting, reached, training
from torch.utils.data import TensorDataset
from tqdm import tqdm

from nit_snn import keep_freed_memory
from nit_snn.datasets import Splits, load, split

READOUT = {"credit": "readout", "residual": 1, "noise_reuse": True}
CONDITIONAL = {"conditional": True, "residual": 1, "noise_reuse": True}
LEARNERS: list[dict[str, Any]] = [
    *({"replicas": c, "credit": "none", "noise_reuse": True} for c in (8, 16)),
    *({"replicas": c, "antithetic": True, **READOUT} for c in (4, 4, 6, 6, 8)),
    *({"replicas": c, **READOUT} for c in (3, 4, 6)),
    {"replicas": 4, "credit": "readout", **CONDITIONAL},
    *({"replicas": c, "credit": "time", **CONDITIONAL} for c in (3, 4, 4, 5, 6)),
    {"replicas": 4, "credit": "time", "antithetic": True, **CONDITIONAL},
]
SHARED: dict[str, list[Any]] = {
    "batch_size": [64, 96, 128, 192, 256],
    "lr": [4e-3, 5e-3, 6e-3, 8e-3, 1e-2, 1.3e-2, 1.7e-2, 2.2e-2],
    "beta2": [0.999, 0.99, 0.95],
    "warmup": [0, 0, 10],
    "images": [32_000, 36_000, 40_000, 50_000, 64_000, 80_000],  # over which the rate falls
    "floor": [0.03, 0.1, 0.3],
    "center": [True, True, False],
    "spread": [None, (0.5, 0.25), (1.0, 0.5)],
}
NIT = {"sigma": [0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3], "learner": LEARNERS}
SNN_SURROGATES = [("atan", 1.0), ("atan", 2.0), ("atan", 4.0)] + [
    ("fast sigmoid", slope) for slope in (2.0, 5.0, 10.0, 25.0)
]
SJ_SURROGATES = [("atan", 1.0), ("atan", 2.0), ("atan", 4.0)] + [
    ("sigmoid", slope) for slope in (2.0, 4.0, 8.0)
]
# For --near: what earlier searches found for backpropagation, and trials by hand for NIT.
START: dict[str, Any] = {
    "lr": 4e-3,
    "batch_size": 128,
    "beta2": 0.99,
    "warmup": 0,
    "images": 40_000,
    "floor": 0.1,
    "center": True,
    "spread": None,
}
START_NIT: dict[str, Any] = {
    **START,
    "sigma": 0.3,
    "learner": {"replicas": 4, "credit": "time", **CONDITIONAL},
}
STARTS: dict[str, dict[str, Any]] = {
    "snnTorch, BPTT": START | {"surrogate": ("fast sigmoid", 10.0)},
    "SpikingJelly, BPTT": START | {"surrogate": ("sigmoid", 8.0)},
    "SpikingJelly, NIT": START_NIT,
    "snnTorch, NIT": START_NIT,
}
SPACES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "snnTorch, BPTT": ({"framework": "snnTorch"}, SHARED | {"surrogate": SNN_SURROGATES}),
    "SpikingJelly, BPTT": ({"framework": "SpikingJelly"}, SHARED | {"surrogate": SJ_SURROGATES}),
    "SpikingJelly, NIT": ({"framework": "SpikingJelly"}, SHARED | NIT),
    "snnTorch, NIT": ({"framework": "snnTorch"}, SHARED | NIT),
}


def drawn(space: dict[str, list[Any]], best: dict[str, Any] | None) -> dict[str, Any]:
    """A candidate: anew, or the best with two of its options drawn again."""
    if best is None:
        return {name: random.choice(values) for name, values in space.items()}
    return best | {name: random.choice(space[name]) for name in random.sample(list(space), 2)}


def setting_of(fixed: dict[str, Any], candidate: dict[str, Any]) -> Setting:
    options = {k: v for k, v in candidate.items() if k != "images"}
    return Setting(**fixed, **options, horizon=candidate["images"] // candidate["batch_size"])


def validation_data(splits: Splits, count: int) -> Data:
    """Accuracy is told by the first validation images."""
    images, labels = splits.train.tensors
    shown, known = splits.validation.tensors
    return Data(images.flatten(1), labels, TensorDataset(shown[:count].flatten(1), known[:count]))


def search(
    method: str, data: dict[bool, Data], args: argparse.Namespace
) -> tuple[Setting, list[dict[str, Any]]]:
    """The best setting, and every candidate's row."""
    fixed, space = SPACES[method]
    random.seed(args.seed)
    rows: list[dict[str, Any]] = []
    limit = args.seconds

    def measure(candidate: dict[str, Any], seed: int, limit: float) -> float | None:
        setting = setting_of(fixed, candidate)
        run = Run(setting, data[setting.center], seed, args.hidden, args.steps)
        curve = run.curve(limit, args.every, args.target, silent=False)
        point = reached(curve, args.target)
        return None if point is None else point["cpu_seconds"]

    def time_of(row: dict[str, Any]) -> float:
        return float("inf") if row["seconds"] is None else row["seconds"]

    start = {name: STARTS[method][name] for name in space} if args.near else None
    for number in tqdm(range(args.candidates), desc=method, leave=False):
        best = min(rows, key=time_of, default=None)
        if (
            best is not None
            and best["seconds"] is not None
            and (start or 2 * number >= args.candidates)
        ):
            candidate = drawn(space, best["candidate"])
        elif start is not None and number == 0:
            candidate = start
        else:
            candidate = drawn(space, start)
        rows.append({"candidate": candidate, "seconds": measure(candidate, args.seed, limit)})
        found = time_of(rows[-1])
        limit = min(limit, 1.25 * found + 2 * args.every)
    finalists = sorted(rows, key=time_of)[: args.finalists]
    for row in finalists:
        again = [measure(row["candidate"], args.seed + 1 + i, args.seconds) for i in range(2)]
        row["again"] = again
        times = [float("inf") if s is None else s for s in (row["seconds"], *again)]
        row["median"] = statistics.median(times)
    winner = min(finalists, key=lambda row: row["median"])
    print(f"{method}: {winner['median']:.2f} s {winner['candidate']}", flush=True)
    return setting_of(fixed, winner["candidate"]), rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--methods", nargs="+", choices=SPACES, default=list(SPACES))
    add("--candidates", type=int, default=50, help="of each method")
    add("--near", action="store_true", help="vary STARTS instead of drawing half of them anew")
    add("--finalists", type=int, default=4)
    add(
        "--seconds",
        type=float,
        default=2.5,
        help="of the processor, for a candidate at most",
    )
    add("--every", type=float, default=0.1, help="seconds of training between evaluations")
    add("--target", type=float, default=95.0)
    add("--images", type=int, default=7000, help="validation images that are looked at")
    add("--hidden", type=int, default=50)
    add("--steps", type=int, default=8)
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=100)
    add("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    training.skip_denormals()
    keep_freed_memory()
    plain = validation_data(split(*load("mnist", args.data_dir), seed=0), args.images)
    data = {False: plain, True: plain.centered()}
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "target": args.target,
        "versions": training.installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
        "methods": {},
    }
    args.output.mkdir(parents=True, exist_ok=True)
    name = "time_to_accuracy_search_near.json" if args.near else "time_to_accuracy_search.json"
    for method in args.methods:
        setting, rows = search(method, data, args)
        results["methods"][method] = {"setting": setting.described(), "rows": rows}
        (args.output / name).write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
