"""What `nit_snn.calibrate` gains: accuracy after few optimizer steps, with and without it.

    python benchmarks/calibration.py

Networks with torch's usual weights, trained by `NITLearner(net)` with no option set, for the same
steps on the same images; judged by 1,000 test images. Every run is written to --output at once, and
is not repeated when it is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import snntorch as snn
import torch
from networks_users_bring import Deep, Task, Tutorial6
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, calibrate, swap_neurons

SAMPLES, BATCH = 128, 64


class Deeper(Deep):
    """784-100-100-100-100-100-10, otherwise as `Deep`."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        sizes = (784, 100, 100, 100, 100)
        self.layers = nn.ModuleList(nn.Linear(i, 100) for i in sizes)
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.5) for _ in sizes)
        self.out = nn.Linear(100, 10)


class JellyDeep(nn.Module):
    """784-100-100-100-10 of SpikingJelly's LIFNode, T = 8, a linear readout."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [
            part
            for inputs in (784, 100, 100)
            for part in (layer.Linear(inputs, 100), neuron.LIFNode())
        ]
        self.body = nn.Sequential(layer.Flatten(), *hidden, layer.Linear(100, 10))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.body(x.expand(8, *x.shape)).sum(0)


def task(make: Callable[[], nn.Module]) -> Task:
    """What a network is trained on."""
    return Task(make, "mnist", 8000, 1, BATCH, rates=(1e-3, 3e-3))


TASKS = {
    "784-100-100-100-100-100-10": task(Deeper),
    "tutorial 6, 8 and 16 channels": task(lambda: Tutorial6((8, 16))),
    "SpikingJelly's LIFNode, 784-100-100-100-10": task(JellyDeep),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(TASKS)}; all if none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/calibration.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = json.loads(args.output.read_text()) if args.output.exists() else {"rows": []}
    done = {_key(row) for row in results["rows"]}
    runs = [
        {"network": name, "calibrated": on, "rate": rate, "seed": seed, "steps": args.steps}
        for name in args.networks or TASKS
        for seed in args.seeds
        for on in (False, True)
        for rate in TASKS[name].rates
    ]
    for run in tqdm(runs, "runs"):
        if _key(run) in done:
            continue
        results["rows"].append(
            {**run, **train(TASKS[run["network"]], run), **networks._where(args)}
        )
        results["command"] = " ".join(["python", *sys.argv])
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results["rows"]))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("network", "calibrated", "rate", "seed", "steps"))


def train(task: Task, run: dict[str, Any]) -> dict[str, Any]:
    """Trains one network for some steps; accuracy in percent, and what calibration did."""
    (x, y), _, test = networks.parts(task, None)
    torch.manual_seed(run["seed"])
    net = swap_neurons(task.make())
    started = time.process_time()
    layers = calibrate(net, x[:SAMPLES]) if run["calibrated"] else []
    spent = time.process_time() - started
    learner = NITLearner(net, seed=run["seed"])
    optimizer = torch.optim.Adam(net.parameters(), lr=run["rate"])
    order = torch.Generator().manual_seed(run["seed"])
    for _ in range(run["steps"]):
        rows = torch.randint(len(y), (BATCH,), generator=order)
        networks.step(task, net, learner, optimizer, x[rows], y[rows])
    return {
        "test": networks.accuracy(net, *test),
        "layers": [layer._asdict() for layer in layers],
        "calibration_cpu_seconds": round(spent, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean test accuracy over seeds, as Markdown."""
    lines = ["| network | learning rate | as initialised | calibrated |", "|---" * 4 + "|"]
    for name, rate in dict.fromkeys((row["network"], row["rate"]) for row in rows):
        cells = []
        for on in (False, True):
            own = [
                row["test"]
                for row in rows
                if (row["network"], row["rate"], row["calibrated"]) == (name, rate, on)
            ]
            cells.append(f"{sum(own) / len(own):.1f}" if own else "-")
        lines.append(f"| {name} | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
