"""The cost model of many processes, against steps of 1, 2 and 4 of them on one machine.

    python benchmarks/scaling.py

Processes of one thread each, joined by gloo, learn with networks of several widths, with few rows
and with many, replicas or samples shared out. What goes through the collectives is counted where
torch is called, and timed. What is fitted: the four times of `scaling_model.Processor` from the
steps of one process, and a hop and a bandwidth from bare sums of 2 and 4 processes; the steps
of 2 and 4 are then foretold. Cases take turns, round after round, and times are those of the
fastest round: whatever else the machine does only adds to them, and the quartiles tell how much.
Writes scaling.json, with the tables for 1 to 1,000 GPUs too, and scaling.png to --output, and
puts all tables into --document.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy.optimize import nnls
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import scaling_tables
import training
from scaling_model import (
    Fabric,
    Processor,
    Step,
    all_reduce_seconds,
    communication_seconds,
    compute_seconds,
    crowding,
    messages,
    step_seconds,
    wire_bytes,
    work,
)

RANKS = (1, 2, 4)
STEPS = 8
#: (samples, replicas): few rows and many.
ROWS = ((16, 16), (64, 16))
PARTS = ("compute", "communication", "step")
#: Bytes of the messages that are summed by themselves.
BARE = tuple(4**k for k in range(1, 13))
#: How often the largest of them is summed while the network's bytes are counted.
WIRE = 5


class Net(nn.Module):
    """Dense layers of LIF neurons on a static input, and a linear readout summed over time."""

    def __init__(self, widths: Sequence[int], steps: int) -> None:
        super().__init__()
        self.steps = steps
        *hidden, last = [layer.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*(m for fc in hidden for m in (fc, neuron.LIFNode())), last)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.layers(x.expand(self.steps, *x.shape)).sum(0)


@dataclass(frozen=True)
class Sum:
    """One call of a collective."""

    name: str
    bytes: int
    seconds: float
    own_seconds: float


@contextmanager
def metered() -> Iterator[list[Sum]]:
    """Every collective that torch is asked for inside; its own seconds are those of this thread."""
    found: list[Sum] = []

    def meter(call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            wall, own = time.perf_counter(), time.thread_time()
            result = call(tensor, *args, **kwargs)
            wall, own = time.perf_counter() - wall, time.thread_time() - own
            found.append(Sum(call.__name__, tensor.numel() * tensor.element_size(), wall, own))
            return result

        return measured

    calls = {name: getattr(dist, name) for name in ("all_reduce", "broadcast")}
    for name, call in calls.items():
        setattr(dist, name, meter(call))
    try:
        yield found
    finally:
        for name, call in calls.items():
            setattr(dist, name, call)


def loopback_bytes() -> int | None:
    """What has gone over the machine's network with itself so far, where Linux tells it."""
    counters = Path("/proc/net/dev")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[1]) for line in lines if line.strip().startswith("lo:")), None)


def learning_step(step: Step, seed: int) -> Callable[[], None]:
    """What a process does in each step; every process of the group has to call this."""
    torch.manual_seed(seed)
    net = swap_neurons(Net(step.widths, step.steps), sigma=0.5)
    x = torch.rand(step.samples, step.widths[0])
    y = torch.randint(step.widths[-1], (step.samples,))
    learner = NITLearner(net, replicas=step.replicas, credit="none", shard=step.shares, seed=seed)
    if step.shares == "samples":
        x, y = (t.chunk(step.ranks)[dist.get_rank()] for t in (x, y))

    def learn() -> None:
        net.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        learner.backward(losses)

    return learn


def cases(ranks: int, widths: Sequence[int]) -> list[Step]:
    """What so many processes do; one alone gets the shares of more, too, to be fitted to."""
    networks = [[784, width, width, 10] for width in widths]
    if ranks > 1:
        return [
            Step(network, STEPS, samples, replicas, shares, ranks)
            for network in networks
            for samples, replicas in ROWS
            for shares in ("replicas", "samples")
        ]
    shares = {(b, c // r) for b, c in ROWS for r in RANKS}
    shares |= {(b // r, c) for b, c in ROWS for r in RANKS}
    return [Step(network, STEPS, *own) for network in networks for own in sorted(shares)]


def take_part(
    rank: int, size: int, folder: str, steps: Sequence[Step], rounds: int, seed: int
) -> None:
    """One process: all steps in turns; what it measured goes into a file."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    attached, learn = [], []
    for step in steps:
        with metered() as sums:
            learn.append(learning_step(step, seed))
        attached.append([s.bytes for s in sums])
    buffers = [torch.zeros(count // 4) for count in BARE if size > 1]
    found: list[list[Any]] = [[] for _ in learn]
    bare: list[list[float]] = [[] for _ in buffers]
    for turn in range(rounds + 1):
        for one, turns in zip(learn, found, strict=True):
            dist.barrier()
            with metered() as sums:
                wall, own = time.perf_counter(), time.thread_time()
                one()
                wall, own = time.perf_counter() - wall, time.thread_time() - own
            own -= sum(s.own_seconds for s in sums)
            if turn:  # the first one warms up
                turns.append((wall, own, [(s.bytes, s.seconds) for s in sums]))
        for buffer, times in zip(buffers, bare, strict=True):
            for _ in range(3):
                dist.barrier()
                started = time.perf_counter()
                dist.all_reduce(buffer)
                times.append(time.perf_counter() - started)
    dist.barrier()
    before = loopback_bytes()
    dist.barrier()  # nobody has sent anything yet
    for _ in range(WIRE if buffers else 0):
        dist.all_reduce(buffers[-1])
    dist.barrier()
    after = loopback_bytes()
    wire = None if before is None or after is None else (after - before) / WIRE
    results = {"attached": attached, "steps": found, "bare": bare, "wire": wire}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def measure(steps: Sequence[Step], rounds: int, seed: int) -> list[dict[str, Any]]:
    """What each process of the group measured; all steps are of one number of processes."""
    size = steps[0].ranks
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(take_part, (size, folder, steps, rounds, seed), nprocs=size)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


def rows_of_steps(found: list[dict[str, Any]], steps: Sequence[Step]) -> list[dict[str, Any]]:
    """A row for each step.

    A process that comes last to a sum waits for nobody, so the shortest of the processes' times
    is what the sum itself takes. Computing is time of the processor, without waiting for a core.
    """
    rows = []
    for i, step in enumerate(steps):
        turns = list(zip(*(one["steps"][i] for one in found), strict=True))
        # The same for all processes, in all turns.
        (sent,) = {tuple(count for count, _ in sums) for turn in turns for *_, sums in turn}
        own = min(statistics.mean(own for _, own, _ in turn) for turn in turns)
        each = zip(*([s for _, s in sums] for turn in turns for *_, sums in turn), strict=True)
        whole = [max(wall for wall, *_ in turn) for turn in turns]
        fastest = (own, sum(min(times) for times in each), min(whole))
        quartiles = statistics.quantiles(whole, n=4, method="inclusive")[::2]
        rows.append(
            {
                **asdict(step),
                "rows": step.rows,
                "bytes_when_attached": found[0]["attached"][i],
                "bytes_counted": list(sent),
                "measured": dict(zip(PARTS, (1000 * t for t in fastest), strict=True)),
                "quartiles_of_step": [1000 * q for q in quartiles],
            }
        )
    return rows


def rows_of_sums(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each size of message, summed by itself."""
    rows = []
    for i, count in enumerate(BARE if len(found) > 1 else ()):
        fastest = min(min(one["bare"][i]) for one in found)
        rows.append({"ranks": len(found), "bytes": count, "milliseconds": 1000 * fastest})
    return rows


def step_of(row: dict[str, Any]) -> Step:
    return Step(**{field.name: row[field.name] for field in fields(Step)})


def fitted(amounts: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """How long each amount takes, none of it less than nothing, by least relative squares."""
    relative = torch.tensor(amounts, dtype=torch.float64) / torch.tensor(seconds)[:, None]
    scale = relative.norm(dim=0)  # amounts differ by many orders of magnitude
    found, _ = nnls((relative / scale).numpy(), torch.ones(len(seconds)).numpy())
    return [float(x / s) for x, s in zip(found, scale, strict=True)]


def fit_processor(rows: Sequence[dict[str, Any]], cores: int) -> Processor:
    """From the steps of one process."""
    seconds = [row["measured"]["compute"] / 1000 for row in rows]
    return Processor(*fitted([work(step_of(row)) for row in rows], seconds), cores=cores)


def fit_fabric(bare: Sequence[dict[str, Any]], cores: int) -> Fabric:
    """From bare sums: a ring's hops, and its bytes."""
    amounts = []
    for row in bare:
        ring, crowd = 2 * (row["ranks"] - 1), crowding(row["ranks"], cores)
        amounts.append([crowd * ring, crowd * ring / row["ranks"] * row["bytes"]])
    hop, byte = fitted(amounts, [row["milliseconds"] / 1000 for row in bare])
    return Fabric(hop_inside=hop, inside=1 / byte if byte else math.inf, cores=cores)


def foretell(row: dict[str, Any], processor: Processor, fabric: Fabric) -> dict[str, Any]:
    """A row, and what the model says of it."""
    step = step_of(row)
    times = (
        compute_seconds(step, processor),
        communication_seconds(step, fabric),
        step_seconds(step, processor, fabric),
    )
    model = dict(zip(PARTS, (1000 * t for t in times), strict=True))
    return {**row, "bytes_of_model": messages(step), "model": model}


def agreement(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times the measured time the model says: median, smallest and largest."""
    found = []
    for ranks in RANKS:
        row: dict[str, Any] = {"ranks": ranks}
        for key in PARTS if ranks > 1 else PARTS[:1]:
            own = (r for r in rows if r["ranks"] == ranks)
            ratios = [r["model"][key] / r["measured"][key] for r in own]
            row[key] = [statistics.median(ratios), min(ratios), max(ratios)]
        found.append(row)
    return found


def markdown(results: dict[str, Any]) -> dict[str, str]:
    """All tables of docs/scaling.md, by name."""
    lines = []
    for row in results["rows"]:
        if row["ranks"] > 1:
            pairs = ((row["measured"][k], row["model"][k]) for k in PARTS)
            lines.append(
                (
                    row["shares"],
                    str(row["ranks"]),
                    str(row["widths"][1]),
                    str(row["rows"]),
                    f"{sum(row['bytes_counted']):,}",
                    *(f"{x:.2f}" for pair in pairs for x in pair),
                )
            )
    head = ("shared", "ranks", "width", "rows of a rank", "bytes", "compute", "model")
    head += ("communication", "model", "step", "model")
    ratios = [
        (
            str(row["ranks"]),
            *(
                "{:.2f} ({:.2f} to {:.2f})".format(*row[key]) if key in row else "-"
                for key in PARTS
            ),
        )
        for row in results["agreement"]
    ]
    wire = [
        (
            str(row["ranks"]),
            *("-" if row[k] is None else f"{row[k]:,.0f}" for k in row if k != "ranks"),
        )
        for row in results["bytes_on_the_wire"]
    ]
    fit = [(key, f"{value:.3g}") for key, value in results["fitted"].items()]
    ran = [
        ("machine", results["machine"]),
        ("load average before", f"{results['load_average_before']:.1f}"),
        ("rounds", str(results["rounds"])),
    ]
    return {
        "run": scaling_tables.table(("measured on", ""), ran),
        "fitted": scaling_tables.table(("fitted", ""), fit),
        "wire": scaling_tables.table(("ranks", "message", "counted", "model"), wire),
        "measured": scaling_tables.table(head, lines),
        "agreement": scaling_tables.table(("ranks", *PARTS), ratios),
        **scaling_tables.markdown(results["tables"]),
    }


def filled(document: str, tables: dict[str, str]) -> str:
    """A page with all its tables put where their names are."""
    for title, text in tables.items():
        pattern = rf"(<!-- table: {title} -->\n).*?(\n<!-- end -->)"
        document, found = re.subn(pattern, rf"\1{text}\2", document, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"The page has {found} places for the table {title!r}.")
    return document


def picture(results: dict[str, Any], fabric: Fabric, path: Path) -> None:
    figure, grid = plt.subplots(2, 2, figsize=(8.6, 7), layout="constrained")
    axes = grid.flat[:3]
    grid.flat[3].axis("off")
    for ranks, colour in zip(RANKS, ("0.3", "C0", "C1"), strict=False):
        bare = [row for row in results["all_reduce"] if row["ranks"] == ranks]
        sizes = [row["bytes"] for row in bare]
        lines = [1000 * all_reduce_seconds(count, ranks, fabric) for count in sizes]
        if bare:
            points = [row["milliseconds"] for row in bare]
            axes[0].plot(sizes, points, "o", color=colour, label=f"{ranks} processes")
            axes[0].plot(sizes, lines, color=colour)
        for (samples, replicas), mark, dash in zip(ROWS, "os", ("--", "-"), strict=True):
            rows = [
                row
                for row in results["rows"]
                if (row["ranks"], row["samples"], row["replicas"]) == (ranks, samples, replicas)
                and row["shares"] == "replicas"
            ]
            for axis, key in ((axes[1], "compute"), (axes[2], "communication")):
                if ranks == 1 and key == "communication":
                    continue
                x = [row["widths"][1] for row in rows]
                label = f"{ranks}, {samples * replicas:,} rows"
                axis.plot(
                    x, [row["measured"][key] for row in rows], mark, color=colour, label=label
                )
                axis.plot(x, [row["model"][key] for row in rows], dash, color=colour)
    axes[0].set(xlabel="bytes of a message", title="a bare all-reduce")
    axes[1].set(xlabel="width of the hidden layers", title="a step: compute")
    axes[2].set(xlabel="width of the hidden layers", title="a step: communication")
    for axis in axes:
        axis.set(xscale="log", yscale="log", ylabel="milliseconds")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle("Points: measured, replicas shared out. Lines: the model.", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    add("--rounds", type=int, default=10)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("docs/benchmarks"))
    add("--document", type=Path, default=Path("docs/scaling.md"))
    args = parser.parse_args()
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    rows, bare, wire = [], [], []
    for size in RANKS:
        steps = cases(size, args.widths)
        found = measure(steps, args.rounds, args.seed)
        rows += rows_of_steps(found, steps)
        bare += rows_of_sums(found)
        if size > 1:
            of_all = size * wire_bytes(BARE[-1], size)
            counted = found[0]["wire"]
            wire.append({"ranks": size, "message": BARE[-1], "counted": counted, "model": of_all})
    processor = fit_processor([row for row in rows if row["ranks"] == 1], cores)
    fabric = fit_fabric(bare, cores)
    rows = [foretell(row, processor, fabric) for row in rows]
    tables = scaling_tables.all_tables()
    results = {
        "command": " ".join(["python", *sys.argv]),
        "rounds": args.rounds,
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "spikingjelly", "scipy"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, {cores} cores, "
        "1 thread per process",
        "load_average_before": load,
        "fitted": {
            "seconds of any step": processor.fixed,
            "seconds of an operation": processor.flop,
            "seconds of a neuron and time step": processor.neuron_step,
            "seconds of a parameter": processor.parameter,
            "seconds of a hop": fabric.hop_inside,
            "seconds of a byte": 1 / fabric.inside,
        },
        "agreement": agreement(rows),
        "rows": rows,
        "all_reduce": bare,
        "bytes_on_the_wire": wire,
        "assumptions_of_tables": scaling_tables.ASSUMPTIONS,
        "tables": tables,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "scaling.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(results, fabric, args.output / "scaling.png")
    page = filled(args.document.read_text(), markdown(results))
    args.document.write_text(page)


if __name__ == "__main__":
    main()
