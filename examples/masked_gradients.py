"""Why a network looks robust by the paper's protocol: one network, ever narrower rectangles.

    python examples/masked_gradients.py --dataset mnist --data-dir data

Takes NIT's network of `paper_tables.py`, and its options (--resume takes the finished network),
and attacks it by FGSM, BIM, PGD, MIM, DIM and TIM through a rectangle of each of --widths. The
network, its spikes and the rule of decision (one draw) stay; only what the attacker differentiates
changes. Beside it: on how many images that gradient is exactly zero, and EOT-PGD by the density of
the noise and by the likelihood ratio, which depend on no width. Writes masking_<dataset>.json and
.png to --output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import paper_tables
import torch
import torch.nn.functional as F
import training
from torch import Tensor
from tqdm import tqdm

from nit_snn import keep_freed_memory
from nit_snn.datasets import load, split
from nit_snn.inspect.audit import rectangle
from nit_snn.robustness import EOTPGD, Defender, gradients, paper_attacks

EPS = 0.1
ATTACKS = ("FGSM", "BIM", "PGD", "MIM", "DIM", "TIM")
INDEPENDENT = ("density 1", "LR")


def share_without_gradient(defender: Defender, width: float, x: Tensor, y: Tensor) -> float:
    """Percent of images whose gradient is zero in every pixel, in one draw of the noise."""
    leaf = x.clone().requires_grad_()
    logits = defender.classifier(surrogate=rectangle(width))(leaf)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
    return 100 * (gradient.flatten(1).abs().amax(1) == 0).float().mean().item()


def accuracy(defender: Defender, x: Tensor, y: Tensor) -> float:
    return 100 * defender.right(x, y).float().mean().item()


def measure(defender: Defender, x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracies in percent: clean, by width and attack, and by gradients that have no width."""
    rows = []
    for width in tqdm(args.widths, desc="widths", leave=False):
        model = defender.classifier(surrogate=rectangle(width))
        attacks = paper_attacks(model, eps=EPS)
        found = {name: accuracy(defender, attacks[name](x, y), y) for name in ATTACKS}
        zero = share_without_gradient(defender, width, x, y)
        rows.append({"width": width, "zero_gradient": zero, "attacks": found})
    ways = gradients(defender)
    honest = {}
    for name in tqdm(INDEPENDENT, desc="EOT-PGD", leave=False):
        model = defender.classifier(draws=args.draws, **ways[name])
        attack = EOTPGD(model, eps=EPS, steps=40, draws=1, restarts=1, judgements=2)
        honest[name] = accuracy(defender, attack(x, y), y)
    return {"clean": accuracy(defender, x, y), "rows": rows, "eot_pgd": honest}


def picture(found: dict[str, Any], dataset: str, path: Path) -> None:
    """Accuracy against the width of the attacker's rectangle."""
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    widths = [row["width"] for row in found["rows"]]
    for name in ATTACKS:
        values = [row["attacks"][name] for row in found["rows"]]
        axis.plot(widths, values, marker=".", lw=1, label=name)
    zero = [row["zero_gradient"] for row in found["rows"]]
    axis.plot(widths, zero, color="k", ls=":", label="images without gradient")
    for (name, value), style in zip(found["eot_pgd"].items(), ("--", "-."), strict=True):
        axis.axhline(value, color="0.4", ls=style, label=f"EOT-PGD, {name}")
    axis.set(xscale="log", ylim=(0, 100), xlabel="width of the attacker's rectangle, thresholds")
    axis.set(ylabel="accuracy, percent of images", title=f"One NIT network, {dataset}, eps = {EPS}")
    axis.invert_xaxis()
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    own = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=False)
    own.add_argument("--widths", type=float, nargs="+", default=[2.0, 1.0, 0.3, 0.1, 0.03, 0.01])
    known, rest = own.parse_known_args(argv)
    args = paper_tables.parse_arguments(rest)
    args.widths = known.widths
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    training.skip_denormals()
    keep_freed_memory()
    for folder in (args.work, args.output):
        folder.mkdir(parents=True, exist_ok=True)
    splits = split(*load(args.dataset, args.data_dir, args.download), seed=args.seed)
    net = paper_tables.train("NIT", splits, args)
    net.eval()
    torch.manual_seed(args.seed)
    x, y = (t[: args.images] for t in splits.test.tensors)
    found = measure(Defender(net, encode=net.encode), x, y, args)
    results = {
        "dataset": args.dataset,
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "attacked_images": len(x),
        "images": len(splits.train) + len(splits.validation) + len(splits.test),
        "settings": {k: v for k, v in vars(args).items() if k in paper_tables.TRAINING},
        "eps": EPS,
        "decided_by_draws": 1,
        "eot_pgd_settings": {"steps": 40, "alpha": 0.01, "draws": args.draws, "restarts": 1},
        "versions": training.installed(
            "nit-snn", "torch", "snntorch", "spikingjelly", "torchattacks"
        ),
        "machine": f"{training.processor()}, {args.threads} threads",
        **found,
    }
    path = args.output / f"masking_{args.dataset}"
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    picture(results, args.dataset, path.with_suffix(".png"))
    for row in found["rows"]:
        cells = "  ".join(f"{name} {row['attacks'][name]:5.1f}" for name in ATTACKS)
        print(f"width {row['width']:<6} no gradient {row['zero_gradient']:5.1f}  {cells}")
    print("clean", round(found["clean"], 1), "EOT-PGD", found["eot_pgd"])


if __name__ == "__main__":
    main()
