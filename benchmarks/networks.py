"""Accuracy and time of training on networks as users bring them, against surrogate gradients.

    python benchmarks/networks.py                    # all networks and methods
    python benchmarks/networks.py "tutorial 5" deep  # some of them

STBP is the framework's own surrogate gradient through time, without noise; STBP-N the same with the
noise; "auto" is `NITLearner(net)` with no option set, "forward only" `NITLearner(net,
forward_only=True)`. All see the same images equally often, and each tries the same learning rates
with Adam; the best on 1,000 validation images is judged by 1,000 test images, with one sample of
the noise each. Every run is written to --output at once, and is not repeated when it is there;
beside it comes a picture of the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, __version__, swap_neurons
from nit_snn.datasets import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training
from comparison import METHODS, step
from networks_users_bring import TASKS, Task

COLOURS = {"STBP": "#888888", "STBP-N": "#333333", "auto": "#2b6cb0", "forward only": "#d9822b"}
TEST, VALIDATION = 1000, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(TASKS)}; all if none")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, help="fewer training images, for a trial")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/networks.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    unknown = [name for name in args.networks if name not in TASKS]
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}")
    results = json.loads(args.output.read_text()) if args.output.exists() else {"rows": []}
    done = {_key(row) for row in results["rows"]}
    runs = [
        {"network": network, "method": method, "rate": rate, "seed": seed}
        for network in args.networks or TASKS
        for seed in args.seeds
        for method in args.methods
        for rate in TASKS[network].rates
    ]
    for run in tqdm(runs, "runs"):
        if _key(run) in done:
            continue
        task = TASKS[run["network"]]
        results["rows"].append({**run, **train(task, run, args.images), **_where(args)})
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    picture(results["rows"], args.output.with_suffix(".png"))
    print(table(results["rows"]))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("network", "method", "rate", "seed"))


def _where(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "versions": {"nit_snn": __version__, "torch": torch.__version__},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
    }


def train(task: Task, run: dict[str, Any], images: int | None = None) -> dict[str, Any]:
    """Trains one network; accuracies in percent, and CPU seconds of training."""
    train_set, validation, test = parts(task, images)
    torch.manual_seed(run["seed"])
    net, options = task.make(), METHODS[run["method"]]
    if run["method"] != "STBP":
        swap_neurons(net) if task.sigma is None else swap_neurons(net, sigma=task.sigma)
    learner = None if options is None else NITLearner(net, seed=run["seed"], **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=run["rate"])
    order = torch.Generator().manual_seed(run["seed"])
    started = time.process_time()
    for _ in range(task.epochs):
        for rows in torch.randperm(len(train_set[1]), generator=order).split(task.batch):
            if len(rows) > 1:
                step(task, net, learner, optimizer, train_set[0][rows], train_set[1][rows])
    seconds = time.process_time() - started
    return {
        "validation": accuracy(net, *validation),
        "test": accuracy(net, *test),
        "cpu_seconds": round(seconds, 1),
        "chosen": None if learner is None else repr(learner).split(", rule")[0].partition("(")[2],
    }


def parts(task: Task, images: int | None) -> list[tuple[Tensor, Tensor]]:
    """Images to train on, to choose the rate by, and to judge by."""
    x, y = load(task.data, "")
    x = x.float().div(255).unsqueeze(1)
    count = min(task.images, images or task.images)
    ends = (count, len(y) - TEST - VALIDATION, len(y) - VALIDATION)
    return [
        (x[:count], y[:count]),
        (x[ends[1] : ends[1] + VALIDATION], y[ends[1] : ends[1] + VALIDATION]),
        (x[ends[2] :], y[ends[2] :]),
    ]


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent, with one sample of the noise for each image."""
    net.eval()
    right = sum(
        int((net(images).argmax(1) == labels).sum())
        for images, labels in zip(x.split(500), y.split(500), strict=True)
    )
    net.train()
    return round(100 * right / len(y), 2)


def table(rows: list[dict[str, Any]]) -> str:
    """Test accuracy at each method's best rate, and CPU seconds, as Markdown."""
    lines = [
        "| network | " + " | ".join(METHODS) + " |",
        "|---" * (1 + len(METHODS)) + "|",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        cells = []
        for method in METHODS:
            found = at_best_rate(rows, network, method)
            cells.append(f"{found[0]:.1f} ({found[1]:.0f} s)" if found else "-")
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_best_rate(
    rows: list[dict[str, Any]], network: str, method: str
) -> tuple[float, float] | None:
    """Test accuracy and CPU seconds at the rate of the best validation accuracy, means of seeds."""
    own = [r for r in rows if (r["network"], r["method"]) == (network, method)]
    if not own:
        return None

    def mean(rate: float, what: str) -> float:
        found = [row[what] for row in own if row["rate"] == rate]
        return sum(found) / len(found)

    best = max({row["rate"] for row in own}, key=lambda rate: mean(rate, "validation"))
    return mean(best, "test"), mean(best, "cpu_seconds")


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """The accuracies of the table, a line for each network."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    height = 1.4 + 0.42 * len(networks)
    figure, axes = plt.subplots(figsize=(5.2, height), dpi=110, constrained_layout=True)
    for place, network in enumerate(networks):
        found = {m: at_best_rate(rows, network, m) for m in METHODS}
        shown = {m: each[0] for m, each in found.items() if each}
        axes.plot([min(shown.values()), max(shown.values())], [place] * 2, color="#dddddd", lw=5)
        for method, accuracy in shown.items():
            axes.plot(accuracy, place, "o", ms=7, color=COLOURS[method], alpha=0.9)
    for method, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=method)
    axes.set_yticks(range(len(networks)), networks)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, percent")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, columnspacing=1, fontsize=9)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
