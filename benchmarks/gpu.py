"""A learning step by NIT's kernels, by torch's operators, and by backpropagation through time.

    python benchmarks/gpu.py

The same networks of LIF neurons and the same batch for snnTorch, SpikingJelly (plain and compiled)
and NIT, which learns on SpikingJelly's network after `swap_neurons`; time and peak memory of
forward, loss and backward over time steps and widths, beside what a step takes at the least at the
bandwidth and the matrix products of this device; and each kernel alone. Needs a CUDA device and
less than ten minutes, the headline first. Writes gpu.json and gpu.png to --output.

    python benchmarks/gpu.py --device cpu --quick

tries the script itself, on tiny sizes without a GPU: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_kernels
import source_tree  # noqa: F401, nit_snn need not be installed
import torch
from gpu_measure import Result, attempt, copy_rate, floor, matmul_rate, measure
from gpu_peers import (
    AUTOCAST,
    COMPILED,
    DTYPES,
    EXPANDED,
    JELLY,
    KERNELS,
    MEMOPT,
    SNNTORCH,
    USUAL,
    Bench,
    Point,
    jelly,
)
from gpu_report import headline_of, notes, picture, ratios, show, show_kernels, show_summary
from tqdm import tqdm

from nit_snn.dynamics.kernels.launch import LAUNCHED

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADLINE = Point()
GRID = [
    HEADLINE,
    Point(dtype="bfloat16"),
    *(Point(width=width) for width in (128, 1024)),
    *(Point("conv", steps, 32) for steps in (4, 32)),
    *(Point(steps=steps, width=1024) for steps in (4, 32, 512)),
    Point(width=8192),
]
QUICK = [
    Point("linear", 4, 16, 8),
    Point("linear", 4, 16, 8, "bfloat16"),
    Point("conv", 4, 8, 8),
]
PACKAGES = (
    "nit-snn",
    "torch",
    "triton",
    "snntorch",
    "spikingjelly",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


def peers_of(point: Point, headline: Point) -> tuple[str, ...]:
    """Who is measured there."""
    if point.dtype != "float32":
        return (KERNELS, JELLY, COMPILED, AUTOCAST)
    return (*USUAL, EXPANDED, MEMOPT) if point == headline else USUAL


def name_of(point: Point) -> str:
    shape = f"{point.width}-{point.width}-{point.width}-10"
    if point.network == "conv":
        shape = f"conv on {point.width} x {point.width}"
    return f"{shape}, T = {point.steps}, {point.rows} rows, {point.dtype}"


class Run:
    """One run of the benchmark; the results so far are written after each network."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.grid, self.headline = (QUICK, QUICK[0]) if args.quick else (GRID, HEADLINE)
        self.bench = Bench.on(self.device, args.replicas)
        self.missing = self.bench.missing()
        if {SNNTORCH, JELLY} <= set(self.missing):
            raise SystemExit(
                "There is no network to learn on: neither snntorch nor spikingjelly can be "
                'imported. pip install "nit-snn[snntorch,spikingjelly]"'
            )
        self.deadline = time.monotonic() + 60 * args.minutes
        self.results: Result = {}
        self.measures_kernels = True

    def all(self) -> Result:
        self.results = self.about()
        for name, reason in self.missing.items():
            print(f"{name} is left out: {reason}")
        work = [(point, peer) for point in self.grid for peer in self.peers(point)]
        size = gpu_kernels.Size(*self.headline.shape, self.args.replicas)
        kernels: list[gpu_kernels.Case] = []
        if self.measures_kernels and KERNELS not in self.missing:
            kernels = gpu_kernels.cases(size, self.device)
        with tqdm(total=len(work) + len(kernels)) as progress:
            for point in self.grid:
                self.results["points"].append(self.point(point, progress))
                if len(self.results["points"]) == 2:  # the headline, in both types
                    self.results["kernels"] = [self.kernel(case, progress) for case in kernels]
                self.results["headline"] = headline_of(self.results["points"])
                self.write()
        return self.results

    def peers(self, point: Point) -> list[str]:
        return [p for p in peers_of(point, self.headline) if p not in self.missing]

    def point(self, point: Point, progress: Any) -> Result:
        """All that is measured on one network."""
        peers = {}
        for peer in self.peers(point):
            progress.set_description(f"{name_of(point)}: {peer}")
            peers[peer] = self.timed(partial(self.peer, peer, point))
            progress.update()
        found = {
            "name": name_of(point),
            **vars(point),
            "floor": {
                "NIT": floor(point, False, self.results["rates"]),
                "BPTT": floor(point, True, self.results["rates"]),
            },
            "peers": peers,
            "ratios": ratios(peers),
        }
        show(found, progress.write)
        return found

    def peer(self, peer: str, point: Point) -> Result:
        """A learning step of one of them; nothing of it is left behind."""
        x, y = self.bench.batch(point)
        before = launches()
        with self.bench.step(peer, point, x, y) as step:
            found = measure(step, self.device, self.args.seconds)
        if self.device.type == "cuda" and (peer in (KERNELS, EXPANDED)) != (launches() > before):
            raise RuntimeError("what ran were not the kernels, or it was them where it should not")
        return found

    def kernel(self, case: gpu_kernels.Case, progress: Any) -> Result:
        progress.set_description(f"{case.kernel} alone")
        matmul = self.results["rates"]["matmul_flops_per_second"]["float32"]
        found = self.timed(partial(case.measured, self.device, self.args.seconds, matmul))
        progress.update()
        return {"kernel": case.kernel, "dtype": case.dtype, **vars(case.size), **found}

    def timed(self, what: Callable[[], Result]) -> Result:
        if time.monotonic() > self.deadline:
            return {"failed": f"not measured: the {self.args.minutes:g} minutes were over"}
        return attempt(what)

    def about(self) -> Result:
        """All but the measurements."""
        size, moved = (64, 2**16) if self.args.quick else (8192, 2**31)
        gpu = self.device.type == "cuda"
        properties = torch.cuda.get_device_properties(self.device) if gpu else None
        return {
            "command": " ".join(["python", *sys.argv]),
            "device": device_name(properties, self.args.quick),
            "device_memory_bytes": properties.total_memory if properties else None,
            "cuda": torch.version.cuda,
            "versions": installed(),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "replicas": self.args.replicas,
            "seconds": self.args.seconds,
            "notes": notes(self.bench, self.args.quick),
            "missing": self.missing,
            "spikingjelly_neurons": implementations(self.bench),
            "rates": {
                "copy_bytes_per_second": copy_rate(moved, self.device),
                "copy_moved_bytes": moved,
                "matmul_flops_per_second": {
                    d: matmul_rate(getattr(torch, d), size, self.device) for d in DTYPES
                },
                "matmul_size": size,
            },
            "points": [],
            "headline": {},
            "kernels": [],
        }

    def write(self) -> None:
        self.args.output.mkdir(parents=True, exist_ok=True)
        path = self.args.output / "gpu.json"
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps(self.results, indent=1) + "\n")
        unfinished.replace(path)  # a run that is killed here keeps what it had


def device_name(properties: Any, quick: bool) -> str:
    if properties is None:
        return "cpu, quick: no GPU numbers"
    return f"{properties.name}, quick: tiny sizes" if quick else properties.name


def launches() -> int:
    """How many kernels of nit_snn have run."""
    return sum(LAUNCHED.values())


def installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def implementations(bench: Bench) -> Result:
    """Which code SpikingJelly's LIF neurons take here."""
    if "spikingjelly" in bench.obstacles:
        return {}
    ask = jelly("functional").neuron_implementation
    return {
        how: attempt(partial(ask, "lif", bench.device, execution=how))
        for how in ("eager", "compile")
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--quick", action="store_true", help="tiny sizes, to try the script; goes with any device")
    add("--replicas", type=int, help="of each sample in NIT's rows; default: 16, quick: 4")
    add("--seconds", type=float, help="for repetitions of each step; default: 1.5, quick: 0")
    add("--minutes", type=float, default=9.0, help="nothing is begun after so many; default: 9")
    add("--output", type=Path, help="folder; default: docs/benchmarks, quick: runs/gpu")
    args = parser.parse_args()
    if args.device == "cpu" and not args.quick:
        parser.error("without a GPU there is only --device cpu --quick, which tries the script")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark needs a CUDA device, and torch sees none here. "
            "`--device cpu --quick` tries the script without one; its numbers mean nothing."
        )
    args.replicas = args.replicas or (4 if args.quick else 16)
    args.seconds = (0.0 if args.quick else 1.5) if args.seconds is None else args.seconds
    args.output = args.output or (Path("runs/gpu") if args.quick else DOCS / "benchmarks")
    if args.quick and args.output.resolve().is_relative_to(DOCS):
        parser.error(f"what --quick measures does not belong into {DOCS.name}/; name another place")
    odd = [p.rows for p in (QUICK if args.quick else GRID) if p.rows % args.replicas]
    if args.replicas < 2 or odd:
        parser.error(f"--replicas must be at least 2 and divide the rows, {QUICK[0].rows} or 256")
    return args


def main() -> None:
    args = parse_arguments()
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        results = Run(args).all()
    show_kernels(results["kernels"])
    show_summary(results)
    picture(results, args.output / "gpu.png")


if __name__ == "__main__":
    main()
