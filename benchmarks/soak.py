"""Whether memory stays flat while a process learns for an hour.

    python benchmarks/soak.py --minutes 60

Round after round it builds a network in one of the frameworks, attaches a learner with one of many
sets of options, trains it for some steps on the embedded MNIST subset, saves and loads what a
checkpoint holds, and takes everything down again. (snnTorch itself keeps every neuron that was ever
made in a list of its class: that is emptied.) Every --every steps it writes down the
process's resident memory (Linux), how much of it the C library has handed out (glibc 2.33 or
newer), and the number of live tensors. Whether memory is flat is told by its rise from the second
quarter of the steps to the last. Writes soak.json and soak.png to --output.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import itertools
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

from nit_snn import NITLearner, keep_freed_memory, swap_neurons
from nit_snn.datasets import load, split

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training

OPTIONS: list[dict[str, Any]] = [
    {},
    {"replicas": 4},
    {"replicas": 8, "credit": "none"},
    {"replicas": 8, "credit": "none", "noise_reuse": True, "antithetic": True},
    {"replicas": 4, "noise_reuse": True, "conditional": True, "credit": "time", "residual": 1},
    {"replicas": 8, "credit": "none", "learn_sigma": True, "recompute": True},
    {"replicas": 8, "rule": "nit-s", "credit": "readout"},
]


class SnnTorch(nn.Module):
    """Two noisy layers, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 50), nn.Linear(50, 10)
        self.lif1, self.lif2 = (snn.Leaky(beta=0.5, reset_mechanism="zero") for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second, spikes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(8):
            hidden, first = self.lif1(self.fc1(x), first)
            out, second = self.lif2(self.fc2(hidden), second)
            spikes.append(out)
        return torch.stack(spikes).mean(0)


class SpikingJelly(nn.Module):
    """A convolution and two noisy layers, all steps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = layer.Conv2d(1, 4, 5, stride=4), layer.Linear(144, 10)
        self.lif1, self.lif2 = (neuron.LIFNode(decay_input=False) for _ in range(2))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        images = x.view(-1, 1, 28, 28)
        spikes = self.lif1(self.conv(images.expand(8, *images.shape)))
        return self.lif2(self.fc(spikes.flatten(2))).mean(0)


NETWORKS: tuple[Callable[[], nn.Module], ...] = (SnnTorch, SpikingJelly)


def train_once(
    make: Callable[[], nn.Module], options: dict[str, Any], x: Tensor, y: Tensor, steps: int
) -> int:
    """A network's whole life; returns the steps made."""
    net = swap_neurons(make(), sigma=0.5)
    learner = NITLearner(net, **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    for _ in range(steps):
        rows = torch.randint(len(y), (64,))
        optimizer.zero_grad()
        with learner.record():
            images, labels = learner.expand(x[rows], y[rows])
            losses = F.cross_entropy(net(images), labels, reduction="none")
        learner.backward(losses)
        optimizer.step()
    saved = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), learner.state_dict()], saved)
    saved.seek(0)
    learner.load_state_dict(torch.load(saved, weights_only=True)[2])
    learner.close()
    snn.SpikingNeuron.instances.clear()
    return steps


def resident() -> float:
    """Resident memory of this process in MiB, where the system tells it as Linux does."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), Tensor) for found in gc.get_objects())


class Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`, in bytes."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


def allocated() -> float | None:
    """MiB that the C library has handed out and not got back; None where it does not tell."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    ask.restype = Mallinfo
    found = ask()
    return (found.uordblks + found.hblkhd) / 2**20


def point(seconds: float, steps: int) -> dict[str, float]:
    """What there is to see between two networks' lives."""
    live = tensors()  # first: garbage goes with it
    found = {"seconds": seconds, "steps": steps, "mib": resident(), "tensors": live}
    handed_out = allocated()
    return found if handed_out is None else {**found, "allocated": handed_out}


def soak(minutes: float, every: int, steps: int, seed: int) -> list[dict[str, float]]:
    """Seconds, steps so far, resident and allocated MiB, live tensors, after each `every` steps.

    There are four points at least, one in each quarter.
    """
    torch.manual_seed(seed)
    images, labels = split(*load("mnist", ""), seed=seed).train.tensors
    x = images.flatten(1)
    started, made, points = time.monotonic(), 0, []
    ways = itertools.cycle(itertools.product(OPTIONS, NETWORKS))
    with tqdm(total=round(60 * minutes), unit="s", desc="soak") as bar:
        while len(points) < 4 or time.monotonic() - started < 60 * minutes:
            options, make = next(ways)
            made += train_once(make, options, x, labels, steps)
            if not points or made >= points[-1]["steps"] + every:
                points.append(point(time.monotonic() - started, made))
            bar.update(round(time.monotonic() - started) - bar.n)
    return points


def rise(points: list[dict[str, float]], key: str) -> float:
    """Median of the last quarter less that of the second: the first warms up."""
    quarter = max(1, len(points) // 4)
    second, last = points[quarter : 2 * quarter], points[-quarter:]
    return statistics.median(p[key] for p in last) - statistics.median(p[key] for p in second)


def picture(points: list[dict[str, float]], path: Path) -> None:
    """Memory and live tensors against time."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True, layout="constrained")
    minutes = [p["seconds"] / 60 for p in points]
    above.plot(minutes, [p["mib"] for p in points], label="resident")
    if "allocated" in points[0]:
        above.plot(minutes, [p["allocated"] for p in points], "C2", label="allocated")
    above.legend(loc="center right")
    above.set(ylabel="memory, MiB", ylim=(0, None))
    below.plot(minutes, [p["tensors"] for p in points], color="C1")
    below.set(ylabel="live tensors", ylim=(0, None), xlabel="minutes")
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=60)
    add("--every", type=int, default=400, help="steps between two points")
    add("--steps", type=int, default=20, help="learning steps of each network")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    points = soak(args.minutes, args.every, args.steps, args.seed)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
        "minutes": args.minutes,
        "steps": points[-1]["steps"],
        "networks": points[-1]["steps"] / args.steps,
        "rise": {key: rise(points, key) for key in points[0] if key not in ("seconds", "steps")},
        "points": points,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "soak.json").write_text(json.dumps(results) + "\n")
    picture(points, args.output / "soak.png")
    print(
        f"{results['steps']} steps in {results['networks']:.0f} networks; from the second quarter "
        f"to the last {results['rise']['mib']:+.1f} MiB resident, "
        f"{results['rise']['tensors']:+g} tensors"
    )


if __name__ == "__main__":
    main()
