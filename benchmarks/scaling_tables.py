"""The cost model for 1 to 1,000 GPUs, under assumptions, as tables of docs/scaling.md.

Nothing here is measured. The assumptions have names, and are written beside what follows of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from scaling_model import (
    Fabric,
    Processor,
    Step,
    all_reduce_seconds,
    bptt_flops,
    bptt_kept_bytes,
    break_even_widths,
    communication_seconds,
    flops,
    gradient_bytes,
    kept_bytes,
    messages,
    parameters,
    step_seconds,
    wire_bytes,
)

H100 = "[H100 SXM](https://www.nvidia.com/en-us/data-center/h100/)"
DGX = "[DGX H100](https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html)"
NCCL = (
    "[NCCL's own model](https://github.com/NVIDIA/nccl/blob/"
    "01afd20a77b5804e0ecf1042509dd9d20ebf9e93/src/graph/tuning.cc), protocol LL128"
)
#: What the tables rest on: a number, and where it is from.
ASSUMPTIONS: dict[str, tuple[float, str]] = {
    "float32 operations per second": (67e12, H100),
    "TF32 operations per second": (494.5e12, f"{H100}: half of the 989 with sparsity"),
    "bytes of GPU memory per second": (3.35e12, H100),
    "bytes per second from one GPU, NVLink": (450e9, f"{H100}: 900 in both directions"),
    "bytes per second from one node, InfiniBand": (400e9, f"{DGX}: eight cards of 400 Gb/s"),
    "bytes per second from one node, Ethernet": (12.5e9, "chosen: one card of 100 Gb/s"),
    "GPUs of a node": (8, DGX),
    "share of each rate that is reached": (0.5, "chosen"),
    "bytes of memory traffic of a neuron and time step": (32, "counted, see below"),
    "bytes of memory traffic of a parameter": (28, "counted, see below"),
    "seconds of any step": (1e-3, "chosen: Python, and the launch of kernels"),
    "seconds of any collective": (10e-6, f"{NCCL}, ring"),
    "seconds of a hop within a node": (1.9e-6, f"{NCCL}, ring"),
    "seconds of a hop between nodes": (8.5e-6, f"{NCCL}, tree"),
}
NETWORKS = ([784, 50, 10], [784, 1024, 1024, 10], [784, 4096, 4096, 10])
STEPS, SAMPLES, REPLICAS = 8, 1000, 64
OWN_SAMPLES, OWN_REPLICAS = 64, 16
GPUS = (1, 2, 4, 8, 40, 200, 1000)
SHARERS = (1, 2, 4, 8, 16, 32, 64)


def name(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def processor(kind: str = "float32") -> Processor:
    """A GPU, whose neurons take as long as its memory does."""
    a = {key: value for key, (value, _) in ASSUMPTIONS.items()}
    reached = a["share of each rate that is reached"]
    memory = a["bytes of GPU memory per second"] * reached
    return Processor(
        fixed=a["seconds of any step"],
        flop=1 / (a[f"{kind} operations per second"] * reached),
        neuron_step=a["bytes of memory traffic of a neuron and time step"] / memory,
        parameter=a["bytes of memory traffic of a parameter"] / memory,
    )


def fabric(kind: str) -> Fabric:
    """Nodes of GPUs on NVLink, with "InfiniBand" or "Ethernet" between them."""
    a = {key: value for key, (value, _) in ASSUMPTIONS.items()}
    reached = a["share of each rate that is reached"]
    return Fabric(
        hop_inside=a["seconds of a hop within a node"],
        inside=a["bytes per second from one GPU, NVLink"] * reached,
        hop_between=a["seconds of a hop between nodes"],
        between=a[f"bytes per second from one node, {kind}"] * reached,
        per_node=int(a["GPUs of a node"]),
        base=a["seconds of any collective"],
        trees=True,
    )


FABRICS = ("InfiniBand", "Ethernet")


def strong(shares: str, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """The same batch on more and more GPUs: seconds, and how many times faster than on one."""
    rows = []
    for size in ranks:
        for widths in NETWORKS:
            alone = Step(widths, STEPS, SAMPLES, REPLICAS)
            step = Step(widths, STEPS, SAMPLES, REPLICAS, shares, size)
            row: dict[str, Any] = {"gpus": size, "network": name(widths), "rows": step.rows}
            for kind in FABRICS:
                seconds = step_seconds(step, processor(), fabric(kind))
                once = step_seconds(alone, processor(), fabric(kind))
                row[kind] = {"seconds": seconds, "speedup": once / seconds}
            rows.append(row)
    return rows


def weak() -> list[dict[str, Any]]:
    """The same rows per GPU: seconds, and which share of them is spent on messages."""
    rows = []
    for size in GPUS:
        for widths in NETWORKS:
            step = Step(widths, STEPS, OWN_SAMPLES * size, OWN_REPLICAS, "samples", size)
            row: dict[str, Any] = {"gpus": size, "network": name(widths), "rows": step.rows}
            for kind in FABRICS:
                seconds = step_seconds(step, processor(), fabric(kind))
                share = communication_seconds(step, fabric(kind)) / seconds
                row[kind] = {"seconds": seconds, "messages": share}
            rows.append(row)
    return rows


def sent() -> list[dict[str, Any]]:
    """What a GPU sends in a step, of 1,000."""
    rows = []
    for widths in NETWORKS:
        step = Step(widths, STEPS, SAMPLES, SAMPLES, "replicas", GPUS[-1])
        flag, baseline, gradient, mean = messages(step)
        rows.append(
            {
                "network": name(widths),
                "parameters": parameters(widths),
                "gradient": gradient,
                "baseline": baseline,
                "others": flag + mean,
                "sent": sum(wire_bytes(m, step.ranks) for m in messages(step)),
                "bptt": wire_bytes(4 * parameters(widths), step.ranks),
            }
        )
    return rows


def kept() -> list[dict[str, Any]]:
    """What a GPU keeps between the forward and the backward pass, and computes in products."""
    rows = []
    for widths in NETWORKS:
        for steps in (STEPS, 100):
            step = Step(widths, steps, OWN_SAMPLES, OWN_REPLICAS)
            again, stored = kept_bytes(step, False), kept_bytes(step, True)
            rows.append(
                {
                    "network": name(widths),
                    "steps": steps,
                    **{key: again[key] for key in ("input", "bits")},
                    "noise": stored["noise"],
                    "bptt": bptt_kept_bytes(step),
                    "gradient": gradient_bytes(widths),
                    "flops_over_bptt": flops(step) / bptt_flops(step),
                }
            )
    return rows


def break_even() -> list[dict[str, Any]]:
    """Between which widths a square layer computes longer than its gradient travels."""
    rows = []
    for row_steps in (8, 64, 512, 4096, 32768):
        row: dict[str, Any] = {"row_steps": row_steps}
        for kind in ("float32", "TF32"):
            for label, size, between in (
                ("8, NVLink", 8, "InfiniBand"),
                ("1,000, InfiniBand", 1000, "InfiniBand"),
                ("1,000, Ethernet", 1000, "Ethernet"),
            ):
                found = break_even_widths(row_steps, size, processor(kind), fabric(between))
                # JSON has no infinity.
                row[f"{kind}, {label}"] = found and [w if w < math.inf else None for w in found]
        rows.append(row)
    return rows


def latencies() -> list[dict[str, Any]]:
    """What an empty message takes, and the largest gradient here."""
    largest = messages(Step(NETWORKS[-1], STEPS, SAMPLES, REPLICAS))[0]
    return [
        {
            "gpus": size,
            **{
                kind: [all_reduce_seconds(m, size, fabric(kind)) for m in (0, largest)]
                for kind in FABRICS
            },
        }
        for size in GPUS[1:]
    ]


def all_tables() -> dict[str, list[dict[str, Any]]]:
    """Every table, by name."""
    return {
        "sent": sent(),
        "kept": kept(),
        "latencies": latencies(),
        "strong_samples": strong("samples", GPUS),
        "strong_replicas": strong("replicas", SHARERS),
        "weak": weak(),
        "break_even": break_even(),
    }


def markdown(tables: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """The same as Markdown."""
    return {
        "assumptions": table(
            ("assumed", "", "source"),
            [(key, f"{value:g}", source) for key, (value, source) in ASSUMPTIONS.items()],
        ),
        "sent": table(
            ("network", "parameters", "gradient", "baseline", "the rest", "one GPU sends", "BPTT"),
            [
                (
                    row["network"],
                    f"{row['parameters']:,}",
                    size(row["gradient"]),
                    size(row["baseline"]),
                    size(row["others"]),
                    size(row["sent"]),
                    size(row["bptt"]),
                )
                for row in tables["sent"]
            ],
        ),
        "kept": table(
            (
                "network",
                "T",
                "input",
                "bits",
                "noise, if stored",
                "BPTT, at least",
                "gradient",
                "products / BPTT's",
            ),
            [
                (
                    row["network"],
                    str(row["steps"]),
                    *(size(row[k]) for k in ("input", "bits", "noise", "bptt")),
                    size(row["gradient"]),
                    f"{row['flops_over_bptt']:.1f}",
                )
                for row in tables["kept"]
            ],
        ),
        "latencies": table(
            ("GPUs", *(f"{kind}: {what}" for kind in FABRICS for what in ("empty", "largest"))),
            [
                (f"{row['gpus']:,}", *(milliseconds(t) for kind in FABRICS for t in row[kind]))
                for row in tables["latencies"]
            ],
        ),
        "strong_samples": by_network(tables["strong_samples"], "speedup", "{:.1f}x"),
        "strong_replicas": by_network(tables["strong_replicas"], "speedup", "{:.1f}x"),
        "weak": by_network(tables["weak"], "messages", "{:.0%}"),
        "break_even": table(
            ("T x rows", *list(tables["break_even"][0])[1:]),
            [
                (f"{row['row_steps']:,}", *(span(row[key]) for key in list(row)[1:]))
                for row in tables["break_even"]
            ],
        ),
    }


def by_network(rows: list[dict[str, Any]], key: str, form: str) -> str:
    """Milliseconds, and something besides, of every network on both fabrics."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    lines = []
    for size in dict.fromkeys(row["gpus"] for row in rows):
        own = [row for row in rows if row["gpus"] == size]
        cells = (
            f"{milliseconds(row[kind]['seconds'])} ({form.format(row[kind][key])})"
            for row in own
            for kind in FABRICS
        )
        lines.append((f"{size:,}", f"{own[0]['rows']:,}", *cells))
    return table(("GPUs", "rows", *(f"{n}, {kind}" for n in networks for kind in FABRICS)), lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def milliseconds(seconds: float) -> str:
    """To three digits, without an exponent.

    Example:
        >>> milliseconds(1.0912)
        '1,090'
    """
    return f"{float(f'{1000 * seconds:.3g}'):,g}"


def size(count: float) -> str:
    """Bytes for people.

    Example:
        >>> size(159056)
        '159 kB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.3g} B"


def span(widths: Sequence[float | None] | None) -> str:
    """Between which widths, for people; none at all is a dash."""
    if widths is None:
        return "-"
    low, high = widths
    return f"from {low:.0f}" if high is None else f"{low:.0f} to {high:.0f}"
