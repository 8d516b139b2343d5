"""The stages of benchmarks/gpu_check.py; each takes the arguments and returns what JSON can hold.

A stage that runs out of time is killed, so those that measure several things write a file of their
own as they go.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gpu
import gpu_kernels
import source_tree  # noqa: F401, nit_snn need not be installed
import torch
import torch.nn.functional as F
from gpu_measure import attempt, measure, synchronize
from gpu_peers import COMPILED, JELLY, KERNELS, Bench, Point, backend, jelly
from torch import Tensor, nn

from nit_snn import NITLearner, backends, cuda_graph, swap_neurons
from nit_snn.datasets import load
from nit_snn.dynamics.kernels import launch as launching

Result = dict[str, Any]
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_GRAPHED, _JELLY_GRAPHED = "NIT, kernels, CUDA graph", "SpikingJelly, StaticCudaGraph"


def bench_of(args: argparse.Namespace) -> tuple[Bench, Point]:
    """Where the peers run, and the network that comes first."""
    device = torch.device(args.device)
    return Bench.on(device, 4 if args.quick else 16), gpu.QUICK[0] if args.quick else gpu.HEADLINE


def gpu_run(args: argparse.Namespace, points: list[Point]) -> gpu.Run:
    """A run of benchmarks/gpu.py over some networks."""
    own = argparse.Namespace(
        device=args.device,
        quick=args.quick,
        replicas=4 if args.quick else 16,
        seconds=0.0 if args.quick else 1.0,
        minutes=0.9 * args.seconds / 60,  # so that it ends by itself
        output=args.result.parent / args.stage,
    )
    found = gpu.Run(own)
    found.grid = points
    return found


def versions(args: argparse.Namespace) -> Result:
    """What there is; and every kernel of every type compiled and loaded."""
    found: Result = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": gpu.installed(),
        "cuda": torch.version.cuda,
        "backends": {name: str(backend) for name, backend in backends().items()},
        "kernels": {},
    }
    if args.device == "cpu":
        return found
    properties = torch.cuda.get_device_properties(0)
    found["device"] = properties.name
    found["device_memory_bytes"] = properties.total_memory
    for folder in sorted(launching.FOLDER.glob("*/kernel.cu")):
        for real in launching.REALS:
            kernel = folder.parent.name
            found["kernels"][f"{kernel}, {real}"] = attempt(partial(_compiled, kernel, real))
    if any("failed" in kernel for kernel in found["kernels"].values()):
        found["failed"] = "a kernel does not compile"
    return found


def _compiled(kernel: str, real: torch.dtype) -> Result:
    function = launching._compiled(kernel, real)
    names = ("num_regs", "local_size_bytes", "shared_size_bytes", "max_threads_per_block")
    return {name: getattr(function, name, None) for name in names}


def tests(args: argparse.Namespace) -> Result:
    """The tests marked `gpu`, each with its outcome."""
    report = args.result.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", "-p", "source_tree", "-m", "gpu", "-q"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", "tests/dynamics/kernels"]
    command += ["--collect-only"] if args.device == "cpu" else []
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    found: Result = {"exit": done.returncode, "outcomes": {}, "failures": {}}
    if report.exists():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            bad = [child for child in case if child.tag in ("failure", "error")]
            kind = bad[0].tag if bad else "skipped" if len(case) else "passed"
            found["outcomes"][kind] = found["outcomes"].get(kind, 0) + 1
            if bad:
                found["failures"][case.get("name")] = (bad[0].get("message") or "")[:500]
    if done.returncode:
        found["failed"] = f"pytest: {found['outcomes']}"
    return found


def headline(args: argparse.Namespace) -> Result:
    """A learning step in float32 and bfloat16 by all peers of benchmarks/gpu.py."""
    points = gpu.QUICK[:2] if args.quick else gpu.GRID[:2]
    run = gpu_run(args, list(points))
    run.measures_kernels = False
    return run.all()


def grid(args: argparse.Namespace) -> Result:
    """The other networks of benchmarks/gpu.py."""
    run = gpu_run(args, list(gpu.QUICK[2:] if args.quick else gpu.GRID[2:]))
    run.measures_kernels = False
    return run.all()


def kernels(args: argparse.Namespace) -> Result:
    """Each kernel alone, beside a copy of as many bytes."""
    run = gpu_run(args, [])
    run.results = run.about()
    bench, point = bench_of(args)
    size = gpu_kernels.Size(*point.shape, bench.replicas)
    cases = gpu_kernels.cases(size, bench.device)
    with gpu.tqdm(total=len(cases), disable=True) as progress:
        run.results["kernels"] = [run.kernel(case, progress) for case in cases]
    return run.results


def graph(args: argparse.Namespace) -> Result:
    """A learning step eagerly and as a CUDA graph, NIT's and SpikingJelly's."""
    bench, point = bench_of(args)
    if args.device == "cpu":
        return {"skipped": "CUDA graphs need a GPU"}
    found = {}
    for each in (point, Point(width=128), Point(network="conv", steps=4, width=32)):
        x, y = bench.batch(each)
        peers = {KERNELS: None, JELLY: None, _GRAPHED: _nit_graph, _JELLY_GRAPHED: _jelly_graph}
        found[gpu.name_of(each)] = {
            name: attempt(partial(_graphed, bench, name, make, each, x, y))
            for name, make in peers.items()
        }
    return found


def _graphed(bench: Bench, name: str, make: Any, point: Point, x: Tensor, y: Tensor) -> Result:
    if make is not None:
        with make(bench, point, x, y) as step:
            return measure(step, bench.device, 0.5)
    with bench.step(name, point, x, y) as step:
        return measure(step, bench.device, 0.5)


@contextmanager
def _nit_graph(bench: Bench, point: Point, x: Tensor, y: Tensor) -> Iterator[Callable[[], Any]]:
    net = swap_neurons(bench.network(point, True), sigma=0.5)
    learner = NITLearner(net, replicas=bench.replicas, credit="none", seed=0)

    def step() -> Tensor:
        net.forget()
        with learner.record():
            losses = F.cross_entropy(net(x), y, reduction="none")
        return learner.backward(losses)

    with backend("cupy"):
        replay = cuda_graph(learner, step)
        first = [replay().clone() for _ in range(2)]
        if torch.equal(first[0], first[1]):
            raise RuntimeError("two replays had the same noise")
        yield replay
    learner.close()


@contextmanager
def _jelly_graph(bench: Bench, point: Point, x: Tensor, y: Tensor) -> Iterator[Callable[[], Any]]:
    from spikingjelly.activation_based._cuda_graph import StaticCudaGraph

    net = bench.network(point, True)

    def train(x: Tensor, y: Tensor) -> Tensor:
        net.zero_grad(set_to_none=False)
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        net.forget()
        return loss

    replay = StaticCudaGraph(train)
    for _ in range(5):
        replay(x, y)
    yield partial(replay, x, y)


def profile(args: argparse.Namespace) -> Result:
    """Launches, gaps and waits of a learning step, by torch's profiler."""
    bench, point = bench_of(args)
    found = {}
    for peer in (KERNELS, JELLY, COMPILED) if args.device == "cuda" else (KERNELS, JELLY):
        x, y = bench.batch(point)
        with bench.step(peer, point, x, y) as step:
            for _ in range(3):
                step()
            synchronize(bench.device)
            with torch.profiler.profile() as profiler:
                step()
                synchronize(bench.device)
        found[peer] = _summary(profiler)
    return found


def _summary(profiler: Any) -> Result:
    events = list(profiler.events())
    on_gpu = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in events
        if e.device_type == torch.autograd.DeviceType.CUDA
    )
    busy = sum(end - start for start, end, _ in on_gpu)
    span = max(e for _, e, _ in on_gpu) - on_gpu[0][0] if on_gpu else 0.0
    named: dict[str, list[float]] = {}
    for start, end, name in on_gpu:
        named.setdefault(name, []).append(end - start)
    longest = sorted(named.items(), key=lambda item: -sum(item[1]))[:15]
    return {
        "launches": len(on_gpu),
        "busy_us": busy,
        "span_us": span,
        "waits": sum("Synchronize" in e.name for e in events),
        "operators": sum(e.name.startswith("aten::") for e in events),
        "longest_us": {name[:120]: [len(times), sum(times)] for name, times in longest},
    }


class Small(nn.Module):
    """784-50-10, or two convolutions; T steps of one image; (N, 28, 28) to (N, 10)."""

    def __init__(self, conv: bool, steps: int) -> None:
        super().__init__()
        layer, neuron = jelly("layer"), jelly("neuron")
        self.conv, self.steps = conv, steps
        parts: list[nn.Module] = [layer.Linear(784, 50), neuron.LIFNode(), layer.Linear(50, 10)]
        if conv:
            parts = [
                *(layer.Conv2d(1, 8, 5, stride=2), neuron.LIFNode()),
                *(layer.Conv2d(8, 16, 5, stride=2), neuron.LIFNode()),
                *(layer.Flatten(), layer.Linear(256, 10)),
            ]
        self.body = nn.Sequential(*parts)
        jelly("functional").set_step_mode(self, "m")

    def forward(self, images: Tensor) -> Tensor:
        jelly("functional").reset_net(self)
        x = images.unsqueeze(1) if self.conv else images.flatten(1)
        return self.body(x.expand(self.steps, *x.shape)).sum(0)


def accuracy(args: argparse.Namespace) -> Result:
    """Two small networks, trained on the embedded images by the paper's NIT and by the default."""
    images, labels = load("mnist", data_dir="")
    device = torch.device(args.device)
    x, y = (images / 255).to(device), labels.long().to(device)
    train, test, batch, epochs = (64, 64, 32, 1) if args.quick else (8000, 2000, 100, 3)
    found = {}
    for conv in (False, True):
        for credit in ("none", "auto"):
            torch.manual_seed(0)
            net = swap_neurons(Small(conv, 8), sigma=0.5).to(device)
            learner = NITLearner(net, credit=credit, seed=0)
            optimizer = torch.optim.Adam(net.parameters(), 3e-3)
            for _ in range(epochs):
                for some in torch.randperm(train).split(batch):
                    optimizer.zero_grad()
                    with learner.record():
                        xr, yr = learner.expand(x[some.to(device)], y[some.to(device)])
                        losses = F.cross_entropy(net(xr), yr, reduction="none")
                    learner.backward(losses)
                    optimizer.step()
            learner.close()
            with torch.no_grad():
                right = net(x[-test:]).argmax(1) == y[-test:]
            name = f"{'convolutions' if conv else '784-50-10'}, credit={credit!r}"
            found[name] = right.float().mean().item()
    return {"accuracy": found, "images": train, "epochs": epochs}


STAGES: dict[str, Callable[[argparse.Namespace], Result]] = {
    "versions": versions,
    "tests": tests,
    "headline": headline,
    "graph": graph,
    "kernels": kernels,
    "profile": profile,
    "accuracy": accuracy,
    "grid": grid,
}
