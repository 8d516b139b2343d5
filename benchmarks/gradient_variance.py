"""Variance, bias, direction and cost of every estimator, on the same networks, in one run.

    python benchmarks/gradient_variance.py

snnTorch networks with one and with three hidden layers, and one with a long memory (all with a
summed readout), are trained on the embedded MNIST subset by the likelihood ratio alone. The first
is trained a second time by the best unbiased estimator, which fits these images almost fully. At
their start, and after some steps, every estimator is asked many times for the gradient of the first
layer's weights on one and the same batch. The truth is the mean of independent unbiased estimates
with many replicas. A credit alone (residual = 0) is biased: it is compared by the error of one
estimate, its variance and the square of its bias together. Writes gradient_variance.json and .png
to --output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, swap_neurons
from nit_snn.datasets import load_subset

CREDITS = ("readout", "layers", "time")
CHEAP = ("layers", "time")
NONE: dict[str, Any] = {"credit": "none"}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "plain Eq. 8": {**NONE, "baseline": "none"},
    "batch-mean": {**NONE, "baseline": "batch-mean"},
    "leave-one-out": NONE,
    "noise from a table": {**NONE, "noise_reuse": True},
    "antithetic": {**NONE, "antithetic": True},
    "conditional": {**NONE, "conditional": True},
    **{f"credit {kind}": {"credit": kind, "residual": 1} for kind in CREDITS},
    **{
        f"credit {kind}, conditional": {"credit": kind, "residual": 1, "conditional": True}
        for kind in CREDITS
    },
    # Biased, with hardly any variance.
    **{f"credit {kind} alone": {"credit": kind, "residual": 0} for kind in CHEAP},
    **{
        f"credit {kind} alone, 1 replica": {"credit": kind, "residual": 0, "replicas": 1}
        for kind in CHEAP
    },
    "NIT-S": {"rule": "nit-s", **NONE},  # another direction
}
SURROGATE = "STBP-N, one draw"
BIASED = tuple(name for name, options in ESTIMATORS.items() if options.get("residual") == 0)
OTHERS = ("NIT-S", SURROGATE)  # not estimates of this gradient
BEST = {"credit": "time", "residual": 1, "conditional": True}
# What each network is, and the estimator that trains it.
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "784-50-10": ({"hidden": [50]}, NONE),
    "784-50-10, fitted": ({"hidden": [50]}, BEST),
    "784-50-50-50-10": ({"hidden": [50, 50, 50]}, NONE),
    "784-50-50-10, long memory": ({"hidden": [50, 50], "steps": 15, "beta": 0.95}, NONE),
}


class Net(nn.Module):
    """784-hidden-10; the currents of the output layer are summed over time."""

    def __init__(self, hidden: list[int], steps: int = 4, beta: float = 0.5) -> None:
        super().__init__()
        self.steps = steps
        sizes = [784, *hidden]
        self.synapses = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes, hidden, strict=False))
        self.neurons = nn.ModuleList(snn.Leaky(beta=beta, reset_mechanism="zero") for _ in hidden)
        self.readout = nn.Linear(hidden[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        membranes = [neuron.reset_mem() for neuron in self.neurons]
        outputs = []
        for _ in range(self.steps):
            spikes = x
            for i, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                spikes, membranes[i] = neuron(synapse(spikes), membranes[i])
            outputs.append(self.readout(spikes))
        return torch.stack(outputs).sum(0)


def one_gradient(net: Net, learner: NITLearner | None, x: Tensor, y: Tensor) -> Tensor:
    """An estimate of the gradient of the first layer's weights, flat; by STBP without a learner."""
    net.zero_grad()
    if learner is None:
        F.cross_entropy(net(x), y).backward()
    else:
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        learner.backward(losses)
    return net.synapses[0].weight.grad.flatten().clone()


def measure(net: Net, x: Tensor, y: Tensor, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per estimator; times are medians of CPU time, which other work does not disturb."""
    truth, truth_error = reference(net, x, y, args)
    rows = []
    for name in tqdm([*ESTIMATORS, SURROGATE], desc="estimators", leave=False):
        learner = None
        if name != SURROGATE:
            options = {"replicas": args.replicas, "seed": args.seed + 1, **ESTIMATORS[name]}
            learner = NITLearner(net, **options)
        one_gradient(net, learner, x, y)
        estimates, seconds = [], []
        for _ in range(args.estimates):
            started = time.process_time()
            estimates.append(one_gradient(net, learner, x, y))
            seconds.append(time.process_time() - started)
        if learner is not None:
            learner.close()
        rows.append(statistics(name, torch.stack(estimates), truth, truth_error, seconds))
    for row in rows:
        row["times_better_than_plain"] = rows[0]["variance_x_time"] / row["variance_x_time"]
    return rows


def statistics(
    name: str, found: Tensor, truth: Tensor, truth_error: Tensor, seconds: list[float]
) -> dict[str, Any]:
    """What a number of estimates says of one estimator."""
    variance = found.var(0).sum()
    # Squared distance of the mean from the truth, over what chance alone would give.
    chance = variance / len(found) + truth_error
    distance = (found.mean(0) - truth).square().sum()
    square = (truth.square().sum() - truth_error).clamp(min=1e-30)
    milliseconds = 1000 * sorted(seconds)[len(seconds) // 2]
    return {
        "estimator": name,
        "variance": variance.item(),
        "cosine": torch.cosine_similarity(found, truth, dim=1).mean().item(),
        "bias_over_chance": (distance / chance).item(),
        "relative_bias": ((distance - chance).clamp(min=0) / square).sqrt().item(),
        # Of one estimate: its variance and the square of its bias.
        "relative_error": ((variance + (distance - chance).clamp(min=0)) / square).sqrt().item(),
        "milliseconds": milliseconds,
        "variance_x_time": variance.item() * milliseconds,
    }


def reference(net: Net, x: Tensor, y: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The mean of independent unbiased estimates with many replicas, and its variance."""
    learner = NITLearner(net, replicas=16 * args.replicas, seed=args.seed + 2, **BEST)
    many = torch.stack([one_gradient(net, learner, x, y) for _ in range(args.estimates // 4)])
    learner.close()
    return many.mean(0), many.var(0).sum() / len(many)


def train(
    net: Net,
    estimator: dict[str, Any],
    images: Tensor,
    labels: Tensor,
    steps: int,
    args: argparse.Namespace,
) -> None:
    learner = NITLearner(net, replicas=args.replicas, seed=args.seed, **estimator)
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)
    for _ in tqdm(range(steps), desc="training", leave=False):
        rows = torch.randint(len(labels), (args.batch_size,))
        one_gradient(net, learner, images[rows], labels[rows])
        optimizer.step()
    learner.close()


def picture(networks: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Variance and variance x time of every estimator, a row of panels for each network."""
    names = [*ESTIMATORS, SURROGATE]
    panels = (
        ("variance", "variance of one estimate"),
        ("variance_x_time", "variance x milliseconds"),
        ("relative_error", "error of one estimate / gradient"),
        ("cosine", "cosine to the truth"),
    )
    figure, axes = plt.subplots(
        len(networks),
        len(panels),
        figsize=(11, 4.8 * len(networks)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (title, stages), line in zip(networks.items(), axes, strict=True):
        for panel, (key, label) in zip(line, panels, strict=True):
            for i, stage in enumerate(stages):
                positions = [n + 0.27 * (1 - i) for n in range(len(names))]
                values = [row[key] for row in stage["rows"]]
                if key != "cosine":  # of a direction, or of another gradient, it says nothing
                    biased = () if key == "relative_error" else BIASED
                    values = [
                        float("nan") if n in (*OTHERS, *biased) else v
                        for v, n in zip(values, names, strict=True)
                    ]
                panel.barh(positions, values, 0.25, label=f"after {stage['steps']} steps")
            scale = "linear" if key == "cosine" else "log"
            panel.set(xscale=scale, xlabel=label, yticks=range(len(names)), yticklabels=names)
            panel.grid(axis="x", alpha=0.3)
        line[0].set_title(title, loc="left")
    axes[0, 0].invert_yaxis()  # shared by all
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--estimates", type=int, default=60)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 300, 1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    pixels, digits = load_subset("mnist")
    images = torch.from_numpy(pixels).flatten(1) / 255
    labels = torch.from_numpy(digits).long()
    networks = {}
    for title, (shape, estimator) in NETWORKS.items():
        torch.manual_seed(args.seed)
        net = Net(**shape)
        swap_neurons(net, sigma=1.0)
        stages, done = [], 0
        for steps in args.stages:
            train(net, estimator, images, labels, steps - done, args)
            done = steps
            rows = measure(net, images[: args.batch_size], labels[: args.batch_size], args)
            stages.append({"steps": steps, "rows": rows})
            print_table(title, steps, rows)
        networks[title] = stages
    args.output.mkdir(parents=True, exist_ok=True)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "network": "snnTorch Leaky, T=4 and beta=0.5, long memory T=15 and beta=0.95; sigma=1, "
        "summed readout; weights of the first layer",
        "replicas": args.replicas,
        "batch_size": args.batch_size,
        "estimates": args.estimates,
        "versions": {n: version(n) for n in ("nit-snn", "torch", "snntorch")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "networks": networks,
    }
    (args.output / "gradient_variance.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(networks, args.output / "gradient_variance.png")


def print_table(title: str, steps: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}, after {steps} steps of training")
    print(f"{'':30}{'variance':>10}{'bias':>8}{'error':>8}{'cosine':>8}{'ms':>7}{'better':>8}")
    for row in rows:
        print(
            f"{row['estimator']:30}{row['variance']:10.3g}{row['relative_bias']:8.3f}"
            f"{row['relative_error']:8.3f}{row['cosine']:8.3f}{row['milliseconds']:7.1f}"
            f"{row['times_better_than_plain']:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
