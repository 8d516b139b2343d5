"""A network in Brian2 learns spoken digits, and torch never runs it.

    python examples/brian2_in_the_loop.py          # needs: pip install "nit-snn[brian2]"

The network is Brian2's: LIF neurons in continuous time with exponential synapses, integrated
exactly. Its noise is known, for a TimedArray puts it in. Brian2 hands out the spikes, and
`nit_snn.loop.Loop` makes the gradient. With credit "feedback" each layer learns from its own spikes
and the outputs' errors. The twin is the same network in torch, trained by `NITLearner` with the
same credit, the same batches and the same first weights. Writes results.json to --output.
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

import brian2 as b2
import numpy as np
import snntorch as snn
import torch
from torch import Tensor, nn
from tqdm import tqdm
from training import installed, processor

from nit_snn import NITLearner, swap_neurons
from nit_snn.datasets import load_spikes
from nit_snn.dynamics.lif import Dynamics, Lif
from nit_snn.loop import Layer, Loop, Observed

b2.prefs.codegen.target = "numpy"

#: In milliseconds: a step of the simulation, of the membrane and of the synaptic current.
STEP, TAU, TAU_SYNAPSE = 1.0, 10.0, 5.0
SIGMA, SCALE = 0.25, 0.1
#: What a step leaves of the membrane and of the current, and what the current adds to it.
DECAY, CURRENT_DECAY = math.exp(-STEP / TAU), math.exp(-STEP / TAU_SYNAPSE)
GAIN = TAU_SYNAPSE / (TAU_SYNAPSE - TAU) * (CURRENT_DECAY - DECAY)

Events = np.ndarray


class BrianNetwork:
    """Layers of LIF neurons in Brian2, as many copies of them as there are rows.

        dv/dt = (I - v) / tau,   dI/dt = -I / tau_synapse;   I += w at each spike, v = 0 at its own

    A spike arrives one step after it was fired.

    Args:
        sizes: Width of each layer, from the inputs to the classes.
        steps: T.
        rows: N.
    """

    def __init__(self, sizes: tuple[int, ...], steps: int, rows: int) -> None:
        self.sizes, self.steps, self.rows = sizes, steps, rows
        b2.defaultclock.dt = STEP * b2.ms
        self.inputs = b2.SpikeGeneratorGroup(rows * sizes[0], [], [] * b2.ms)
        equations = "dv/dt = (I - v) / tau : 1\ndI/dt = -I / tau_synapse : 1"
        self.noise, self.synapses, self.monitors = [], [], []
        groups, before = [], self.inputs
        for n, m in pairwise(sizes):
            values = b2.TimedArray(np.zeros((steps, rows * m)), dt=STEP * b2.ms)
            known = {
                "tau": TAU * b2.ms,
                "tau_synapse": TAU_SYNAPSE * b2.ms,
                "sigma": SIGMA,
                "noise": values,
            }
            group = b2.NeuronGroup(
                rows * m,
                equations,
                threshold="v >= 1",
                reset="v = 0",
                method="exact",
                namespace=known,
            )
            group.run_regularly("v += sigma * noise(t, i)", when="before_thresholds")
            synapses = b2.Synapses(before, group, "w : 1", on_pre="I_post += w")
            row, source, target = np.indices((rows, n, m)).reshape(3, -1)
            synapses.connect(i=row * n + source, j=row * m + target)
            self.noise.append(values)
            self.synapses.append(synapses)
            self.monitors.append(b2.SpikeMonitor(group))
            groups.append(group)
            before = group
        self.network = b2.Network(self.inputs, *groups, *self.synapses, *self.monitors)
        # A spike of the step before arrives first, then time goes on.
        self.network.schedule = ["start", "synapses", "groups", "thresholds", "resets", "end"]
        self.network.store()

    def run(
        self, events: Events, weights: list[np.ndarray], noise: list[np.ndarray]
    ) -> list[Events]:
        """One pass of all rows.

        Args:
            events: Input spikes, (events, 3): step, row, index.
            weights: (neurons, inputs) of each layer.
            noise: eps of each layer, (T, N, neurons).

        Returns:
            Spikes of each layer, likewise.
        """
        self.network.restore()
        step, row, index = events.T
        self.inputs.set_spikes(row * self.sizes[0] + index, step * STEP * b2.ms)
        for values, synapses, w, eps in zip(self.noise, self.synapses, weights, noise, strict=True):
            synapses.w[:] = np.tile(w.T.ravel(), self.rows)
            values.values[:] = eps.reshape(self.steps, -1)
        self.network.run(self.steps * STEP * b2.ms)
        return [self._events(m, n) for m, n in zip(self.monitors, self.sizes[1:], strict=True)]

    def _events(self, monitor: b2.SpikeMonitor, neurons: int) -> Events:
        step = np.rint(np.asarray(monitor.t / b2.ms) / STEP).astype(int)
        row, index = np.divmod(np.asarray(monitor.i), neurons)
        return np.stack([step, row, index], 1)


def arrived(events: Events, steps: int) -> Events:
    """What synapses carry: each spike one step later, those after the end left out."""
    later = events + np.array([1, 0, 0])
    return later[later[:, 0] < steps]


def counts_of(events: Events, rows: int, neurons: int) -> Tensor:
    """How often each neuron has fired, (N, neurons)."""
    found = torch.zeros(rows, neurons)
    ones = torch.ones(len(events))
    return found.index_put_(tuple(torch.from_numpy(events[:, 1:].T)), ones, accumulate=True)


class Data:
    """Spoken digits as events, with empty steps at the end for spikes that are on their way.

    Args:
        limit: How many recordings there are at most, to train with and to test with.
    """

    def __init__(self, limit: int) -> None:
        spikes, labels, test, _ = load_spikes("spoken-digits")
        self.parts = {
            "train": (spikes[~test][:limit], labels[~test][:limit]),
            "test": (spikes[test][:limit], labels[test][:limit]),
        }
        self.steps, self.inputs = spikes.shape[1] + 2, spikes.shape[2]

    def batches(self, part: str, size: int, seed: int | None) -> list[tuple[Tensor, Tensor]]:
        """(T, N, inputs) and (N,); shuffled if there is a seed; batches of less are left out."""
        spikes, labels = self.parts[part]
        order = torch.arange(len(labels))
        if seed is not None:
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        found = []
        for rows in order.split(size):
            if len(rows) == size:
                x = nn.functional.pad(spikes[rows], (0, 0, 0, 2)).transpose(0, 1)
                found.append((x, labels[rows]))
        return found


def first_weights(sizes: tuple[int, ...], spread: float, seed: int) -> list[Tensor]:
    """(neurons, inputs) of each layer."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(m, n, generator=random) * spread / n**0.5 for n, m in pairwise(sizes)]


def logits_and_errors(counts: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, (N,), and their derivative in the counts, (N, classes)."""
    logits = SCALE * counts
    losses = nn.functional.cross_entropy(logits, y, reduction="none")
    return losses, SCALE * (logits.softmax(1) - nn.functional.one_hot(y, counts.shape[1]))


def in_the_loop(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Trains Brian2's network; accuracy in percent, and CPU seconds."""
    sizes = (data.inputs, args.hidden, 10)
    brian = BrianNetwork(sizes, data.steps, args.batch_size)
    lif = Lif(Dynamics(reset="hard", or_equal=True), DECAY, GAIN)
    layers = {
        f"layer{k + 1}": Layer(
            n, m, lif, sigma=SIGMA, current_decay=CURRENT_DECAY, bias=False, exact=True
        )
        for k, (n, m) in enumerate(pairwise(sizes))
    }
    loop = Loop(layers, credit="feedback", residual=0, seed=args.seed)
    weights = [w.requires_grad_() for w in first_weights(sizes, args.spread, args.seed)]
    optimizer, schedule = optimizer_for(weights, args, data)
    for epoch in range(args.epochs):
        for x, y in tqdm(data.batches("train", len_of(brian), args.seed + epoch), leave=False):
            events = np.argwhere(x.numpy())
            noise = loop.noise(data.steps, len(y))
            written = [w.detach().numpy() for w in weights]
            spikes = brian.run(events, written, list(noise.values()))
            losses, errors = logits_and_errors(counts_of(spikes[-1], len(y), 10), y)
            carried = [arrived(s, data.steps) for s in (events, *spikes)]
            seen = {
                name: Observed(carried[k], spikes[k], weights=written[k])
                for k, name in enumerate(noise)
            }
            found = loop.gradients(losses, seen, errors)
            for w, gradient in zip(weights, found.values(), strict=True):
                w.grad = gradient.weights
            optimizer.step()
            schedule.step()
        print(f"Brian2, epoch {epoch + 1}: loss {float(losses.detach().mean()):.2f}", flush=True)
    random, right, count = np.random.default_rng(99), 0, 0
    for x, y in data.batches("test", len_of(brian), None):
        noise = [random.standard_normal((data.steps, len(y), n)) for n in sizes[1:]]
        spikes = brian.run(np.argwhere(x.numpy()), [w.detach().numpy() for w in weights], noise)
        right += int((counts_of(spikes[-1], len(y), 10).argmax(1) == y).sum())
        count += len(y)
    return {"method": "Brian2, in the loop", "test": round(100 * right / count, 2), "of": count}


def len_of(brian: BrianNetwork) -> int:
    """How many samples a pass has: one replica each."""
    return brian.rows


def optimizer_for(
    weights: list[Tensor], args: argparse.Namespace, data: Data
) -> tuple[torch.optim.Optimizer, Any]:
    """Adam, with a learning rate that falls to zero as a cosine."""
    optimizer = torch.optim.Adam(weights, lr=args.rate)
    steps = args.epochs * (len(data.parts["train"][1]) // args.batch_size)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))


class Twin(nn.Module):
    """The same network in torch: spikes (T, N, inputs) to spike counts (N, classes)."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(*w.shape[::-1], bias=False) for w in weights)
        self.neurons = nn.ModuleList(snn.Leaky(beta=DECAY, reset_mechanism="zero") for _ in weights)
        with torch.no_grad():
            for synapse, w in zip(self.synapses, weights, strict=True):
                synapse.weight.copy_(w)  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[1]
        membranes = [neuron.reset_mem() for neuron in self.neurons]  # type: ignore[operator]
        currents = [torch.zeros(rows, len(s.weight)) for s in self.synapses]
        arrives = [torch.zeros(rows, s.weight.shape[1]) for s in self.synapses]
        counts = torch.zeros(rows, len(self.synapses[-1].weight))
        for now in x:
            carried, arrives = arrives, [now]
            for k, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                currents[k] = CURRENT_DECAY * currents[k] + synapse(carried[k])
                spikes, membranes[k] = neuron(GAIN * currents[k], membranes[k])
                arrives.append(spikes)
            counts = counts + arrives[-1]
        return counts


def twin(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Trains the network's twin in torch; accuracy in percent, and CPU seconds."""
    sizes = (data.inputs, args.hidden, 10)
    net = Twin(first_weights(sizes, args.spread, args.seed))
    swap_neurons(net, sigma=SIGMA)
    learner = NITLearner(net, credit="feedback", residual=0, replicas=1, seed=args.seed)
    optimizer, schedule = optimizer_for(list(net.parameters()), args, data)
    for epoch in range(args.epochs):
        for x, y in tqdm(data.batches("train", args.batch_size, args.seed + epoch), leave=False):
            optimizer.zero_grad()
            with learner.record():
                xr, yr = learner.expand(x.float(), dim=1), learner.expand(y)
                losses, _ = logits_and_errors(net(xr), yr)
            learner.backward(losses)
            optimizer.step()
            schedule.step()
        print(f"torch, epoch {epoch + 1}: loss {float(losses.detach().mean()):.2f}", flush=True)
    torch.manual_seed(99)
    right = count = 0
    with torch.no_grad():
        for x, y in data.batches("test", args.batch_size, None):
            right += int((net(x.float()).argmax(1) == y).sum())
            count += len(y)
    return {"method": "torch, NITLearner", "test": round(100 * right / count, 2), "of": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--rate", type=float, default=5e-2, help="learning rate")
    parser.add_argument("--spread", type=float, default=3.0, help="of the first weights")
    parser.add_argument("--recordings", type=int, default=2700, help="at most so many")
    parser.add_argument("--methods", nargs="+", default=["brian2", "torch"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/brian2_in_the_loop"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = Data(args.recordings), []
    for method in args.methods:
        started = time.process_time()
        row = {"brian2": in_the_loop, "torch": twin}[method](args, data)
        rows.append({**row, "cpu_seconds": round(time.process_time() - started, 1)})
        print(rows[-1], flush=True)
    packages = ("nit-snn", "torch", "numpy", "brian2", "snntorch")
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "options": {k: v for k, v in vars(args).items() if k != "output"},
        "chance": 10.0,
        "rows": rows,
        "versions": installed(*packages),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {processor()}, 1 thread",
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
