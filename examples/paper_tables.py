"""Tables 2 and 3 of the paper, by its protocol and by one that adapts, side by side.

    python examples/paper_tables.py --dataset mnist --data-dir data

Trains 784-50-10 by STBP, STBP-N, NIT, NIT-S and NIT-S+, and attacks each with 1,000 test images.
Both layers are spiking neurons, and the logit of a class is the rate of its output neuron over 8
steps; the mean of the training images is subtracted inside. In the networks of NIT-S and NIT-S+
section 3.3's "takes values of +-1" holds for the forward pass as for the rule: a hidden neuron that
is silent sends -1, and pixels go from -1 to 1.
The paper's protocol is `nit_snn.robustness.paper`, the other one `nit_snn.robustness.adaptive`,
in which images are decided by the mean of 10 draws of the noise, and STBP's network is the twin
whose attacked images are tried on the others. Both are checked (`nit_snn.robustness.check`): a
network that fails is marked as masked. Writes <dataset>.json, the tables as <dataset>.md and the
curves of accuracy against eps as <dataset>.png to --output. --resume takes finished networks and
verdicts from --work.
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
import torch
import torch.nn.functional as F
import training
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, NITSPlus, keep_freed_memory, swap_neurons
from nit_snn.datasets import NAMES, Splits, load, split
from nit_snn.errors import CheckpointError
from nit_snn.inspect.audit import rectangle
from nit_snn.inspect.plotting import accuracy_against_eps
from nit_snn.robustness import Defender, Verdict, adaptive, check, compare, paper
from nit_snn.training.batches import Batches
from nit_snn.training.checkpoint_file import write_whole
from nit_snn.training.checkpoints import Checkpoints

METHODS = ("STBP", "STBP-N", "NIT", "NIT-S", "NIT-S+")
PAPER: dict[str, dict[str, list[float]]] = {  # clean, then ATTACKS
    "mnist": {
        "STBP": [91.8, 42.6, 40.2, 31.5, 36.0, 82.0, 46.8, 78.2],
        "STBP-N": [76.3, 57.8, 56.8, 52.3, 55.9, 68.6, 61.8, 64.6],
        "NIT": [92.3, 81.4, 84.0, 82.7, 83.8, 85.2, 83.6, 84.8],
        "NIT-S": [88.4, 82.0, 84.8, 83.6, 84.1, 85.4, 85.0, 85.2],
    },
    "fashion-mnist": {
        "STBP": [72.3, 38.0, 28.2, 23.1, 35.2, 73.0, 36.8, 59.6],
        "STBP-N": [34.5, 5.0, 4.0, 4.0, 4.0, 15.0, 7.0, 5.0],
        "NIT": [74.6, 73.0, 72.4, 71.8, 71.6, 73.0, 73.4, 73.2],
        "NIT-S": [58.7, 54.4, 53.6, 53.2, 54.1, 54.0, 54.4, 54.4],
        "NIT-S+": [70.6, 72.1, 70.8, 70.8, 69.5, 71.9, 68.3, 70.5],
    },
}
ATTACKS = ("FGSM", "BIM", "PGD", "MIM", "NAttack", "DIM", "TIM")
SHARE_OF_SIGNS = 0.7  # of NIT-S+'s epochs, as in the paper


class Net(nn.Module):
    """784-50-10 of LIF neurons over T steps of the same image; logits are rates of spikes.

    Weights start three times as large as torch has them: else hardly a membrane comes into the
    rectangle in which STBP's surrogate lets anything through.

    With `signed` a layer is given -1 where it would be given 0, and +1 for 1: 2 x - 1. That is the
    same set of functions (weights W and bias b do what 2 W and b - sum_j W_j would do without),
    but the sign rule then has the presynaptic factor of the gradient itself, on pixels nearly so.
    """

    mean: Tensor

    def __init__(self, steps: int, hidden: int = 50, signed: bool = False) -> None:
        super().__init__()
        self.steps, self.signed = steps, signed
        self.register_buffer("mean", torch.zeros(784))
        self.fc1, self.fc2 = layer.Linear(784, hidden), layer.Linear(hidden, 10)
        own = {"tau": 2.0, "decay_input": False, "surrogate_function": rectangle(1.0)}
        self.lif1, self.lif2 = neuron.LIFNode(**own), neuron.LIFNode(**own)
        functional.set_step_mode(self, "m")
        with torch.no_grad():
            for synapse in (self.fc1, self.fc2):
                synapse.weight *= 3
            if signed:  # from -1 to 1 is twice as far as from 0 to 1
                self.fc2.weight /= 2

    def encode(self, images: Tensor) -> Tensor:
        """What goes in, (N, 784), from images (N, 1, 28, 28)."""
        x = images.flatten(1)
        return 2 * x - 1 if self.signed else x - self.mean

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        currents = self.fc1(x.expand(self.steps, *x.shape))
        spikes = self.lif1(currents)
        if self.signed:
            spikes = 2 * spikes - 1
        return self.lif2(self.fc2(spikes)).mean(0)


def build(method: str, args: argparse.Namespace) -> Net:
    net = Net(args.steps, signed=method.startswith("NIT-S"))
    if method != "STBP":
        swap_neurons(net, {"lif1": args.sigma, "lif2": args.output_sigma})
    return net


def train(method: str, splits: Splits, args: argparse.Namespace) -> Net:
    """Trains a network, or what is missing of it with --resume."""
    names = [k for k in TRAINING if k != "sign_lr" or method.startswith("NIT-S")]
    settings = {name: getattr(args, name) for name in names}
    folder = args.work / f"{args.dataset}_{method}"
    checkpoints = Checkpoints(folder, settings=settings)
    torch.manual_seed(args.seed)
    net = build(method, args)
    images, labels = splits.train.tensors
    net.mean.copy_(images.flatten(1).mean(0))
    images = net.encode(images)
    learner: NITLearner | None = None
    plus: NITSPlus | None = None
    if method.startswith("NIT"):
        learner = NITLearner(
            net,
            credit="none",  # the paper's NIT: nothing runs backward through a spike
            replicas=args.replicas * (1 if method == "NIT" else 4),
            rule="nit-s" if method == "NIT-S" else "nit",
            noise_reuse=True,
            seed=args.seed,
        )
        if method == "NIT-S+":
            plus = NITSPlus(learner, after=max(1, round(SHARE_OF_SIGNS * args.epochs)))
    optimizer = torch.optim.Adam(net.parameters())
    batches = Batches(len(labels), args.batch_size, drop_last=True)
    parts = {
        "net": net,
        "optimizer": optimizer,
        "learner": learner,
        "plus": plus,
        "batches": batches,
    }
    if args.resume:
        try:
            saved = checkpoints.newest()
            if saved is not None:
                saved.restore(**parts)
        except CheckpointError as error:
            raise SystemExit(str(error)) from error
    total = args.epochs * len(batches)
    done = batches.epoch * len(batches) + batches.done
    with tqdm(total=total, initial=done, desc=method, leave=False) as bar:
        while batches.epoch < args.epochs:
            for rows in batches:
                done = (batches.epoch * len(batches) + batches.done - 1) / total
                own = args.stbp_lr if learner is None else args.lr
                if learner is not None and learner.rule == "nit-s":
                    own = args.sign_lr
                optimizer.param_groups[0]["lr"] = own * (1 - done)
                optimizer.zero_grad()
                x, y = images[rows], labels[rows]
                if learner is None:
                    F.cross_entropy(net(x), y).backward()
                else:
                    with learner.record():
                        xr, yr = learner.expand(x, y)
                        losses = F.cross_entropy(net(xr), yr, reduction="none")
                    learner.backward(losses)
                optimizer.step()
                bar.update()
                if checkpoints.due(args.save_seconds):
                    checkpoints.save(**parts)
            if plus is not None:
                plus.step()
            checkpoints.save(**parts)
    if learner is not None:
        learner.close()
    return net


TRAINING = (
    "dataset",
    "epochs",
    "batch_size",
    "lr",
    "stbp_lr",
    "sign_lr",
    "replicas",
    "steps",
    "sigma",
    "output_sigma",
    "seed",
)


def judged(
    method: str, net: Net, twin: nn.Module | None, splits: Splits, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Its rows, one for each protocol."""
    torch.manual_seed(args.seed)
    images, labels = (t[: args.images] for t in splits.test.tensors)
    few = slice(0, args.check_images)
    defender = Defender(net, draws=1 if method == "STBP" else args.draws, encode=net.encode)
    path = args.work / f"{args.dataset}_{method}_verdicts.json"
    if args.resume and path.exists():
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        return rows
    found: list[Verdict] = [
        paper(defender, images, labels, progress=True),
        adaptive(
            defender,
            images,
            labels,
            draws=args.draws,
            queries=args.queries,
            apgd_steps=args.apgd_steps,
            twin=twin,
            progress=True,
        ),
    ]
    for verdict in found:
        check(verdict, defender, images[few], labels[few], progress=True)
    compare(*found)
    rows = [verdict.row(method) for verdict in found]
    write_whole(path, json.dumps(rows).encode())
    return rows


def table(rows: list[dict[str, Any]], dataset: str) -> str:
    """Ours beside the paper's numbers, and what an adaptive attacker leaves of them."""
    lines = [
        f"Accuracy in percent, {dataset}, eps = 0.1; in brackets the paper's numbers. "
        "Left by the paper's protocol, right the worst case of the adaptive one. *By chance*: the "
        "worst case of as many judgements of the images as they are: luck alone.",
        "",
        "| method | clean | " + " | ".join(ATTACKS) + " | worst of these | by chance | "
        "**adaptive: clean** | **EOT-PGD** | **worst case** | by chance | masked |",
        "|" + "---|" * (len(ATTACKS) + 9),
    ]
    for method in METHODS:
        own = {row["protocol"]: row for row in rows if row["method"] == method}
        if not own:
            continue
        known = PAPER[dataset].get(method, [None] * 8)
        values = [own["paper"]["clean"], *(own["paper"]["attacks"][a] for a in ATTACKS)]
        cells = [
            f"{value:.1f}" + ("" if number is None else f" ({number:.1f})")
            for value, number in zip(values, known, strict=True)
        ]
        strict = own["adaptive"]
        best = min(v for a, v in strict["attacks"].items() if a.startswith("EOT"))
        masked = "; ".join(
            f"{name}: {', '.join(row['masked'])}" for name, row in own.items() if row["masked"]
        )
        cells += [f"{own['paper'][key]:.1f}" for key in ("worst", "worst_by_chance")]
        cells += [f"{strict['clean']:.1f}", f"{best:.1f}"]
        cells += [f"{strict[key]:.1f}" for key in ("worst", "worst_by_chance")]
        cells.append(masked or "no")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]], dataset: str, path: Path) -> None:
    """Accuracy against eps by the attack of either protocol."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, protocol in zip(axes, ("paper", "adaptive"), strict=True):
        own = [row for row in rows if row["protocol"] == protocol]
        names = [row["method"] + (", masked" if row["masked"] else "") for row in own]
        curves = [row["checks"]["falls to zero"]["curve"] for row in own]
        accuracy_against_eps(dict(zip(names, curves, strict=True)), ax=axis)
        for line, row in zip(axis.lines, own, strict=True):
            line.set(linestyle="--" if row["masked"] else "-", clip_on=True)
        name = "PGD, rectangle" if protocol == "paper" else "EOT-PGD, best gradient"
        axis.set(title=f"{protocol} protocol: {name}", xlim=(0, 0.5), ylabel="")
        axis.axvline(0.1, color="0.7", lw=0.8)
        axis.legend(fontsize=8)
    axes[0].set(ylabel=f"accuracy on {dataset}, percent", ylim=(0, 100))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=NAMES, default="mnist")
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--download", action="store_true", help="download the full data if it is missing")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=1e-2, help="of NIT")
    add("--stbp-lr", type=float, default=1e-2, help="of STBP and STBP-N")
    add("--sign-lr", type=float, default=1e-2, help="of NIT-S")
    add("--replicas", type=int, default=16, help="of NIT; NIT-S takes four times as many")
    add("--steps", type=int, default=8, help="time steps T")
    add("--sigma", type=float, default=1.0, help="noise of the hidden neurons")
    add("--output-sigma", type=float, default=1.0, help="noise of the output neurons")
    add("--images", type=int, default=1000, help="test images that are attacked")
    add("--check-images", type=int, default=150, help="of them, for the sanity checks")
    add("--draws", type=int, default=10, help="adaptive protocol: of gradients and of decisions")
    add("--queries", type=int, default=5000, help="of Square")
    add("--apgd-steps", type=int, default=100)
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--resume", action="store_true", help="take what is there in --work, and go on from there")
    add("--save-seconds", type=float, default=60, help="save at least so often")
    add("--work", type=Path, default=Path("runs/paper_tables"), help="networks and verdicts")
    add("--output", type=Path, default=Path("docs/results"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    training.skip_denormals()
    keep_freed_memory()
    for folder in (args.work, args.output):
        folder.mkdir(parents=True, exist_ok=True)
    splits = split(*load(args.dataset, args.data_dir, args.download), seed=args.seed)
    rows: list[dict[str, Any]] = []
    twin: nn.Module | None = None
    for method in args.methods:
        net = train(method, splits, args)
        rows += judged(method, net, twin, splits, args)
        if method == "STBP":
            twin = Defender(net, encode=net.encode).classifier()
        for row in rows[-2:]:
            print(
                f"{method:7} {row['protocol']:9} clean {row['clean']:5.1f}  worst "
                f"{row['worst']:5.1f}  masked: {', '.join(row['masked']) or 'no'}",
                flush=True,
            )
    results = {
        "dataset": args.dataset,
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "images": len(splits.train) + len(splits.validation) + len(splits.test),
        "settings": {k: v for k, v in vars(args).items() if k in TRAINING},
        "versions": training.installed(
            "nit-snn", "torch", "snntorch", "spikingjelly", "torchattacks"
        ),
        "machine": f"{training.processor()}, {args.threads} threads",
        "paper": PAPER[args.dataset],
        "rows": rows,
    }
    (args.output / f"{args.dataset}.json").write_text(json.dumps(results, indent=1) + "\n")
    shown = table(rows, args.dataset)
    (args.output / f"{args.dataset}.md").write_text(shown)
    picture(rows, args.dataset, args.output / f"{args.dataset}.png")
    print(shown)


if __name__ == "__main__":
    main()
