"""One network, trained with STBP, STBP-N and NIT in equal conditions; what several examples share.

STBP is the framework's own surrogate gradient through time, without noise; STBP-N the same with
the noise; "auto" is `NITLearner(net)` with no option set, "forward only" `NITLearner(net,
forward_only=True)`. All start from the
same weights and see the same samples equally often. Each method tries the same learning rates in
short runs, judged by validation samples; the best one is trained for longer and judged by the test
samples. Every run is written to --output at once, and not repeated when it is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import training
from peak_memory import live_peak, resident_peak
from torch import Tensor, nn

from nit_snn import NITLearner, __version__, swap_neurons

METHODS: dict[str, dict[str, Any] | None] = {
    "STBP": None,
    "STBP-N": None,
    "auto": {},
    "forward only": {"forward_only": True},
}
#: Samples of the noise that an accuracy is the mean of, and steps that are timed in turns.
EVALUATIONS, TURNS = 5, 12

Data = tuple[Tensor, Tensor]


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Of each row, (N,), from what the network returns, (N, classes), and labels, (N,)."""
    return F.cross_entropy(out, y, reduction="none")


def percent_right(out: Tensor, y: Tensor) -> Tensor:
    """100 or 0 for each row, (N,)."""
    return 100.0 * (out.argmax(1) == y).float()


@dataclass(frozen=True)
class Task:
    """A network and how it is trained.

    Attributes:
        network: In words, as the table of results says it.
        data: Likewise.
        make: Makes the network.
        parts: Makes the samples to train on, to choose the rate by, and to test with.
        loss: From what the network returns and the target to a loss for each row, (N,).
        score: Likewise, what the table reports; more is better unless `lower`.
        unit: Of the score.
        lower: Whether a lower score is better.
        epochs: How often each sample is seen in a trial, and in the run that counts.
        batch: Rows in a batch.
        rates: The learning rates that every method tries.
        sigma: The noise of all but STBP; None is that of `swap_neurons(net)`.
        methods: Those that are compared.
        facts: What else is measured on the test samples, from the trained network and those.
    """

    network: str
    data: str
    make: Callable[[], nn.Module]
    parts: Callable[[], tuple[Data, Data, Data]]
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    score: Callable[[Tensor, Tensor], Tensor] = percent_right
    unit: str = "%"
    lower: bool = False
    epochs: tuple[int, int] = (5, 25)
    batch: int = 64
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    sigma: float | None = None
    methods: dict[str, dict[str, Any] | None] = field(default_factory=lambda: dict(METHODS))
    facts: Callable[[nn.Module, Data], dict[str, float]] | None = None


@dataclass
class Trained:
    """A network, and what makes its steps."""

    task: Task
    method: str
    rate: float
    seed: int

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.net, options = self.task.make(), self.task.methods[self.method]
        if self.method != "STBP":
            sigma = self.task.sigma
            swap_neurons(self.net) if sigma is None else swap_neurons(self.net, sigma=sigma)
        self.learner = None
        if options is not None:
            self.learner = NITLearner(self.net, seed=self.seed, **options)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.rate)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One optimizer step."""
        step(self.task, self.net, self.learner, self.optimizer, x, y)

    def fit(self, data: Data, epochs: int, first: int = 0) -> float:
        """Trains for some epochs after the first ones; returns CPU seconds."""
        order = torch.Generator().manual_seed(self.seed + 1000 * first)
        started = time.process_time()
        for _ in range(epochs):
            for rows in torch.randperm(len(data[1]), generator=order).split(self.task.batch):
                self.step(data[0][rows], data[1][rows])
        return time.process_time() - started

    @torch.no_grad()
    def score(self, data: Data) -> float:
        """The mean over samples and a few samples of the noise."""
        self.net.eval()
        times = 1 if self.method == "STBP" else EVALUATIONS
        found = [
            self.task.score(self.net(x), y)
            for _ in range(times)
            for x, y in zip(data[0].split(500), data[1].split(500), strict=True)
        ]
        self.net.train()
        return round(float(torch.cat(found).mean()), 3)


def step(
    task: Any,
    net: nn.Module,
    learner: NITLearner | None,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
) -> None:
    """One optimizer step of a network; `task.loss` gives a loss for each row."""
    optimizer.zero_grad()
    if learner is None:
        task.loss(net(x), y).mean().backward()
    else:
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = task.loss(net(xr), yr)
        learner.backward(losses)
        learner.reset()
    optimizer.step()


def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Those of every comparison."""
    add = parser.add_argument
    add("--methods", nargs="+", help="some of the methods; all if none")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--threads", type=int, default=1)
    add("--samples", type=int, help="fewer samples, for a trial")
    add("--epochs", type=int, nargs=2, help="of the short runs and of the long one")
    add("--rates", type=float, nargs="+", help="learning rates in the place of the task's own")
    add("--peak", metavar="METHOD", help=argparse.SUPPRESS)  # in a process of its own
    add("--task", help=argparse.SUPPRESS)
    add("--output", type=Path, default=Path(output))


def main(tasks: dict[str, Task], args: argparse.Namespace) -> dict[str, Any]:
    """Compares all methods on some tasks, writes --output, prints a table of it."""
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    if args.peak:
        print(json.dumps(peak_here(tasks[args.task], args.peak, args)))
        return {}
    results = json.loads(args.output.read_text()) if args.output.exists() else {"tasks": {}}
    for name, task in tasks.items():
        found = results["tasks"].setdefault(name, {"runs": [], "peaks": {}})
        found |= {"network": task.network, "data": task.data, "unit": task.unit}
        found |= {"lower": task.lower}
        methods = [m for m in args.methods or task.methods if m in task.methods]
        for _ in compare(name, task, methods, args, found):
            results |= {"command": " ".join(["python", *sys.argv])} | where(args)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return results


def compare(
    name: str, task: Task, methods: list[str], args: argparse.Namespace, found: dict[str, Any]
) -> Iterator[None]:
    """Adds to the results of a task what they lack, and says so after each run."""
    train_set, validation, test = (few(part, args.samples) for part in task.parts())
    short, long = args.epochs or task.epochs
    both = joined(train_set, validation)

    def run(method: str, rate: float, seed: int, epochs: int) -> Iterator[None]:
        key = {"method": method, "rate": rate, "seed": seed, "epochs": epochs}
        if any(key.items() <= row.items() for row in found["runs"]):
            return
        trained = Trained(task, method, rate, seed)
        trial = epochs == short
        seconds = trained.fit(train_set if trial else both, epochs)
        row: dict[str, Any] = {**key, "cpu_seconds": round(seconds, 1)}
        row["validation" if trial else "test"] = trained.score(validation if trial else test)
        if trained.learner is not None:
            row["chosen"] = repr(trained.learner).split(", rule")[0].partition("(")[2]
        if task.facts is not None and not trial:
            row |= task.facts(trained.net, test)
        found["runs"].append(row)
        print(name, row, flush=True)
        yield

    for method in methods:
        for rate in args.rates or task.rates:
            yield from run(method, rate, args.seeds[0], short)
        rate = best_rate(found, method, short)
        for seed in args.seeds:
            yield from run(method, rate, seed, long)
    if not set(methods) <= found.get("ms_of_a_step", {}).keys():
        found["ms_of_a_step"] = steps_in_turns(task, methods, train_set)
        yield
    for method in methods:
        if method not in found["peaks"]:
            found["peaks"][method] = _in_a_process_of_its_own(name, method)
            yield


def best_rate(found: dict[str, Any], method: str, epochs: int) -> float:
    """The rate with the best validation score in the short runs."""
    own = [r for r in found["runs"] if r["method"] == method and r["epochs"] == epochs]
    own = [r for r in own if "validation" in r]
    best = (min if found["lower"] else max)(own, key=lambda row: row["validation"])
    rate: float = best["rate"]
    return rate


def steps_in_turns(task: Task, methods: list[str], data: Data) -> dict[str, float]:
    """CPU milliseconds of an optimizer step: the median of some, all methods taking turns."""
    x, y = (part[: task.batch] for part in data)
    runs = {method: Trained(task, method, 1e-4, 0) for method in methods}
    spent: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(TURNS + 2):
        for method, trained in runs.items():
            started = time.process_time()
            trained.step(x, y)
            if turn > 1:
                spent[method].append(time.process_time() - started)
    return {method: round(1000 * statistics.median(own), 2) for method, own in spent.items()}


def peak_here(task: Task, method: str, args: argparse.Namespace) -> dict[str, float | None]:
    """MiB that a third step takes at its peak: resident, and of tensors alone."""
    x, y = (part[: task.batch].clone() for part in few(task.parts()[0], args.samples))
    trained = Trained(task, method, 1e-4, 0)
    for _ in range(2):  # what is learned once, and what "auto" comes to
        trained.step(x[:2], y[:2])
    resident = resident_peak(lambda: trained.step(x, y))
    tensors = live_peak(lambda: trained.step(x, y))
    return {
        "resident_mib": None if resident is None else round(resident / 2**20, 1),
        "tensors_mib": round(tensors / 2**20, 1),
    }


def _in_a_process_of_its_own(name: str, method: str) -> dict[str, float | None]:
    command = [sys.executable, *sys.argv, "--task", name, "--peak", method]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    peak: dict[str, float | None] = json.loads(found.stdout.splitlines()[-1])
    return peak


def joined(first: Data, second: Data) -> Data:
    """Both end to end, or once where they are the same."""
    if first is second:
        return first
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def few(data: Data, samples: int | None) -> Data:
    return data if samples is None else (data[0][:samples], data[1][:samples])


def where(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "versions": training.installed("torch", "snntorch", "spikingjelly")
        | {"nit-snn": __version__},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {args.threads} threads",
    }


def long_runs(found: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The runs that count, of all seeds."""
    return [row for row in found["runs"] if row["method"] == method and "test" in row]


def table(results: dict[str, Any]) -> str:
    """Test score, CPU seconds and peak memory of each method, as Markdown."""
    lines = ["| task | method | score | CPU s | ms a step | peak MiB (tensors) |", "|---" * 6 + "|"]
    for name, found in results["tasks"].items():
        for method in dict.fromkeys(row["method"] for row in found["runs"]):
            own = long_runs(found, method)
            if not own:
                continue
            score = statistics.mean(row["test"] for row in own)
            seconds = statistics.mean(row["cpu_seconds"] for row in own)
            peak = found["peaks"].get(method, {})
            lines.append(
                f"| {name} | {method} | {score:.4g} {found['unit']} | {seconds:.0f} | "
                f"{found.get('ms_of_a_step', {}).get(method, '-')} | "
                f"{peak.get('resident_mib', '-')} ({peak.get('tensors_mib', '-')}) |"
            )
    return "\n".join(lines)
