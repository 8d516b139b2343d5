"""What a learning step takes in memory as the sequence grows, against training by backpropagation.

    python benchmarks/memory.py

256-512-512-10, all of it spiking, on 256 rows: for NIT 16 samples in 16 replicas. Each method at
each length runs in a process of its own: a step to warm up, then one whose peak is measured, then
one more whose tensors are counted. `resident` is how far the process's resident memory rises above
what it was before the step (Linux counts that); Python's objects and the allocator's gaps are in
it, too. `tensors` is the peak of the bytes of the tensors that the step makes, the same on every
machine, without what an operator takes and gives back by itself. Writes memory.json and memory.png
to --output.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, neuron
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, swap_neurons

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training
from peak_memory import live_peak, resident_peak

SIZES = (256, 512, 512, 10)


class SnnTorch(nn.Module):
    """Step by step, as snnTorch's tutorials do; the outputs' spikes are counted."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.neurons = nn.ModuleList(
            snn.Leaky(beta=0.5, reset_mechanism="zero") for _ in self.synapses
        )

    def forward(self, x: Tensor, steps: int) -> Tensor:
        membranes = [neuron.reset_mem() for neuron in self.neurons]
        counts: Any = 0
        for _ in range(steps):
            spikes = x
            for i, (synapse, lif) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                spikes, membranes[i] = lif(synapse(spikes), membranes[i])
            counts = counts + spikes
        return counts


class SpikingJelly(nn.Module):
    """All steps at once, layer by layer."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(layer.Linear(n, m), neuron.LIFNode()) for n, m in pairwise(sizes)
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor, steps: int) -> Tensor:
        functional.reset_net(self)
        spikes = x.expand(steps, *x.shape)
        for block in self.blocks:
            spikes = block(spikes)
        return spikes.sum(0)


Step = Callable[[int], None]


def bptt(framework: type, args: argparse.Namespace, optimised: bool = False) -> Step:
    """Backpropagation through time; `optimised` by SpikingJelly's memopt, as far as a CPU goes."""
    net = framework(SIZES)
    x, y = torch.rand(args.rows, SIZES[0]), torch.randint(SIZES[-1], (args.rows,))
    if optimised:
        net = memopt.optimize_memory(
            net, nn.Sequential, lambda net: net(x, 8), level=1, checkpoint_budget="memory"
        )
    return lambda steps: F.cross_entropy(net(x, steps), y).backward()


def nit(framework: type, args: argparse.Namespace, **options: Any) -> Step:
    """The likelihood ratio alone with `credit="none"`; without options the default."""
    net = swap_neurons(framework(SIZES), sigma=0.5)
    if options.get("credit") == "none":
        options["replicas"] = args.replicas
    learner = NITLearner(net, seed=args.seed, **options)
    samples = args.rows // learner.replicas
    x, y = torch.rand(samples, SIZES[0]), torch.randint(SIZES[-1], (samples,))

    def step(steps: int) -> None:
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(net(xr, steps), yr, reduction="none")
        learner.backward(losses)

    return step


METHODS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "snnTorch, BPTT": lambda args: bptt(SnnTorch, args),
    "SpikingJelly, BPTT": lambda args: bptt(SpikingJelly, args),
    "SpikingJelly, BPTT, memopt": lambda args: bptt(SpikingJelly, args, optimised=True),
    "snnTorch, NIT": lambda args: nit(SnnTorch, args, credit="none", recompute=False),
    "snnTorch, NIT, recompute": lambda args: nit(SnnTorch, args, credit="none", recompute=True),
    "SpikingJelly, NIT, recompute": lambda args: nit(
        SpikingJelly, args, credit="none", recompute=True
    ),
    "snnTorch, default": lambda args: nit(SnnTorch, args),
    "snnTorch, forward only": lambda args: nit(SnnTorch, args, forward_only=True),
    "SpikingJelly, default": lambda args: nit(SpikingJelly, args),
}


def measure(method: str, steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the results, in this process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    step = METHODS[method](args)
    step(8)
    resident = resident_peak(lambda: step(steps))
    return {
        "method": method,
        "steps": steps,
        "resident": resident,
        "tensors": live_peak(lambda: step(steps)),
    }


def in_a_process_of_its_own(method: str, steps: int) -> dict[str, Any]:
    """The same, in a process without a past."""
    command = [sys.executable, *sys.argv, "--only", method, "--lengths", str(steps)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return row


def growth(rows: list[dict[str, Any]], what: str) -> dict[str, float]:
    """Bits that each presynaptic spike takes from the shortest to the longest sequence."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and row[what] is not None]
        if len(own) > 1:
            more = own[-1][what] - own[0][what]
            spikes = (own[-1]["steps"] - own[0]["steps"]) * sum(SIZES[1:-1])
            found[method] = 8 * more / spikes
    return found


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        values = [(row["resident"] or row["tensors"]) / 2**20 for row in own]
        style = {"ls": "--", "color": f"{0.2 + 0.2 * i:.1f}"} if "BPTT" in method else {}
        axis.plot([row["steps"] for row in own], values, marker="o", label=method, **style)
    axis.set(xscale="log", yscale="log", xlabel="time steps T", ylabel="extra memory, MiB")
    lengths = sorted({row["steps"] for row in rows})
    axis.set_xticks(lengths, [str(n) for n in lengths])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[50, 100, 200, 400, 800])
    add("--rows", type=int, default=256)
    add("--replicas", type=int, default=16)
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--only", choices=METHODS, help="measure one method at one length in this process")
    add("--output", type=Path, default=Path("docs/benchmarks"))
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.only:
        print(json.dumps(measure(args.only, args.lengths[0], args)))
        return
    pairs = [(method, steps) for method in METHODS for steps in args.lengths]
    rows = [in_a_process_of_its_own(*pair) for pair in tqdm(pairs, desc="measuring", leave=False)]
    for row in rows:
        row["resident_per_row"] = row["resident"] and row["resident"] / args.rows
    results = {
        "command": " ".join(["python", *sys.argv]),
        "network": f"{'-'.join(map(str, SIZES))}, {args.rows} rows",
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
        "rows": rows,
        "bits_for_a_presynaptic_spike": {
            what: {name: bits / args.rows for name, bits in growth(rows, what).items()}
            for what in ("resident", "tensors")
        },
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "memory.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(rows, args.output / "memory.png")
    print(f"{'MiB, resident':30}" + "".join(f"{f'T={n}':>10}" for n in args.lengths))
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        values = [(row["resident"] or row["tensors"]) / 2**20 for row in own]
        print(f"{method:30}" + "".join(f"{value:10.1f}" for value in values))


if __name__ == "__main__":
    main()
