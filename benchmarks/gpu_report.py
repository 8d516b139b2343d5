"""What the numbers of benchmarks/gpu.py come to: ratios, tables, notes and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from gpu_measure import Result
from gpu_peers import DTYPES, EXPANDED, JELLY, KERNELS, RATE, SIGMA, USUAL, Bench

FASTEST = "SpikingJelly, fastest"


def ratios(peers: dict[str, Result]) -> dict[str, Result]:
    """How many times the time and the peak memory of NIT's kernels each other peer takes."""
    measured = {name: found for name, found in peers.items() if "ms" in found}
    base = measured.pop(KERNELS, None)
    if base is None:
        return {}
    found: dict[str, Result] = {}
    for name, other in measured.items():
        memory = None
        if other["peak_bytes"] is not None and base["peak_bytes"]:
            memory = other["peak_bytes"] / base["peak_bytes"]
        found[name] = {"time": other["ms"] / base["ms"], "memory": memory}
    frameworks = [name for name in found if name.startswith(JELLY)]
    if frameworks:
        fastest = min(frameworks, key=lambda name: found[name]["time"])
        found[FASTEST] = {"peer": fastest, **found[fastest]}
    return found


def headline_of(points: list[Result]) -> Result:
    """The ratios of the first network in either type, and what bfloat16 gains each peer."""
    first = {p["dtype"]: p for p in points[:2]}
    found: Result = {dtype: p["ratios"] for dtype, p in first.items()}
    full, half = (first.get(dtype, {}).get("peers", {}) for dtype in DTYPES)
    both = [n for n in half if "ms" in half[n] and "ms" in full.get(n, {})]
    found["float32_over_bfloat16"] = {n: full[n]["ms"] / half[n]["ms"] for n in both}
    return found


def notes(bench: Bench, quick: bool) -> list[str]:
    """What has to be known to read the numbers."""
    c, without = bench.replicas, "spikingjelly" in bench.obstacles
    network = "snnTorch's network, step by step" if without else "SpikingJelly's network"
    found = [
        f"Rows are alike for all. NIT's are {c} replicas of rows / {c} samples; those of "
        "backpropagation through time could all be samples. A row costs the same whatever it is, "
        "so these are costs of a row, not of learning something.",
        f"The input is random spikes, rate {RATE}, made once on the device. NIT gets all rows "
        f"without the mark of expand(). With it ({EXPANDED!r}) its first layer is computed once "
        "per sample, and under direct encoding once for all steps: only cheaper still.",
        f"NIT learns on {network}, sigma = {SIGMA}, leave-one-out baseline, no control variate.",
        "A step is forward, cross-entropy of each row on the readout summed over time, and "
        "backward into .grad; no optimizer.",
        "float32 is float32: no TF32 in products and convolutions. bfloat16 is autocast, and "
        "SpikingJelly's neurons store bfloat16 by its PrecisionConfig, since by autocast alone "
        "they run step by step.",
        "SpikingJelly's neurons are the implementations under spikingjelly_neurons, its surrogate "
        "is its default. Its wheel has no CUDA extensions; those take a build from source.",
        "peak_bytes is the most that is allocated in a step beyond what was before it: weights and "
        "input are not in it, gradients are.",
        "floor is the least for products and neurons that are kernels apart, at the measured rates "
        "(gpu_measure.floor has the formula).",
    ]
    if bench.device.type == "cpu":
        found.append("There was no GPU: the kernels' models in torch stood in for the kernels.")
    return [*found, "Sizes were tiny; no number here means anything."] if quick else found


def show(point: Result, write: Callable[[str], Any] = print) -> None:
    """The table of one network."""
    head = (
        f"{'':30}{'ms':>10}{'quartiles':>22}{'least':>9}{'peak MiB':>10}{'x time':>8}{'x mem':>8}"
    )
    lines = [f"\n{point['name']}", head]
    for name, found in point["peers"].items():
        if "failed" in found:
            lines.append(f"{name:30}  {found['failed']}")
            continue
        least = point["floor"]["NIT" if name.startswith("NIT") else "BPTT"]["ms"]
        ratio = point["ratios"].get(name, {})
        low, high = found["ms_quartiles"]
        peak = found["peak_bytes"]
        lines.append(
            f"{name:30}{found['ms']:10.3f}{f'{low:.3f} - {high:.3f}':>22}{least:9.3f}"
            f"{cell(None if peak is None else peak / 2**20, '10.0f')}"
            f"{cell(ratio.get('time'), '8.2f')}{cell(ratio.get('memory'), '8.2f')}"
        )
    write("\n".join(lines))


def cell(value: float | None, form: str) -> str:
    """A number, or a dash as wide."""
    return format(value, form) if value is not None else "-".rjust(int(form.split(".")[0]))


def show_kernels(rows: list[Result]) -> None:
    columns = f"{'ms':>9}{'GB/s':>9}{'of copy':>9}{'Gnumbers/s':>12}{'TFLOP/s':>9}{'Tpopc/s':>9}"
    print(f"\n{'kernels alone':50}{columns}")
    for row in rows:
        what = f"{row['kernel']}, {row['dtype']}, {row['steps']} x {row['rows']} x {row['inner']}"
        if "failed" in row:
            print(f"{what:50}  {row['failed']}")
            continue
        flops, popcounts = row["flops_per_second"], row["popcounts_per_second"]
        print(
            f"{what:50}{row['ms']:9.3f}{row['bytes_per_second'] / 1e9:9.1f}"
            f"{cell(row['fraction_of_copy'], '9.2f')}{row['numbers_per_second'] / 1e9:12.2f}"
            f"{cell(flops and flops / 1e12, '9.2f')}{cell(popcounts and popcounts / 1e12, '9.2f')}"
        )


def show_summary(results: Result) -> None:
    """The device's rates, the headline and the notes."""
    rates = results["rates"]
    products = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s in {dtype}"
        for dtype, rate in rates["matmul_flops_per_second"].items()
    )
    print(
        f"\n{results['device']}: copies {rates['copy_bytes_per_second'] / 1e9:.4g} GB/s, {products}"
    )
    for dtype in DTYPES:
        best = results["headline"].get(dtype, {}).get(FASTEST)
        if best is not None:
            memory = "" if best["memory"] is None else f" and {best['memory']:.2f} times the memory"
            print(
                f"Headline, {dtype}: SpikingJelly's fastest ({best['peer']}) takes "
                f"{best['time']:.2f} times the time{memory} of NIT's kernels."
            )
    gains = results["headline"]["float32_over_bfloat16"]
    for name, gain in gains.items():
        print(f"bfloat16 makes {name} {gain:.2f} times as fast.")
    print()
    for note in results["notes"]:
        print(f"- {note}")


def picture(results: Result, path: Path) -> None:
    """Time and memory over T and over width, float32."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex="col")
    linear = [p for p in results["points"] if p["network"] == "linear" and p["dtype"] == "float32"]
    sweeps = {"steps": ("width", 1024), "width": ("steps", 128)}
    for column, (axis, (fixed, value)) in zip(panels.T, sweeps.items(), strict=True):
        points = sorted((p for p in linear if p[fixed] == value), key=lambda p: p[axis])
        points = points or linear  # of a quick run
        for i, name in enumerate(USUAL):
            for panel, key, unit in ((column[0], "ms", 1), (column[1], "peak_bytes", 2**30)):
                drawn = [
                    (p[axis], p["peers"][name][key] / unit)
                    for p in points
                    if p["peers"].get(name, {}).get(key) is not None
                ]
                if drawn:
                    panel.plot(*zip(*drawn, strict=True), "o-", ms=4, color=f"C{i}", label=name)
        for method, style in (("NIT", "--"), ("BPTT", ":")):
            least = [p["floor"][method]["ms"] for p in points]
            label = f"least, {method}"
            column[0].plot([p[axis] for p in points], least, style, color="0.4", label=label)
        column[0].set_title(f"{fixed} = {points[0][fixed]}", loc="left")
        column[1].set_xlabel(axis)
        for panel in column:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("ms for a learning step")
    panels[1, 0].set_ylabel("peak memory of a step (GiB)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(results["device"], fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
