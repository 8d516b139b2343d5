"""A chip whose neurons deviate, unknown to the learner: weights copied, or trained in the loop.

    python examples/mismatched_chip.py

The chip is simulated in NumPy: two layers of LIF neurons with weights of 4 bits. Time constants,
thresholds and the strength of each neuron's synapses deviate by 20% (standard deviation), and
nobody knows by how much. Four ways to classify the embedded spoken digits:

    software    a network in software, without deviation and with weights of full precision
    copied      its weights, rounded and written to the chip
    rounded     trained on in software with rounded weights, then copied
    loop        trained on in the loop: the chip runs, and hands out its spikes

"software", "rounded" and "loop" start from the same weights and see as many recordings. The learner
knows the chip's noise and its spikes, and how its neurons were meant to be. Its credit is
"feedback", so nothing is sent back through the chip. Writes results.json and recovered.png to
--output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from training import installed, processor

from nit_snn.datasets import load_spikes
from nit_snn.dynamics.lif import Dynamics, Lif
from nit_snn.loop import Layer, Loop, Observed

#: The membrane's time constant in steps, the noise, and what makes logits of spike counts.
TAU, SIGMA, SCALE = 10.0, 0.25, 0.1
SIZES = (80, 100, 10)
#: How often each test recording is classified, with other noise.
REPEATS = 3
WAYS = {
    "copied": "weights\ncopied",
    "rounded": "trained on with\n4 bits, copied",
    "loop": "trained\nin the loop",
}

Data = tuple[np.ndarray, np.ndarray]


class Chip:
    """Layers of LIF neurons, each a little different from what it should be.

    Args:
        deviation: Relative standard deviation of time constants, thresholds and synapses.
        bits: Of each weight; None for full precision.
        seed: Names the chip.
    """

    def __init__(self, deviation: float, bits: int | None, seed: int) -> None:
        random, self.bits = np.random.default_rng(seed), bits

        def deviating(neurons: int) -> np.ndarray:
            factor = 1 + deviation * random.standard_normal(neurons)
            return np.clip(factor, 0.2, None).astype(np.float32)

        self.decays = [np.exp(-1 / (TAU * deviating(n))) for n in SIZES[1:]]
        self.thresholds = [deviating(n) for n in SIZES[1:]]
        self.strengths = [deviating(n) for n in SIZES[1:]]
        self.weights: list[np.ndarray] = []

    def write(self, weights: list[np.ndarray]) -> None:
        """Rounds weights, (neurons, inputs) of each layer, and stores them."""
        self.weights = [rounded(w, self.bits) for w in weights]

    def run(self, x: np.ndarray, noise: list[np.ndarray]) -> list[np.ndarray]:
        """Spikes of each layer, (T, N, neurons), from those that go in and from the noise."""
        found = []
        for k, eps in enumerate(noise):
            current = with_bias(x) @ (self.weights[k] * self.strengths[k][:, None]).T
            membrane, x = np.zeros_like(eps[0]), np.zeros_like(eps)
            for t in range(len(eps)):
                membrane = self.decays[k] * membrane + current[t] + SIGMA * eps[t]
                x[t] = membrane >= self.thresholds[k]
                membrane = membrane * (1 - x[t])
            found.append(x)
        return found


def with_bias(x: np.ndarray) -> np.ndarray:
    """Spikes (T, N, inputs) and one more input, which fires at every step."""
    return np.concatenate([x, np.ones_like(x[..., :1])], 2)


def rounded(weights: np.ndarray, bits: int | None) -> np.ndarray:
    """To 2^bits - 1 levels between the largest weight and minus it."""
    if bits is None:
        return weights
    step = np.abs(weights).max() / (2 ** (bits - 1) - 1)
    return (np.round(weights / step) * step).astype(np.float32)


def described(seed: int) -> Loop:
    """The layers as they were meant to be."""
    lif = Lif(Dynamics(reset="hard", or_equal=True), float(np.exp(-1 / TAU)))
    layers = {
        f"layer{k + 1}": Layer(n + 1, m, lif, sigma=SIGMA, bias=False, exact=False)
        for k, (n, m) in enumerate(pairwise(SIZES))
    }
    return Loop(layers, credit="feedback", residual=0, seed=seed)


def batch_of(data: Data, rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Spikes (T, N, inputs) and labels (N,)."""
    spikes, labels = data
    return spikes[rows].transpose(1, 0, 2).astype(np.float32), torch.from_numpy(labels[rows])


def train(
    chip: Chip, weights: list[np.ndarray], data: Data, epochs: int, args: argparse.Namespace
) -> list[np.ndarray]:
    """Trains in the loop; gradients of the rounded weights go to weights of full precision."""
    torch.set_num_threads(1)
    loop, random = described(args.seed), np.random.default_rng(args.seed)
    held = [torch.tensor(w, requires_grad=True) for w in weights]
    optimizer = torch.optim.Adam(held, lr=args.rate)
    count = len(data[1]) // args.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * count))
    for _ in tqdm(range(epochs), "epochs", leave=False, disable=None):
        order = random.permutation(count * args.batch_size)
        for rows in order.reshape(count, -1):
            x, y = batch_of(data, rows)
            chip.write([w.detach().numpy() for w in held])
            noise = loop.noise(len(x), len(y))
            spikes = chip.run(x, list(noise.values()))
            logits = SCALE * torch.from_numpy(spikes[-1].sum(0))
            losses = F.cross_entropy(logits, y, reduction="none")
            errors = SCALE * (logits.softmax(1) - F.one_hot(y, SIZES[-1]))
            carried = [with_bias(s) for s in (x, *spikes)]
            seen = {
                name: Observed(carried[k], spikes[k], weights=chip.weights[k])
                for k, name in enumerate(noise)
            }
            for w, gradient in zip(
                held, loop.gradients(losses, seen, errors).values(), strict=True
            ):
                w.grad = gradient.weights
            optimizer.step()
            schedule.step()
    return [w.detach().numpy() for w in held]


def accuracy(chip: Chip, weights: list[np.ndarray], data: Data) -> float:
    """In percent, with `REPEATS` samples of the noise for each recording, always the same."""
    random = np.random.default_rng(99)
    chip.write(weights)
    right = 0
    x, y = batch_of(data, np.arange(len(data[1])))
    for _ in range(REPEATS):
        noise = [random.standard_normal((len(x), len(y), n), np.float32) for n in SIZES[1:]]
        right += int((chip.run(x, noise)[-1].sum(0).argmax(1) == y.numpy()).sum())
    return round(100 * right / (REPEATS * len(y)), 2)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One network in software, and what becomes of it on each chip."""
    spikes, labels, test, _ = load_spikes("spoken-digits")
    data = spikes[~test].numpy()[: args.recordings], labels[~test].numpy()[: args.recordings]
    judged = spikes[test].numpy(), labels[test].numpy()
    random = np.random.default_rng(args.seed)
    start = [
        random.normal(0, args.spread / np.sqrt(n), (m, n + 1)).astype(np.float32)
        for n, m in pairwise(SIZES)
    ]
    ideal, coarse = Chip(0.0, None, 0), Chip(0.0, args.bits, 0)
    first = train(ideal, start, data, args.epochs, args)
    chips = [Chip(args.deviation, args.bits, 1000 + number) for number in range(args.chips)]
    onto = partial(train, weights=first, data=data, epochs=args.more_epochs, args=args)
    if args.processes > 1:  # from here on each goes its own way
        with ProcessPoolExecutor(args.processes) as pool:
            software, coarser, *adapted = pool.map(onto, (ideal, coarse, *chips))
    else:
        software, coarser, *adapted = map(onto, (ideal, coarse, *chips))
    rows = []
    for number, (chip, own) in enumerate(zip(chips, adapted, strict=True)):
        row: dict[str, Any] = {
            "chip": number,
            "software": accuracy(ideal, software, judged),
            "copied": accuracy(chip, software, judged),
            "rounded": accuracy(chip, coarser, judged),
            "loop": accuracy(chip, own, judged),
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def of_children() -> float:
    """CPU seconds of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def recovered(rows: list[dict[str, Any]]) -> float:
    """How much of what the copies lose the loop has, over all chips; 1 for all of it."""
    lost = sum(row["software"] - row["copied"] for row in rows)
    found = sum(row["loop"] - row["copied"] for row in rows)
    return round(found / lost, 3) if lost else float("nan")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy of each way, one line for each chip."""
    figure, axes = plt.subplots(figsize=(4.4, 3.4), layout="constrained")
    for row in rows:
        axes.plot(range(len(WAYS)), [row[way] for way in WAYS], "o-", color="C0", ms=5, alpha=0.7)
    level = rows[0]["software"]
    axes.axhline(level, color="0.35", ls="--")
    axes.annotate(
        "in software, without deviation",
        (-0.25, level),
        (0, 4),
        textcoords="offset points",
        color="0.35",
        fontsize=9,
    )
    axes.set(ylabel="test accuracy (%)", xlim=(-0.3, 2.3), ylim=(None, level + 4))
    axes.set_xticks(range(len(WAYS)), list(WAYS.values()))
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="in software, before all else")
    parser.add_argument("--more-epochs", type=int, default=10, help="in software or in the loop")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-2, help="learning rate")
    parser.add_argument("--spread", type=float, default=1.0, help="of the first weights")
    parser.add_argument("--deviation", type=float, default=0.2)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--chips", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="chips at the same time")
    parser.add_argument("--recordings", type=int, default=2700, help="at most so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/mismatched_chip"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    rows = run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "options": {k: v for k, v in vars(args).items() if k != "output"},
        "rows": rows,
        "recovered": recovered(rows),
        "cpu_seconds": round(time.process_time() - started + of_children(), 1),
        "versions": installed("nit-snn", "torch", "numpy"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {processor()}, 1 thread",
    }
    print(f"recovered: {results['recovered']}")
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(rows, args.output / "recovered.png")


if __name__ == "__main__":
    main()
