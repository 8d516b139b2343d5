"""Where the sign rule NIT-S points, by what it is told of silent neurons and dark pixels.

    python benchmarks/sign_rule.py --data-dir data

784-50-10 of `examples/paper_tables.py`: two layers of spiking neurons, logits that are rates. The
rule counts a silent neuron as -1 (section 3.3 of the paper). In one reading only the rule does so,
and the network still sends 0; in the other the network sends -1 as well ("signed"). Each is
trained by NIT-S with pixels less their mean, from -1 to 1, and from 0 to 1, at each of --lrs, on
10,000 training images, and told by its accuracy on validation images. Then, at the start and at the
end of the best of these runs: the cosine, layer by layer, of NIT-S's mean direction to the
gradient, from independent halves so that noise does not lower it, and, where the network sends 0,
that of the direction in which silence counts 0. Writes sign_rule.json and sign_rule.png to
--output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nit_snn import NITLearner, keep_freed_memory, swap_neurons
from nit_snn.datasets import NAMES, load, split

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training
from paper_tables import Net

INPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # from pixels and their means
    "less their mean": lambda x, mean: x - mean,
    "from -1 to 1": lambda x, mean: 2 * x - 1,
    "from 0 to 1": lambda x, mean: x,
}
READINGS = {"0 and 1": False, "-1 and +1": True}  # what the hidden neurons send
RULES: dict[str, dict[str, Any]] = {
    "NIT-S": {"rule": "nit-s", "credit": "readout", "residual": 1},
    "NIT": {"credit": "time", "residual": 1, "conditional": True},
}
LAYERS = ("hidden", "output")


def build(signed: bool, args: argparse.Namespace) -> Net:
    """The network of the paper's tables."""
    torch.manual_seed(args.seed)
    net = Net(args.steps, signed=signed)
    swap_neurons(net, sigma=1.0)
    return net


def estimate(net: Net, learner: NITLearner, given: Tensor, labels: Tensor) -> None:
    """What the learner's rule makes of these inputs, (N, 784), into `.grad`."""
    net.zero_grad()
    with learner.record():
        x, y = learner.expand(given, labels)
        losses = F.cross_entropy(net(x), y, reduction="none")
    learner.backward(losses)


def train(net: Net, given: Tensor, labels: Tensor, lr: float, args: argparse.Namespace) -> None:
    """By NIT-S, with Adam and a learning rate that falls to zero."""
    learner = NITLearner(
        net, replicas=args.replicas, noise_reuse=True, seed=args.seed, **RULES["NIT-S"]
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    total = args.epochs * (len(labels) // args.batch_size)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)
    for _ in range(args.epochs):
        for rows in torch.randperm(len(labels)).split(args.batch_size):
            if len(rows) == args.batch_size:
                estimate(net, learner, given[rows], labels[rows])
                optimizer.step()
                falling.step()
    learner.close()


@torch.no_grad()
def accuracy(net: Net, given: Tensor, labels: Tensor) -> float:
    """Percent, by one draw of the noise."""
    return 100 * (net(given).argmax(1) == labels).float().mean().item()


def halves(
    net: Net, rule: str, given: Tensor, labels: Tensor, args: argparse.Namespace
) -> list[list[Tensor]]:
    """For each layer two independent means of a rule's weight and bias gradients, (out, in + 1)."""
    found = []
    for seed in (1, 2):
        learner = NITLearner(net, replicas=args.many, seed=args.seed + seed, **RULES[rule])
        sums: list[Tensor] = [torch.zeros(())] * len(LAYERS)
        for _ in range(args.passes):
            estimate(net, learner, given, labels)
            for i, synapse in enumerate((net.fc1, net.fc2)):
                sums[i] = sums[i] + torch.cat([synapse.weight.grad, synapse.bias.grad[:, None]], 1)
        learner.close()
        found.append([total / args.passes for total in sums])
    return [list(pair) for pair in zip(*found, strict=True)]


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """That of the means behind two pairs of independent estimates; noise cancels in products."""
    both = sum((x * y).sum() for x in a for y in b) / 4
    norms = (a[0] * a[1]).sum() * (b[0] * b[1]).sum()
    return float(both / norms.clamp(min=1e-30).sqrt())


def silence_at_zero(direction: Tensor) -> Tensor:
    """A direction of signs, (out, in + 1), with 0 instead of -1 for each silent neuron.

    The last column, the bias's, is the sum of what every neuron counted: x = ((2 x - 1) + 1) / 2.
    """
    weights, bias = direction[:, :-1], direction[:, -1:]
    return torch.cat([(weights + bias) / 2, bias], 1)


def directions(net: Net, given: Tensor, labels: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Cosines to the gradient by layer, and the share of hidden neurons that fire."""
    signs, truth = (halves(net, rule, given, labels, args) for rule in RULES)
    found: dict[str, Any] = {layer: cosine(signs[i], truth[i]) for i, layer in enumerate(LAYERS)}
    if not net.signed:
        zero = [silence_at_zero(direction) for direction in signs[1]]
        found["output, silence at 0"] = cosine(zero, truth[1])
    with torch.no_grad():
        net(given)
        current = net.fc1(given.expand(args.steps, -1, -1))
        net.lif1.reset()
        found["hidden_rate"] = net.lif1(current).mean().item()
        net.lif1.reset()
    return found


def measure(dataset: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each reading and each input."""
    splits = split(*load(dataset, args.data_dir, args.download), seed=0)
    images, labels = (t[: args.images] for t in splits.train.tensors)
    held, truth = (t[: args.images] for t in splits.validation.tensors)
    mean = images.flatten(1).mean(0)
    rows = []
    cases = [(sends, pixels) for sends in READINGS for pixels in INPUTS]
    for sends, pixels in tqdm(cases, desc=dataset, leave=False):
        given, seen = (INPUTS[pixels](x.flatten(1), mean) for x in (images, held))
        few = given[: args.batch], labels[: args.batch]
        start = build(READINGS[sends], args)
        row: dict[str, Any] = {"dataset": dataset, "sends": sends, "pixels": pixels}
        row["start"] = directions(start, *few, args)
        row["accuracies"], best = {}, (-1.0, start)
        for lr in args.lrs:
            net = build(READINGS[sends], args)
            train(net, given, labels, lr, args)
            row["accuracies"][lr] = accuracy(net, seen, truth)
            best = max(best, (row["accuracies"][lr], net), key=lambda pair: pair[0])
        row["accuracy"] = best[0]
        row["end"] = directions(best[1], *few, args)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy of each case, and the cosines of its output layer."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True, layout="constrained")
    rows = [row for row in rows if row["dataset"] == rows[0]["dataset"]]
    names = [f"sends {row['sends']},\npixels {row['pixels']}" for row in rows]
    colours = ["C0" if row["sends"] == "-1 and +1" else "C1" for row in rows]
    axes[0].barh(names, [row["accuracy"] for row in rows], color=colours)
    axes[0].set(xlabel=f"accuracy on {rows[0]['dataset']}, percent", xlim=(0, 100))
    for axis, layer in zip(axes[1:], LAYERS, strict=True):
        for when, marker in (("start", "o"), ("end", "s")):
            own = [row[when][layer] for row in rows]
            axis.scatter(own, names, c=colours, marker=marker, zorder=3)
            axis.scatter([], [], c="0.3", marker=marker, label=f"NIT-S, {when} of training")
        if layer == "output":
            zero = [(n, r) for n, r in zip(names, rows, strict=True) if r["sends"] == "0 and 1"]
            for when in ("start", "end"):
                axis.scatter(
                    [r[when]["output, silence at 0"] for _, r in zero],
                    [n for n, _ in zero],
                    c="k",
                    marker="x",
                    zorder=3,
                    label="silence counted as 0" if when == "end" else None,
                )
        axis.axvline(0, color="0.5", lw=0.8)
        axis.set(xlabel=f"cosine to the gradient, {layer} layer", xlim=(-1, 1.05))
        axis.grid(axis="x", alpha=0.3)
    axes[2].legend(fontsize=8, loc="lower left")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--datasets", nargs="+", choices=NAMES, default=["mnist"])
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--download", action="store_true", help="download the full data if it is missing")
    add("--images", type=int, default=10_000, help="training images, and at most validation images")
    add("--epochs", type=int, default=5)
    add("--lrs", type=float, nargs="+", default=[5e-4, 5e-3])
    add("--batch-size", type=int, default=128)
    add("--replicas", type=int, default=16)
    add("--steps", type=int, default=8)
    add("--batch", type=int, default=256, help="images whose gradient is looked at")
    add("--many", type=int, default=64, help="replicas in each pass behind a cosine")
    add("--passes", type=int, default=8, help="passes behind each half of a cosine")
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    training.skip_denormals()
    keep_freed_memory()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = [row for dataset in args.datasets for row in measure(dataset, args)]
    results = {
        "command": " ".join(["python", *sys.argv]),
        "network": f"784-50-10, T={args.steps}",
        "settings": {
            key: getattr(args, key)
            for key in ("images", "epochs", "lrs", "batch_size", "replicas", "batch", "passes")
        },
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
        "rows": rows,
    }
    (args.output / "sign_rule.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(rows, args.output / "sign_rule.png")


if __name__ == "__main__":
    main()
