"""Test accuracy of every training method, on MNIST and Fashion-MNIST.

    python benchmarks/accuracy.py --data-dir data --download

784-50-10 in snnTorch, images less their mean, split 7:2:1: STBP, STBP-N (surrogate gradient
on the noisy network), NIT, NIT-S (the sign direction) and NIT-S+ (first NIT-S, then NIT).
`SETTINGS` was chosen on the validation images with a seed that is not among the seeds here.
A finished run is written to accuracy_<data set>.json at once, and --resume goes on from there; so
the two data sets may also be run side by side.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from nit_snn.datasets import NAMES, Splits, load, split

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training
from mnist_snntorch import Net

METHODS = {"stbp": "STBP", "stbp-n": "STBP-N", "nit": "NIT", "nit-s": "NIT-S", "nit-s+": "NIT-S+"}
TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
MEASURES = {
    "test": "one draw",
    "test_mean_of_16_draws": "16 draws",
    "test_noise_off": "noise off",
    "validation": "validation",
}
# `lr` is decayed to 0 by a cosine; NIT-S+ is NIT-S at the constant `sign_lr` first.
STBP = {"lr": 2e-3, "weight_decay": 0.3}
NIT = {
    "lr": 5e-3,
    "weight_decay": 0.3,
    "sigma": 0.35,
    "credit": "time",
    "residual": 1.0,
    "conditional": True,
}
NITS = {"lr": 5e-3, "weight_decay": 0.03, "sigma": 0.5, "credit": "readout", "residual": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "stbp": STBP,
    "stbp-n": {**STBP, "sigma": 0.35},
    "nit": NIT,
    "nit-s": NITS,
    "nit-s+": {**NIT, "sign_lr": 1e-3},
}
# Where a data set's own validation images chose otherwise.
OWN_SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("fashion-mnist", "nit-s+"): {"lr": 3e-3, "weight_decay": 0.1, "sigma": 0.3},
}


def settings(dataset: str, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """All that a run depends on but its seed."""
    shared = {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "steps": args.steps,
        "center": True,
        "split_seed": args.split_seed,
        "limit": args.limit,
    }
    noise: dict[str, Any] = {}
    if method.startswith("nit"):
        noise = {"replicas": args.replicas, "conditional": False}
    if method == "nit-s+":
        noise["sign_share"] = args.sign_share
    return shared | noise | SETTINGS[method] | OWN_SETTINGS.get((dataset, method), {})


def one_run(
    dataset: str, method: str, seed: int, splits: Splits, args: argparse.Namespace
) -> dict[str, Any]:
    """Trains one network, and returns its row of the results."""
    chosen = settings(dataset, method, args)
    needed = {
        "sigma": 0.0,
        "replicas": args.replicas,
        "credit": "none",
        "residual": "auto",
        "conditional": False,
        "sign_share": 0.0,
    }
    options = argparse.Namespace(
        **needed | {k: v for k, v in chosen.items() if k != "sign_lr"},
        stbp_lr=chosen["lr"],
        sign_lr=chosen.get("sign_lr", chosen["lr"]),
        seed=seed,
        device="cpu",
        output=args.checkpoints / f"{dataset}-{seed}",
        resume=args.resume,
        save_seconds=60.0,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    run = training.Run(method, lambda: Net(args.steps), {"lif1": options.sigma}, options)
    run.train(splits)
    found = run.result(splits)
    history = found.pop("history")
    return {
        "dataset": dataset,
        **found,
        "seed": seed,
        "validation": history[-1]["validation"],
        "seconds": sum(epoch["seconds"] for epoch in history),
        "images": {part: len(getattr(splits, part)) for part in splits._fields},
        "settings": chosen,
        "history": history,
    }


def finished(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of an earlier run, which must have been made with the settings of this one."""
    if not (args.resume and path.exists()):
        return []
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        now = settings(row["dataset"], row["method"], args)
        if row["settings"] != now:
            raise SystemExit(
                f"{path} holds a run of {row['method']} on {row['dataset']} with other settings: "
                f"{row['settings']}; now: {now}. Resume with the same, or start anew."
            )
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The numbers of one data set, and all it takes to get them again."""
    results = {
        "command": " ".join(["python", *sys.argv]),
        "network": "784-50-10, snnTorch Leaky, beta=0.5, reset to zero, summed readout",
        "seeds": sorted({row["seed"] for row in rows}),
        "versions": training.installed("nit-snn", "torch", "snntorch"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, "
        f"{torch.get_num_threads()} threads",
        "rows": rows,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)  # a run that is killed here keeps the old rows


def values(rows: list[dict[str, Any]], dataset: str, method: str, key: str) -> list[float]:
    """One number per seed."""
    wanted = [r for r in rows if (r["dataset"], r["method"]) == (dataset, method)]
    return [r[key] for r in wanted if r.get(key) is not None]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, in percent."""
    print(f"\n{'':24}" + "".join(f"{title:>15}" for title in MEASURES.values()) + f"{'s':>8}")
    for dataset in TITLES:
        for method, name in METHODS.items():
            seconds = values(rows, dataset, method, "seconds")
            if not seconds:
                continue
            cells = []
            for key in MEASURES:
                found = values(rows, dataset, method, key)
                spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):.2f}{spread}" if found else "-")
            shown = "".join(f"{cell:>15}" for cell in cells)
            print(f"{TITLES[dataset]:<15}{name:<9}{shown}{statistics.mean(seconds):8.0f}")


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel per data set: a line at the mean of each method, a dot for each seed."""
    datasets = [d for d in TITLES if any(row["dataset"] == d for row in rows)]
    figure, panels = plt.subplots(
        1, len(datasets), figsize=(4.6 * len(datasets), 3.8), layout="constrained", squeeze=False
    )
    for panel, dataset in zip(panels[0], datasets, strict=True):
        for i, method in enumerate(METHODS):
            for key, colour, shift in (
                ("test", "C0", -0.17),
                ("test_mean_of_16_draws", "C1", 0.17),
            ):
                found = values(rows, dataset, method, key)
                if not found:
                    continue
                x = i + (shift if method != "stbp" else 0)  # without noise there is one number
                colour = colour if method != "stbp" else "0.3"
                panel.hlines(statistics.mean(found), x - 0.15, x + 0.15, color=colour, lw=2)
                across = [x + 0.06 * (n - (len(found) - 1) / 2) for n in range(len(found))]
                panel.plot(across, found, "o", ms=4, color=colour, mec="white", mew=0.5)
        panel.set(title=TITLES[dataset], xticks=range(len(METHODS)), xlim=(-0.5, 4.5))
        panel.set_xticklabels(METHODS.values())
        panel.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylabel("test accuracy (%)")
    marks = [
        plt.Line2D([], [], color=colour, marker="o", ms=4, lw=2, label=label)
        for colour, label in (("0.3", "no noise"), ("C0", "one draw"), ("C1", "mean of 16 draws"))
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", nargs="+", choices=NAMES, default=list(TITLES))
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--split-seed", type=int, default=7, help="names the split, which all runs share")
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--download", action="store_true", help="download the full data if it is missing")
    add("--limit", type=int, help="take only this many images of each data set")
    add("--epochs", type=int, default=10)
    add("--sign-share", type=float, default=0.3, help="NIT-S+: share of the epochs that are NIT-S")
    add("--batch-size", type=int, default=64)
    add("--replicas", type=int, default=16, help="noisy copies of each sample")
    add("--steps", type=int, default=8, help="time steps T")
    add("--output", type=Path, default=Path("docs/benchmarks"), help="where the results go")
    add("--checkpoints", type=Path, default=Path("runs/accuracy"))
    add("--resume", action="store_true", help="keep what --output and --checkpoints hold")
    return parser.parse_args()


def main() -> None:
    training.skip_denormals()
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    for dataset in args.dataset:
        path = args.output / f"accuracy_{dataset}.json"
        rows = finished(path, args)
        done = {(row["method"], row["seed"]) for row in rows}
        images, labels = load(dataset, args.data_dir, args.download)
        splits = training.centered(
            split(images[: args.limit], labels[: args.limit], args.split_seed)
        )
        runs = [(s, m) for s in args.seeds for m in args.methods]
        for seed, method in tqdm(runs, desc=dataset):
            if (method, seed) not in done:
                rows.append(one_run(dataset, method, seed, splits, args))
                write(rows, path)
    files = [args.output / f"accuracy_{dataset}.json" for dataset in TITLES]
    every = [r for f in files if f.exists() for r in json.loads(f.read_text())["rows"]]
    print_table(every)
    picture(every, args.output / "accuracy.png")


if __name__ == "__main__":
    main()
