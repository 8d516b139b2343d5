"""Certified radii of an adversarially trained network, from its own noise and from smoothing.

    python examples/certify.py --data-dir data --checkpoint runs/adversarial/mnist_50_NIT_0

Takes the NIT network of `adversarial_training.py` from its checkpoint. `certify_noise` needs
nothing but the noise that the network has; `certify_smoothing` adds noise to the images, which the
network was not trained for. Certified accuracy is told by majority votes, at several radii, in the
Euclidean norm; by its own noise in the L-infinity norm as well. Writes certified_<dataset>.json and
.png to --output.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import training
from adversarial_training import Setting, Spiking

from nit_snn.datasets import NAMES, load, split
from nit_snn.robustness import (
    Certificate,
    NoisyClassifier,
    certify_noise,
    certify_smoothing,
    sensitivity,
)
from nit_snn.training.checkpoints import Checkpoints

RADII = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0]
RADII_LINF = [0.0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.1]


def row(name: str, found: Certificate, labels: torch.Tensor, radii: list[float]) -> dict[str, Any]:
    """Certified accuracy in percent at each radius."""
    accuracy = [round(100 * found.accuracy(labels, radius), 2) for radius in radii]
    return {
        "certificate": name,
        "radii": radii,
        "accuracy": accuracy,
        "median_radius": float(found.radius.median()),
        "abstains": round(100 * float((found.prediction < 0).float().mean()), 2),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=NAMES, default="mnist")
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add(
        "--checkpoint",
        type=Path,
        default=Path("runs/adversarial/mnist_50_NIT_0"),
        help="folder of a run of adversarial_training.py",
    )
    add("--images", type=int, default=300, help="test images")
    add("--draws", type=int, default=10_000, help="votes for each")
    add("--alpha", type=float, default=0.001, help="how often a radius may be too large")
    add("--sigmas", type=float, nargs="+", default=[0.12, 0.25], help="of smoothing")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args(argv)
    training.skip_denormals()
    saved = Checkpoints(args.checkpoint).newest()
    if saved is None:
        raise SystemExit(f"No checkpoint in {args.checkpoint}: run adversarial_training.py first.")
    hidden = saved.settings["hidden"]
    net = Spiking(hidden, Setting(**{f.name: saved.settings[f.name] for f in fields(Setting)}))
    kept = saved.progress.get("best", {})  # of the epoch that was kept, if one was chosen
    net.load_state_dict(kept.get("weights", saved.parts["net"]))
    splits = split(*load(args.dataset, args.data_dir), seed=args.seed)
    images, labels = (t[: args.images] for t in splits.test.tensors)
    torch.manual_seed(args.seed)
    classifier = NoisyClassifier(net)
    votes = {"draws": args.draws, "alpha": args.alpha}
    rows = []
    for norm, radii in (("l2", RADII), ("linf", RADII_LINF)):
        found = certify_noise(classifier, images, norm=norm, **votes)
        rows.append(row(f"own noise, {norm}", found, labels, radii))
    for sigma in args.sigmas:
        found = certify_smoothing(classifier, images, sigma, **votes)
        rows.append(row(f"smoothing, sigma {sigma:g}, l2", found, labels, RADII))
    moved = sensitivity(classifier, images[:1])
    results = {
        "dataset": args.dataset,
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "spikingjelly", "scipy"),
        "machine": training.processor(),
        "network": f"784-{hidden}-10, NIT with adversarial training",
        "images": len(labels),
        **votes,
        "sensitivity": {"l2": moved.l2, "linf": moved.linf},
        "rows": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"certified_{args.dataset}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for one in rows:
        if not one["certificate"].endswith("linf"):
            axis.plot(one["radii"], one["accuracy"], marker=".", label=one["certificate"])
        cells = zip(one["radii"], one["accuracy"], strict=True)
        print(f"{one['certificate']:28}", *(f"{r:g}: {a:.1f}" for r, a in cells))
    axis.set(xlabel="radius, Euclidean norm", ylabel="certified accuracy, percent", ylim=(0, 100))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path.with_suffix(".png"), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
