"""Settings of adversarial training, tried one by one on validation images.

    python benchmarks/adversarial_search.py --data-dir data

784-50-10 on MNIST, or with `--hidden 512` 784-512-10, eps = 0.1, by the methods of
`examples/adversarial_training.py`. Every trial changes the first one of its method in the way that
its name tells. The wide networks keep the best of their epochs, chosen on other validation images
than those that the table tells of. Writes --output, and a table beside it, after each trial; with
--resume it leaves out what that holds already.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training
from adversarial_training import EPS, Run, Setting, described, validated, write

from nit_snn import keep_freed_memory
from nit_snn.datasets import load, split

NIT = Setting("NIT", epochs=3)
STBP = Setting("STBP-N", epochs=3, lr=1e-2, draws=1, replicas=1)
RELU = Setting("ReLU", epochs=10, inner=7, warmup=0.0)
LONGER = replace(NIT, epochs=10, lr=1e-2, warmup=3.0, of_mean=True)
RELU_FASTER = replace(RELU, warmup=3.0, lr=1e-2)
RATES = replace(RELU_FASTER, method="mean rates")
SMOOTH: dict[str, Any] = {"sigma": 1.5, "scale": 10.0}
RELU_LONGER = replace(RELU_FASTER, epochs=15, eps=0.11, stop_images=1000)
RATES_LONGER = replace(RELU_LONGER, method="mean rates", **SMOOTH, inner=5)
NIT_LONGER = replace(RATES_LONGER, method="NIT", lr=5e-3, of_mean=True)
TRIALS: dict[str, Setting] = {
    "NIT": NIT,
    "NIT, 2 draws and replicas": replace(NIT, draws=2, replicas=2),
    "NIT, 8 draws": replace(NIT, draws=8),
    "NIT, 8 replicas": replace(NIT, replicas=8),
    "NIT, 1 inner step": replace(NIT, inner=1),
    "NIT, TRADES with beta 3": replace(NIT, beta=3.0),
    "NIT, rate 0.01": replace(NIT, lr=1e-2),
    "NIT, rate 0.02": replace(NIT, lr=2e-2),
    "NIT, rate 0.01, loss of the mean": replace(NIT, lr=1e-2, of_mean=True),
    "NIT, 10 epochs": LONGER,
    "NIT, 10 epochs, sigma 1.5": replace(LONGER, sigma=1.5),
    "NIT, 10 epochs, logits times 10": replace(LONGER, scale=10.0),
    "NIT, 10 epochs, sigma 1.5, logits times 10": replace(LONGER, **SMOOTH),
    "NIT, 10 epochs, sigma 1.5, logits times 10, eps 0.11, 5 inner steps": replace(
        LONGER, **SMOOTH, eps=0.11, inner=5
    ),
    "STBP-N": STBP,
    "STBP-N, FGSM": replace(STBP, inner=1),
    "STBP-N, 4 draws and replicas, loss of the mean": replace(
        STBP, draws=4, replicas=4, of_mean=True
    ),
    "STBP-N, 5 epochs, sigma 1.5, logits times 10, eps 0.11, 5 inner steps": replace(
        LONGER, method="STBP-N", epochs=5, **SMOOTH, eps=0.11, inner=5
    ),
    "ReLU": RELU,
    "ReLU, rate 0.001": replace(RELU, lr=1e-3),
    "ReLU, growing eps": replace(RELU, warmup=3.0),
    "ReLU, growing eps, weights averaged": replace(RELU, warmup=3.0, ema=0.999),
    "ReLU, growing eps, TRADES with beta 3": replace(RELU, warmup=3.0, beta=3.0),
    "ReLU, growing eps, rate 0.01": RELU_FASTER,
    "ReLU, growing eps, rate 0.01, eps 0.11, 30 epochs": replace(RELU_FASTER, eps=0.11, epochs=30),
    "mean rates": RATES,
    "mean rates, sigma 1.5": replace(RATES, sigma=1.5),
    "mean rates, logits times 10": replace(RATES, scale=10.0),
    "mean rates, sigma 1.5, logits times 10": replace(RATES, **SMOOTH),
    "NIT, 15 epochs, rate 0.005": NIT_LONGER,
    "NIT, 15 epochs, rate 0.005, learned sigma": replace(NIT_LONGER, learn_sigma=True),
    "mean rates, 15 epochs": RATES_LONGER,
    "mean rates, 15 epochs, rate 0.005": replace(RATES_LONGER, lr=5e-3),
    "mean rates, 15 epochs, rate 0.0025, eps 0.12": replace(RATES_LONGER, lr=2.5e-3, eps=0.12),
    "mean rates, 15 epochs, eps 0.12": replace(RATES_LONGER, eps=0.12),
    "ReLU, 15 epochs": RELU_LONGER,
    "ReLU, 15 epochs, rate 0.005": replace(RELU_LONGER, lr=5e-3),
    "ReLU, 15 epochs, eps 0.12": replace(RELU_LONGER, eps=0.12),
}

WIDE_RELU = replace(RELU, epochs=12, lr=1e-2, warmup=3.0, stop_images=1000)
WIDE_RATES = replace(WIDE_RELU, method="mean rates", **SMOOTH, eps=0.11, inner=5, steps=4)
WIDE: dict[str, Setting] = {
    "ReLU": WIDE_RELU,
    "ReLU, images moved": replace(WIDE_RELU, shift=1),
    "ReLU, eps 0.11": replace(WIDE_RELU, eps=0.11),
    "ReLU, eps 0.12, rate 0.005": replace(WIDE_RELU, eps=0.12, lr=5e-3),
    "ReLU, eps 0.12, rate 0.0025": replace(WIDE_RELU, eps=0.12, lr=2.5e-3),
    "mean rates": WIDE_RATES,
    "mean rates, weights averaged": replace(WIDE_RATES, ema=0.999),
    "mean rates, eps 0.12": replace(WIDE_RATES, eps=0.12),
    "mean rates, eps 0.13": replace(WIDE_RATES, eps=0.13),
    "mean rates, eps 0.12, rate 0.005": replace(WIDE_RATES, eps=0.12, lr=5e-3),
    "mean rates, eps 0.12, rate 0.0025": replace(WIDE_RATES, eps=0.12, lr=2.5e-3),
    "mean rates, eps 0.13, rate 0.0025": replace(WIDE_RATES, eps=0.13, lr=2.5e-3),
    "mean rates, eps 0.12, rate 0.0025, T = 8": replace(WIDE_RATES, eps=0.12, lr=2.5e-3, steps=8),
}


def table(results: dict[str, Any]) -> str:
    """The trials as a table, the best of each method first."""
    commands = " and ".join(
        f"`{c}`" for c in dict.fromkeys(r["by"]["command"] for r in results["rows"])
    )
    lines = [
        "# Settings of adversarial training, tried",
        "",
        f"784-{results['hidden']}-10 on {results['dataset']}, eps = {EPS}: accuracy in percent on "
        "so many validation images, clean and the worst of EOT-PGD (40 steps, 20 draws) by the "
        "likelihood ratio and by the noise's density; of PGD for networks without noise. Mean "
        "rates: what NIT's network is on average, trained as ReLU is. Seconds are the processor's, "
        f"for the whole training. By {commands}.",
        "",
        "| trial | epochs | seconds | images | clean | worst |",
        "|---|---|---|---|---|---|",
    ]
    methods = list(dict.fromkeys(row["setting"]["method"] for row in results["rows"]))
    ordered = sorted(
        results["rows"],
        key=lambda r: (methods.index(r["setting"]["method"]), -r["validation"]["worst"]),
    )
    for row in ordered:
        found = row["validation"]
        lines.append(
            f"| {row['name']} | {row['setting']['epochs']} | {row['cpu_seconds']:.0f} | "
            f"{row['images']} | {found['clean']:.1f} | {found['worst']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--hidden", type=int, choices=(50, 512), default=50, help="hidden neurons")
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--images", type=int, default=1000, help="validation images attacked")
    add("--trials", nargs="+", help="only those whose names begin like this")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="by default docs/results/adversarial_search[_512].json")
    add("--resume", action="store_true")
    args = parser.parse_args()
    if args.output is None:
        wide = "" if args.hidden == 50 else f"_{args.hidden}"
        args.output = Path(f"docs/results/adversarial_search{wide}.json")
    training.skip_denormals()
    keep_freed_memory()
    splits = split(*load("mnist", args.data_dir), seed=args.seed)
    rows: list[dict[str, Any]] = []
    if args.resume and args.output.exists():
        rows = json.loads(args.output.read_text())["rows"]
    for name, setting in (TRIALS if args.hidden == 50 else WIDE).items():
        if any(row["name"] == name for row in rows) or (
            args.trials and not name.startswith(tuple(args.trials))
        ):
            continue
        run = Run(setting, args.hidden, args.seed)
        started = time.process_time()
        run.train(splits)
        seconds = time.process_time() - started
        by = described("mnist", args.seed)
        by["command"] = by["command"].removesuffix(" --resume")  # which changes no number
        torch.manual_seed(args.seed)
        found = validated(run.net, splits, args.images)
        rows.append(
            {
                "name": name,
                "by": by,
                "images": args.images,
                "cpu_seconds": seconds,
                "validation": found,
                "setting": asdict(setting),
                "history": run.history,
            }
        )
        shown = ", ".join(f"{k} {v:.1f}" for k, v in found.items())
        print(f"{name}: {seconds:.0f} s; {shown}", flush=True)
        put(rows, args)
    put(rows, args)  # of a run that had nothing left to do, too


def put(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Writes the trials so far, and their table."""
    results = {"dataset": "mnist", "hidden": args.hidden, "rows": rows}
    write(args.output, json.dumps(results, indent=1) + "\n")
    write(args.output.with_suffix(".md"), table(results))


if __name__ == "__main__":
    main()
