"""The time of a learning step, against backpropagation through time, in one process.

    python benchmarks/step.py

784-50-10 over 8 steps with a batch of 256: forward, loss, and the gradient in `.grad`. A step of
NIT holds 16 replicas of each sample, one where it learns from the credit alone. What is compared is
the time of one replica. All methods take turns, round after round, so that whatever else the
machine does meets all of them alike; the numbers are medians and quartiles over the rounds, and
ratios of medians. Then NIT alone, with more and more time steps, and
replicas: how far each median is from the straight line through all of them. The single operations
that the fast path rests on are timed beside them, on one layer's membranes. All of it after
`nit_snn.keep_freed_memory()`, which the peers gain from as well; with --plain-allocator without it.
Writes step.json and step.png to --output, or step_plain_allocator.json and .png.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, backends, keep_freed_memory, swap_neurons
from nit_snn.dynamics.firing import bell_
from nit_snn.dynamics.lif import Dynamics, Lif, after_reset, noisy_step, spikes_of
from nit_snn.gradients.synapses.few_outputs import few_outputs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training

ESTIMATORS: dict[str, dict[str, Any]] = {
    "credit none": {"credit": "none"},
    "antithetic": {"credit": "none", "antithetic": True},
    "noise from a table": {"credit": "none", "noise_reuse": True},
    "noise drawn twice": {"credit": "none", "recompute": True},
    "credit time, conditional": {"credit": "time", "residual": 1, "conditional": True},
    "credit layers alone": {"credit": "layers", "residual": 0, "replicas": 1},
    "credit time alone": {"credit": "time", "residual": 0, "replicas": 1},
}


class SnnTorch(nn.Module):
    """Step by step, as snnTorch's tutorials do."""

    def __init__(self, sizes: list[int], steps: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])
        self.lif, self.steps = snn.Leaky(beta=0.5, reset_mechanism="zero"), steps

    def forward(self, x: Tensor) -> Tensor:
        membrane, outputs = self.lif.reset_mem(), []
        for _ in range(self.steps):
            spikes, membrane = self.lif(self.fc1(x), membrane)
            outputs.append(self.fc2(spikes))
        return torch.stack(outputs).sum(0)


class SpikingJelly(nn.Module):
    """All steps at once, its fastest mode."""

    def __init__(self, sizes: list[int], steps: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = layer.Linear(*sizes[:2]), layer.Linear(*sizes[1:])
        self.lif, self.steps = neuron.LIFNode(), steps
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.fc2(self.lif(self.fc1(x.expand(self.steps, *x.shape)))).sum(0)


FACTORS = (1, 2, 4, 8, 16, 32)  # quarters of the time steps, and of the replicas
FRAMEWORKS = {"snnTorch": SnnTorch, "SpikingJelly": SpikingJelly}


def bptt(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    def step() -> None:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()

    return step


def nit(net: nn.Module, learner: NITLearner, x: Tensor, y: Tensor) -> Callable[[], None]:
    def step() -> None:
        net.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        learner.backward(losses)

    return step


def methods(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Every method's learning step, by name."""
    x, y = torch.rand(args.batch_size, 784), torch.randint(10, (args.batch_size,))
    found = {}
    for framework, build in FRAMEWORKS.items():
        sizes = [784, args.hidden, 10]
        found[f"{framework}, BPTT"] = bptt(build(sizes, args.steps), x, y)
        for name, options in ESTIMATORS.items():
            net = swap_neurons(build(sizes, args.steps), sigma=0.5)
            learner = NITLearner(net, **{"replicas": args.replicas, "seed": args.seed, **options})
            found[f"{framework}, NIT, {name}"] = nit(net, learner, x, y)
    return found


def replicas_of(method: str, args: argparse.Namespace) -> int:
    """How many replicas a step of a method holds."""
    if method.endswith("BPTT"):
        return 1
    return int(ESTIMATORS[method.split(", NIT, ")[1]].get("replicas", args.replicas))


def growing(args: argparse.Namespace) -> dict[str, dict[int, Callable[[], None]]]:
    """Learning steps of NIT with more and more time steps, or replicas."""
    x, y = torch.rand(args.batch_size, 784), torch.randint(10, (args.batch_size,))
    found: dict[str, dict[int, Callable[[], None]]] = {}
    for framework, build in FRAMEWORKS.items():
        for what in ("steps", "replicas"):
            sizes = sorted({max(2, getattr(args, what) * factor // 4) for factor in FACTORS})
            for size in sizes:
                given = {"steps": args.steps, "replicas": args.replicas, what: size}
                net = swap_neurons(build([784, args.hidden, 10], given["steps"]), sigma=0.5)
                learner = NITLearner(net, replicas=given["replicas"], credit="none", seed=args.seed)
                found.setdefault(f"{framework}, {what}", {})[size] = nit(net, learner, x, y)
    return found


def straight_line(times: dict[int, float]) -> dict[str, float]:
    """Milliseconds at none and for one more, and how far off the worst point is, as a share.

    The line that minimises the squares of the relative errors.
    """
    sizes = torch.tensor([float(size) for size in times], dtype=torch.float64)
    found = torch.tensor(list(times.values()), dtype=torch.float64)
    columns = torch.stack([1 / found, sizes / found], 1)
    start, slope = torch.linalg.lstsq(columns, torch.ones_like(found)).solution.tolist()
    off = ((start + slope * sizes) / found - 1).abs().max()
    return {"milliseconds_at_none": start, "for_one_more": slope, "worst_point_off_by": float(off)}


def linearity(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians of `growing`, and the line through them."""
    rows = []
    for name, steps in growing(args).items():
        times = measure({str(size): step for size, step in steps.items()}, args.rounds)
        medians = {int(size): statistics.median(found) for size, found in times.items()}
        rows.append({"what": name, "milliseconds": medians, **straight_line(medians)})
    return rows


def measure(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each step in each round."""
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            found[name].append(1000 * (time.perf_counter() - started))
    return found


def operations(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What is done to the membranes of one step, each way, by name."""
    shape = (args.batch_size * args.replicas, args.hidden)
    membrane, numbers = torch.randn(shape), torch.empty(shape)
    noise = torch.empty(args.steps, *shape)
    fired, spikes = membrane > 1, (membrane > 1).float()
    current, eps, lif = (
        torch.randn(shape),
        noise[0].normal_(),
        Lif(Dynamics(reset="hard"), 0.5, 1.0),
    )

    few, far = torch.randn(10, args.hidden, requires_grad=True), 10 * torch.randn(shape)
    all_spikes = spikes.repeat(args.steps, 1)
    slope = torch.randn(len(all_spikes), 10)

    def back(outputs: Tensor) -> None:
        torch.autograd.grad(outputs, few, slope)

    def by_torch() -> Tensor:
        u = noisy_step(current, membrane, None, lif, 1.0, 0.5, eps)
        return after_reset(u, spikes_of(u, 1.0, or_equal=False, out=numbers), lif, 1.0)

    found = {
        "normal numbers of a pass": noise.normal_,
        "a step of a layer, as it is": by_torch,
        "spikes: compared into numbers": lambda: torch.gt(membrane, 1.0, out=numbers),
        "spikes: compared, then converted": lambda: (membrane > 1.0).float(),
        "reset: multiplied": lambda: membrane.addcmul_(membrane, spikes, value=-1),
        "reset: masked_fill": lambda: membrane.masked_fill_(fired, 0.0),
        "readout of a pass, forth and back: 10 outputs": lambda: back(F.linear(all_spikes, few)),
        "readout of a pass, forth and back: as 16": lambda: back(
            few_outputs(all_spikes, few, None)
        ),
        "density far away: as exp": lambda: torch.mul(far, far).mul_(-0.5).exp_(),
        "density far away: as a power of 2": lambda: bell_(torch.mul(far, far)),
    }
    try:
        by_compiler(current, membrane, eps)
    except torch._dynamo.exc.TorchDynamoException as error:
        print(f"torch.compile does not work here: {error}".splitlines()[0])
    else:
        found["a step of a layer, torch.compile"] = lambda: by_compiler(current, membrane, eps)
    return found


@torch.compile(dynamic=False)
def by_compiler(current: Tensor, state: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """A step of a layer as one loop: its spikes, and the membrane after the reset."""
    membrane = 0.5 * state + current + 0.5 * eps
    spikes = (membrane > 1.0).float()
    return spikes, membrane * (1 - spikes)


def rows_of(found: dict[str, list[float]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians, quartiles, and the time of one replica against the faster BPTT."""
    faster = min(statistics.median(t) for name, t in found.items() if name.endswith("BPTT"))
    rows = []
    for name, times in found.items():
        low, median, high = statistics.quantiles(times, n=4)
        replicas = replicas_of(name, args)
        rows.append(
            {
                "method": name,
                "replicas": replicas,
                "milliseconds": median,
                "quartiles": [low, high],
                "bptt_over_one_replica": faster / (median / replicas),
            }
        )
    return rows


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    names = [row["method"] for row in rows]
    values = [row["milliseconds"] / row["replicas"] for row in rows]
    colours = ["0.4" if name.endswith("BPTT") else "C0" for name in names]
    axis.barh(names, values, color=colours)
    for i, row in enumerate(rows):
        low, high = (q / row["replicas"] for q in row["quartiles"])
        axis.plot([low, high], [i, i], color="k", lw=1.5)
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds of a step; of NIT, for one replica")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--hidden", type=int, default=50)
    add("--steps", type=int, default=8)
    add("--batch-size", type=int, default=256)
    add("--replicas", type=int, default=16)
    add("--rounds", type=int, default=40)
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--plain-allocator", action="store_true", help="without nit_snn.keep_freed_memory()")
    add("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    kept = not args.plain_allocator and keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rows = rows_of(measure(methods(args), args.rounds), args)
    lines = linearity(args)
    single = {n: statistics.median(t) for n, t in measure(operations(args), args.rounds).items()}
    args.output.mkdir(parents=True, exist_ok=True)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "network": f"784-{args.hidden}-10, T={args.steps}, batch {args.batch_size}",
        "rounds": args.rounds,
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
        "backend": str(backends()["cpu"]),
        "keeps_freed_memory": kept,
        "rows": rows,
        "linearity": lines,
        "milliseconds_of_operations": single,
    }
    name = "step_plain_allocator" if args.plain_allocator else "step"
    (args.output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(rows, args.output / f"{name}.png")
    print(f"{'':38}{'ms':>8}{'of one replica':>16}{'BPTT / it':>11}")
    for row in rows:
        one = row["milliseconds"] / row["replicas"]
        print(
            f"{row['method']:38}{row['milliseconds']:8.2f}{one:16.3f}"
            f"{row['bptt_over_one_replica']:11.1f}"
        )
    for line in lines:
        print(f"{line['what']:38}linear within {line['worst_point_off_by']:.1%}")
    for name, milliseconds in single.items():
        print(f"{name:38}{milliseconds:8.3f}")


if __name__ == "__main__":
    main()
