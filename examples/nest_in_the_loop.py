"""A network in NEST learns four spike patterns, and torch never runs it.

    python examples/nest_in_the_loop.py            # needs: pip install "nit-snn[nest]"

The network is NEST's: two layers of `iaf_psc_delta` neurons, as many copies of them as there are
rows, in steps of 1 ms. Noise is known, for a current generator of each neuron puts it in. NEST
hands out the spikes, and `nit_snn.loop.Loop` makes the gradient by credit "feedback". Writes
results.json to --output.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import nest
import numpy as np
import torch
from torch.nn import functional as F
from training import installed, processor

from nit_snn.dynamics.lif import Dynamics, Lif
from nit_snn.loop import Layer, Loop, Observed

STEPS, TAU, SIGMA, SIZES = 20, 10.0, 0.25, (20, 30, 4)
DECAY = math.exp(-1 / TAU)
#: A capacitance of TAU: then a current of 1 moves a membrane by this in one step.
MOVED = 1 - DECAY
MEMBRANE = {
    "E_L": 0.0,
    "V_m": 0.0,
    "V_th": 1.0,
    "V_reset": 0.0,
    "tau_m": TAU,
    "C_m": TAU,
    "t_ref": 0.0,
}
#: NEST needs two steps to bring a current to its neuron, and some at the end for late spikes.
AHEAD, AFTER = 3, 3


class NestNetwork:
    """Layers of LIF neurons in NEST, as many copies of them as there are rows.

    A spike arrives one step after it was fired, and moves the membrane by its weight.

    Args:
        rows: N.
    """

    def __init__(self, rows: int) -> None:
        nest.ResetKernel()
        nest.resolution = 1.0
        self.rows = rows
        self.inputs = nest.Create("spike_generator", rows * SIZES[0])
        self.groups, self.noise, self.recorders, self.synapses = [], [], [], []
        before = self.inputs
        for n, m in pairwise(SIZES):
            group = nest.Create("iaf_psc_delta", rows * m, params=MEMBRANE)
            row, source, target = np.indices((rows, n, m)).reshape(3, -1)
            first, own = np.array(before.tolist()), np.array(group.tolist())
            nest.Connect(
                first[row * n + source],
                own[row * m + target],
                "one_to_one",
                {"weight": np.zeros(len(row)), "delay": np.ones(len(row))},
            )
            made = nest.GetConnections(before, group)
            ends = made.get(["source", "target"])  # in an order of NEST's own
            places = np.array(ends["target"]) - own[0], np.array(ends["source"]) - first[0]
            place = places[0] % m, places[1] % n
            self.synapses.append((made, place))
            noise = nest.Create("step_current_generator", rows * m)
            nest.Connect(noise, group, "one_to_one", {"delay": 1.0})
            recorder = nest.Create("spike_recorder")
            nest.Connect(group, recorder)
            self.groups.append(group)
            self.noise.append(noise)
            self.recorders.append(recorder)
            before = group

    def run(
        self, x: np.ndarray, weights: list[np.ndarray], noise: list[np.ndarray]
    ) -> list[np.ndarray]:
        """One pass of all rows.

        Args:
            x: Input spikes, (T, N, inputs).
            weights: (neurons, inputs) of each layer.
            noise: eps of each layer, (T, N, neurons).

        Returns:
            Spikes of each layer as events: step, row, index.
        """
        begin = nest.biological_time
        stamps = begin + AHEAD + np.arange(STEPS)
        trains = x.reshape(STEPS, -1).T
        self.inputs.set([{"spike_times": stamps[train > 0]} for train in trains])
        for (made, place), group, generators, recorder, w, eps in zip(
            self.synapses, self.groups, self.noise, self.recorders, weights, noise, strict=True
        ):
            made.set({"weight": w[place].astype(float).tolist()})
            group.set({"V_m": 0.0})
            recorder.set({"n_events": 0})
            times = np.append(stamps - 2, stamps[-1] - 1)  # and off again
            values = SIGMA / MOVED * eps.reshape(STEPS, -1).T
            generators.set(
                [
                    {"amplitude_times": times, "amplitude_values": np.append(own, 0.0)}
                    for own in values
                ]
            )
        nest.Simulate(float(AHEAD + STEPS + AFTER))
        return [
            self._events(group, recorder, begin + AHEAD)
            for group, recorder in zip(self.groups, self.recorders, strict=True)
        ]

    def _events(self, group: Any, recorder: Any, begin: float) -> np.ndarray:
        found = recorder.events
        step = np.rint(found["times"] - begin).astype(int)
        number = found["senders"] - group[0].tolist()[0]
        row, index = np.divmod(number, len(group) // self.rows)
        return np.stack([step, row, index], 1)[step < STEPS]


def arrived(events: np.ndarray) -> np.ndarray:
    """What synapses carry: each spike one step later, those after the end left out."""
    later = events + np.array([1, 0, 0])
    return later[later[:, 0] < STEPS]


def learn(args: argparse.Namespace) -> dict[str, Any]:
    """Trains NEST's network; accuracy in percent before it and after."""
    random = np.random.default_rng(args.seed)
    patterns = random.random((SIZES[-1], STEPS, SIZES[0])) < 0.1

    def batch() -> tuple[np.ndarray, torch.Tensor]:
        y = random.integers(SIZES[-1], size=args.batch_size)
        flipped = random.random((len(y), STEPS, SIZES[0])) < args.flips
        return (patterns[y] ^ flipped).transpose(1, 0, 2), torch.from_numpy(y)

    network = NestNetwork(args.batch_size)
    lif = Lif(Dynamics(reset="hard", or_equal=True), DECAY)
    layers = {
        f"layer{k + 1}": Layer(n, m, lif, sigma=SIGMA, bias=False)
        for k, (n, m) in enumerate(pairwise(SIZES))
    }
    loop = Loop(layers, credit="feedback", residual=0, seed=args.seed)
    weights = [
        torch.tensor(random.normal(0, 1.5 / n**0.5, (m, n)), dtype=torch.float32)
        for n, m in pairwise(SIZES)
    ]
    optimizer = torch.optim.Adam(weights, lr=args.rate)
    right = []
    for step in range(args.passes + args.last):
        x, y = batch()
        noise = loop.noise(STEPS, len(y))
        written = [w.numpy() for w in weights]
        spikes = network.run(x, written, list(noise.values()))
        counts = torch.zeros(len(y), SIZES[-1])
        places = tuple(torch.from_numpy(spikes[-1][:, 1:].T))
        counts.index_put_(places, torch.ones(len(spikes[-1])), accumulate=True)
        losses = F.cross_entropy(counts, y, reduction="none")
        right.append(float((counts.argmax(1) == y).float().mean()))
        carried = [arrived(events) for events in (np.argwhere(x), *spikes)]
        seen = {
            name: Observed(carried[k], spikes[k], weights=written[k])
            for k, name in enumerate(noise)
        }
        errors = counts.softmax(1) - F.one_hot(y, SIZES[-1])
        for w, gradient in zip(weights, loop.gradients(losses, seen, errors).values(), strict=True):
            w.grad = gradient.weights
        if step < args.passes:  # the last ones judge
            optimizer.step()
        if step % 20 == 19:
            print(f"pass {step + 1}: {100 * np.mean(right[-20:]):.1f}%", flush=True)
    return {
        "first": round(100 * float(np.mean(right[: args.last])), 2),
        "test": round(100 * float(np.mean(right[-args.last :])), 2),
        "of": args.last * args.batch_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=90)
    parser.add_argument("--last", type=int, default=10, help="more passes, which judge")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-2, help="learning rate")
    parser.add_argument("--flips", type=float, default=0.05, help="share of flipped spikes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/nest_in_the_loop"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    nest.verbosity = nest.VerbosityLevel.ERROR
    started = time.process_time()
    found = learn(args)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "options": {k: v for k, v in vars(args).items() if k != "output"},
        "chance": 100.0 / SIZES[-1],
        **found,
        "cpu_seconds": round(time.process_time() - started, 1),
        "versions": installed("nit-snn", "torch", "numpy", "nest-simulator"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {processor()}, 1 thread",
    }
    print(found)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
