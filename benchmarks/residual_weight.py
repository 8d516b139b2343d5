"""The mean squared error of the default estimate, by how the residual is weighed.

    python benchmarks/residual_weight.py

"credit alone" is `residual=0`, "all of it" `residual=1`. "weighed" is `residual="auto"`: two
standard errors below the weight that was measured. "weighed by the mean" takes that weight itself.
All have `credit="layers"`. The network is new, or has been trained for 100 steps; then the
residual is measured in some passes over other batches, and 6 estimates of one batch of 64 images
are compared with the mean of 40 unbiased ones of 32 replicas. Errors are relative to the squared
length of the gradient, of the weights of one layer. Writes residual_weight.json to --output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, swap_neurons
from nit_snn.datasets import load
from nit_snn.estimators import residual

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training

#: Residual, and standard errors below the measured weight.
WAYS: dict[str, tuple[float | str, float]] = {
    "credit alone": (0, residual.BELOW),
    "weighed": ("auto", residual.BELOW),
    "weighed by the mean": ("auto", 0.0),
    "all of it": (1, residual.BELOW),
}
#: Sizes, decay, time steps.
NETWORKS = {"784-50-10": ([784, 50, 10], 0.5, 8), "784-50-50-10": ([784, 50, 50, 10], 0.9, 15)}
EXACT = {"credit": "time", "residual": 1, "conditional": True, "replicas": 32}
BATCH, ESTIMATES = 64, 6


class Net(nn.Module):
    """Layers of snnTorch's Leaky and a readout summed over time; (N, 784) to (N, 10)."""

    def __init__(self, sizes: list[int], beta: float, steps: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes[:-1]))
        self.neurons = nn.ModuleList(snn.Leaky(beta=beta) for _ in self.dense)
        self.readout, self.steps = nn.Linear(*sizes[-2:]), steps

    def forward(self, x: Tensor) -> Tensor:
        membranes, total = [each.reset_mem() for each in self.neurons], torch.zeros(())
        for _ in range(self.steps):
            spikes = x
            for i, (dense, lif) in enumerate(zip(self.dense, self.neurons, strict=True)):
                spikes, membranes[i] = lif(dense(spikes), membranes[i])
            total = total + self.readout(spikes)
        return total


def gradient(net: Net, learner: NITLearner, x: Tensor, y: Tensor) -> list[Tensor]:
    """Of the weights in front of each noisy layer."""
    net.zero_grad()
    with learner.record():
        xr, yr = learner.expand(x, y)
        losses = F.cross_entropy(net(xr), yr, reduction="none")
    learner.backward(losses)
    return [dense.weight.grad.clone() for dense in net.dense]


def trained(name: str, steps: int, data: tuple[Tensor, Tensor], seed: int) -> Net:
    torch.manual_seed(seed)
    net = swap_neurons(Net(*NETWORKS[name]))
    learner = NITLearner(net, seed=seed)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(8000, (BATCH,))
        gradient(net, learner, *(part[rows] for part in data))
        optimizer.step()
    learner.close()
    return net


def measure(name: str, steps: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each number of replicas, each way, and each number of passes that measured."""
    images, labels = load("mnist", "")
    data = images.flatten(1) / 255, labels
    batch = tuple(part[8000 : 8000 + BATCH] for part in data)
    net = trained(name, steps, data, args.seed)
    learner = NITLearner(net, seed=args.seed + 1, **EXACT)
    found = [gradient(net, learner, *batch) for _ in range(args.exact)]
    learner.close()
    exact = [torch.stack(each).mean(0) for each in zip(*found, strict=True)]
    for replicas in args.replicas:
        for way, (weight, below) in WAYS.items():
            residual.BELOW = below
            options: dict[str, Any] = {"credit": "layers", "residual": weight}
            learner = NITLearner(net, replicas=replicas, seed=args.seed + 2, **options)
            order = torch.Generator().manual_seed(args.seed)
            for passes in range(max(args.passes) + 1):
                if passes in args.passes:
                    errors = [
                        [
                            float((g - e).square().sum() / e.square().sum())
                            for g, e in zip(gradient(net, learner, *batch), exact, strict=True)
                        ]
                        for _ in range(ESTIMATES)
                    ]
                    yield {
                        "network": name,
                        "trained_for": steps,
                        "replicas": replicas,
                        "way": way,
                        "passes": passes,
                        "relative_error": torch.tensor(errors).mean(0).tolist(),
                        "weights": list(learner.residual_weights.values()),
                    }
                    if weight != "auto":
                        break
                rows = torch.randint(8000, (BATCH,), generator=order)
                gradient(net, learner, *(part[rows] for part in data))
            learner.close()
            residual.BELOW = WAYS["weighed"][1]


def worst_and_best(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Of each way: the largest and the smallest error of a layer, over that of the credit alone."""
    alone = {_where(r): r["relative_error"] for r in rows if r["way"] == "credit alone"}
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["way"] != "credit alone":
            pairs = zip(row["relative_error"], alone[_where(row)], strict=True)
            found.setdefault(row["way"], []).extend(error / own for error, own in pairs)
    return {way: [max(ratios), min(ratios)] for way, ratios in found.items()}


def _where(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"], row["trained_for"], row["replicas"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    add("--trained-for", type=int, nargs="+", default=[0, 100])
    add("--replicas", type=int, nargs="+", default=[4, 32])
    add("--passes", type=int, nargs="+", default=[4, 16, 64])
    add("--exact", type=int, default=40, help="unbiased estimates of 32 replicas")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = [(name, steps) for name in args.networks for steps in args.trained_for]
    rows = [row for run in tqdm(runs, "networks") for row in measure(*run, args)]
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "snntorch"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
        "over_credit_alone_worst_and_best": worst_and_best(rows),
        "rows": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "residual_weight.json").write_text(json.dumps(results, indent=1) + "\n")
    for way, (worst, best) in results["over_credit_alone_worst_and_best"].items():
        print(f"{way}: {best:.2f} to {worst:.2f} times the error of the credit alone")


if __name__ == "__main__":
    main()
