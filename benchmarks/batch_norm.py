"""BatchNorm behind noise: the bias of the likelihood ratio, and what trains from scratch.

    python benchmarks/batch_norm.py

A likelihood ratio charges a row's noise with that row's loss alone. In training mode, BatchNorm's
statistics carry the noise to all other rows. First part: 6-8-BatchNorm-8-3, two layers of noisy
neurons, T = 4; the first layer's gradient, as the leave-one-out likelihood ratio has it, against
central differences of the mean loss with common random numbers. Both are means over many
batches; products of two independent halves free their lengths and angle from noise. Second part: a
SpikingJelly network, conv-BN-IF-MP twice and a linear readout, trained from scratch with BatchNorm
in training mode, in evaluation mode, or in evaluation mode from half of the steps on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import networks
import torch
import torch.nn.functional as F
from networks_users_bring import Task
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, swap_neurons

STEPS, INPUTS, HIDDEN, CLASSES, REPLICAS = 4, 6, 8, 3, 4
SIGMA, BETA, MOVED = 0.5, 0.5, 0.1


class Pair:
    """The small network, for many batches at once: every tensor is (batches, rows, *).

    Args:
        samples: In a batch, each with `REPLICAS` rows.
        seed: Of its weights and data.
    """

    def __init__(self, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.first = normal(HIDDEN, INPUTS)
        self.second = normal(HIDDEN, HIDDEN)
        self.out = normal(CLASSES, HIDDEN)
        self.x = torch.rand(samples, INPUTS, generator=generator, dtype=torch.float64)
        self.y = torch.randint(CLASSES, (samples,), generator=generator)

    def losses(self, first: Tensor, noise: Tensor, training: bool = True) -> Tensor:
        """(batches, rows), from the first layer's weights and noise (2, T, batches, rows, 8)."""
        rows = noise.shape[3]
        x, y = (v.repeat(rows // len(self.x), *(1,) * (v.dim() - 1)) for v in (self.x, self.y))
        drive, total = x @ first.T, torch.zeros(())
        u = v = torch.zeros_like(noise[0, 0])
        for eps, other in zip(noise[0], noise[1], strict=True):
            u = BETA * u + drive + SIGMA * eps
            spikes = (u > 1).double()
            current = spikes @ self.second.T
            if training:
                apart = current - current.mean(1, keepdim=True)
                current = apart / (apart.square().mean(1, keepdim=True) + 1e-5).sqrt()
            v = BETA * v + current + SIGMA * other
            fired = (v > 1).double()
            total = total + fired @ self.out.T
            u, v = u * (1 - spikes), v * (1 - fired)
        return F.cross_entropy(total.flatten(0, 1), y.repeat(len(u)), reduction="none").view(
            len(u), rows
        )

    def ratio(self, noise: Tensor, training: bool) -> Tensor:
        """The leave-one-out likelihood ratio's gradient of the first layer, (8, 6)."""
        losses = self.losses(self.first, noise, training).unflatten(1, (REPLICAS, -1))
        advantage = (losses - losses.mean(1, keepdim=True)) * REPLICAS / (REPLICAS - 1)
        score = noise[0].sum(0).unflatten(1, (REPLICAS, -1)) / SIGMA
        return torch.einsum("pcb,pcbh,bi->hi", advantage, score, self.x) / losses.numel()

    def difference(self, noise: Tensor, training: bool) -> Tensor:
        """Central differences of the mean loss, with the same noise on both sides."""
        found = torch.zeros_like(self.first)
        for index in range(found.numel()):
            step = torch.zeros(found.numel(), dtype=torch.float64)
            step[index] = MOVED
            up, down = (
                self.losses(self.first + sign * step.view_as(found), noise, training).mean()
                for sign in (1, -1)
            )
            found.view(-1)[index] = (up - down) / (2 * MOVED)
        return found


def bias(samples: int, seed: int, rows: int, training: bool) -> dict[str, Any]:
    """How the likelihood ratio compares with the gradient, for one size of batch."""
    pair = Pair(samples, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    batches = max(1, rows // (samples * REPLICAS))
    shape = (2, STEPS, batches, samples * REPLICAS, HIDDEN)
    halves = []
    for _ in range(2):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        ratio = pair.ratio(noise, training)
        for _ in range(7):  # it has the larger variance
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            ratio = ratio + pair.ratio(noise, training)
        halves.append((ratio / 8, pair.difference(noise, training)))
    (ratio1, true1), (ratio2, true2) = halves

    def length(one: Tensor, other: Tensor) -> float:
        return max(0.0, float((one * other).sum())) ** 0.5

    true, found = length(true1, true2), length(ratio1, ratio2)
    both = float((ratio1 * true2).sum() + (ratio2 * true1).sum()) / 2
    return {
        "samples": samples,
        "seed": seed,
        "training_mode": training,
        "length_of_gradient": true,
        "length_of_ratio_over_gradient": found / true,
        "cosine": both / (found * true),
        "bias_over_gradient": length(ratio1 - true1, ratio2 - true2) / true,
    }


class Small(nn.Module):
    """conv-BN-IF-MP twice on 14 x 14 images, and a linear readout; T = 4."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer.Conv2d(1, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(),
            layer.MaxPool2d(2, 2),
            layer.Conv2d(channels, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Linear(channels * 9, 10),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.body(F.avg_pool2d(x, 2).expand(4, *x.shape[:2], 14, 14)).mean(0)


#: Of the learner.
OPTIONS: dict[str, dict[str, Any]] = {"auto": {}, "none": {"credit": "none", "replicas": 16}}
MODES = ("training", "evaluation", "evaluation after half")


def train(options: str, mode: str, seed: int, steps: int) -> dict[str, Any]:
    """Trains the SpikingJelly network; accuracy in percent, and CPU seconds of training."""
    task = Task(Small, "fashion-mnist", 8000, 1, 32)
    (x, y), _, test = networks.parts(task, None)
    torch.manual_seed(seed)
    net = swap_neurons(task.make())
    learner = NITLearner(net, seed=seed, **OPTIONS[options])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    started = time.process_time()
    for step in range(steps):
        if mode == "evaluation" or (mode == MODES[2] and step >= steps // 2):
            net.eval()
        rows = torch.randint(len(y), (task.batch,), generator=order)
        networks.step(task, net, learner, optimizer, x[rows], y[rows])
    seconds = time.process_time() - started
    return {
        "options": options,
        "mode": mode,
        "seed": seed,
        "steps": steps,
        "test": networks.accuracy(net, *test),
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the first part")
    parser.add_argument("--rows", type=int, default=40_000, help="of each mean, first part")
    parser.add_argument("--steps", type=int, default=200, help="of the second part")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/batch_norm.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        **networks._where(args),
        "bias": [],
        "training": [],
    }
    parts = [
        ("bias", bias, (samples, seed, args.rows, mode))
        for mode in (True, False)
        for samples in (args.samples if mode else args.samples[-1:])
        for seed in args.seeds
    ]
    parts += [
        ("training", train, (options, mode, 0, args.steps)) for options in OPTIONS for mode in MODES
    ]
    for part, measure, given in tqdm(parts):
        results[part].append(measure(*given))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
