"""How far are snnTorch's surrogate gradients from the unbiased one, before and after training?

    python examples/audit_surrogates.py

A shallow and a deep network with noisy neurons (T = 4, sigma = 1, summed readout) are trained
through their own surrogate on the embedded MNIST subset, and audited on one batch before training
and after some hundred steps. Prints each audit; writes audit.json and audit.png to --output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
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

from nit_snn import swap_neurons
from nit_snn.datasets import load_subset
from nit_snn.inspect.audit import AuditReport, audit

NETWORKS = ((784, 50, 10), (784, 50, 50, 10))


class Net(nn.Module):
    """Hidden layers of spiking neurons; the currents of the output layer are summed over time.

    Args:
        sizes: Width of each layer, from the pixels to the classes.
        steps: T.
    """

    def __init__(self, sizes: tuple[int, ...], steps: int = 4) -> None:
        super().__init__()
        self.steps, self.hidden = steps, range(1, len(sizes) - 1)
        for i in self.hidden:
            self.add_module(f"fc{i}", nn.Linear(sizes[i - 1], sizes[i]))
            self.add_module(f"lif{i}", snn.Leaky(beta=0.5, reset_mechanism="zero"))
        self.readout = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (N, 784) -> summed currents (N, 10)."""
        membranes = {i: self.get_submodule(f"lif{i}").reset_mem() for i in self.hidden}
        outputs = []
        for _ in range(self.steps):
            spikes = x
            for i in self.hidden:
                current = self.get_submodule(f"fc{i}")(spikes)
                spikes, membranes[i] = self.get_submodule(f"lif{i}")(current, membranes[i])
            outputs.append(self.readout(spikes))
        return torch.stack(outputs).sum(0)


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """One number per row, (N,)."""
    return F.cross_entropy(outputs, labels, reduction="none")


def train(net: Net, images: Tensor, labels: Tensor, steps: int, size: int) -> None:
    """Some steps through the network's own surrogate, with noise."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in tqdm(range(steps), desc="training", leave=False, disable=None):
        rows = torch.randint(len(labels), (size,))
        optimizer.zero_grad()
        losses(net(images[rows]), labels[rows]).mean().backward()
        optimizer.step()


def audits(args: argparse.Namespace) -> list[tuple[str, int, AuditReport]]:
    """Each network at each stage of its training."""
    pixels, digits = load_subset("mnist")
    images, labels = torch.from_numpy(pixels).flatten(1) / 255, torch.from_numpy(digits).long()
    found = []
    for sizes in NETWORKS:
        torch.manual_seed(args.seed)
        net, done, name = Net(sizes), 0, "-".join(map(str, sizes))
        swap_neurons(net, sigma=1.0)
        for steps in args.steps:
            train(net, images[1000:], labels[1000:], steps - done, args.batch_size)
            done = steps
            report = audit(
                net,
                losses,
                images[: args.batch_size],
                labels[: args.batch_size],
                replicas=args.replicas,
                max_passes=args.max_passes,
                seed=args.seed,
            )
            print(f"\n{name} after {steps} steps of training\n\n{report}", flush=True)
            found.append((name, steps, report))
    return found


def write(found: list[tuple[str, int, AuditReport]], args: argparse.Namespace) -> None:
    """The numbers, and all it takes to get them again; the picture of the last audit."""
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "networks": "snnTorch Leaky, T=4, sigma=1, summed readout; trained with noise (STBP-N)",
        "batch_size": args.batch_size,
        "versions": {n: version(n) for n in ("nit-snn", "torch", "snntorch")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "audits": [
            {"network": name, "steps": steps, **report.to_dict()} for name, steps, report in found
        ],
    }
    (args.output / "audit.json").write_text(json.dumps(results, indent=1) + "\n")
    name, steps, report = found[-1]
    figure = report.plot()
    figure.suptitle(f"{name} after {steps} steps of training")
    figure.savefig(args.output / "audit.png", dpi=150)
    plt.close("all")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=[0, 300], help="of training, before each audit")
    add("--batch-size", type=int, default=64)
    add("--replicas", type=int, default=32, help="noisy copies of each sample")
    add("--max-passes", type=int, default=4, help="passes in each estimate, at most")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("docs/benchmarks"), help="where the results go")
    args = parser.parse_args()
    write(audits(args), args)


if __name__ == "__main__":
    main()
