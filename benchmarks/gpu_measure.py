"""Time and memory of a step, what the device can do, and what a step takes at the least."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from gpu_peers import Point

Result = dict[str, Any]
_FEWEST, _MOST = 5, 200


def measure(step: Callable[[], object], device: torch.device, seconds: float) -> Result:
    """Milliseconds and memory of a step that has been warmed up.

    Args:
        step: What is measured. All that it needs has been allocated.
        device: Where it runs.
        seconds: About how long it is repeated, `_FEWEST` times at least.

    Returns:
        "ms", the median; "ms_quartiles"; "repetitions"; and "peak_bytes", the most that was
        allocated in a step beyond what was allocated before; None on a CPU.
    """
    wall = warm_up(step, device)
    peak = peak_bytes(step, device)
    count = min(_MOST, max(_FEWEST, int(seconds / wall)))
    found = repeated(step, device, count)
    quartiles = statistics.quantiles(found, n=4, method="inclusive")
    return {
        "ms": quartiles[1],
        "ms_quartiles": [quartiles[0], quartiles[2]],
        "repetitions": count,
        "peak_bytes": peak,
    }


def attempt(what: Callable[[], Result]) -> Result:
    """What it returns; or {"failed": why}, so that the other measurements go on."""
    try:
        return what()
    except Exception as error:  # a peer's compiler, driver or kernels may fail in any way
        short = " ".join(str(error).split())[:300]
        spent = "out of memory" in short or "ALLOC_FAILED" in short
        if spent or isinstance(error, torch.OutOfMemoryError | MemoryError):
            return {"failed": "out of memory"}
        return {"failed": f"{type(error).__name__}: {short}"}
    finally:
        free()


def free() -> None:
    """Gives back all of a GPU's memory that nothing holds any more."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(step: Callable[[], object], device: torch.device) -> float:
    """Repeats a step until it is no longer compiled or tuned; the seconds that it took last."""
    seconds: list[float] = []
    while len(seconds) < 3 or (seconds[-1] > 1.3 * min(seconds) and len(seconds) < 10):
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[-1]


def peak_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """The most that is allocated in a step less what was before it, so gradients count."""
    if device.type != "cuda":
        return None
    free()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def repeated(step: Callable[[], object], device: torch.device, count: int) -> list[float]:
    """Milliseconds of each of many steps in a row; on a GPU by its own clock."""
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(count):
            step()
            times.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    synchronize(device)
    return [a.elapsed_time(b) for a, b in pairwise(events)]


def copy_rate(moved: int, device: torch.device, seconds: float = 0.1) -> float:
    """Bytes per second, read and written, of a copy on the device that moves so many bytes."""
    source = torch.zeros(max(1, moved // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = measure(lambda: target.copy_(source), device, seconds)
    return 2e3 * source.numel() / found["ms"]


def matmul_rate(dtype: torch.dtype, size: int, device: torch.device, seconds: float = 0.3) -> float:
    """Floating-point operations per second of a product of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    found = measure(lambda: torch.mm(a, b, out=out), device, seconds)
    return 2e3 * size**3 / found["ms"]


def floor(point: Point, through_time: bool, rates: dict[str, Any]) -> Result:
    """What a learning step takes at the least, if its products and its neurons are kernels apart.

    With R = T * N rows in all, and for each synapse its numbers in (I) and out (O) per row, weights
    (W) and multiply-adds per row (P), activity having s bytes and weights 4:

    Operations of the products: forward 2 R P and the weight's gradient 2 R P for each synapse.
    Backpropagation through time adds the input's gradient, 2 R P, for all but the first.

    Bytes, each product and each layer of neurons reading what it takes and writing what it gives
    once: forward R I s (read) + 4 W for each synapse; 2 R O s for the current of each layer of
    neurons (written, read) and R O s for its spikes; R O s for the output of the readout.
    Backward, 4 W for each weight's gradient, and R I s for the first synapse's and the
    readout's input, read again. The synapses between:
    NIT:  R O / 8 for each layer's spikes as bits, written, and R I / 8 to read them again; its
          noise is drawn in registers and need not move.
    BPTT: R I s to read them again, 2 R O s for the membranes of each layer (written, read), R O s
          for the gradient of each layer's current, written, and read by each product that takes it
          (one for the first synapse, two for others), and 2 R I s for the gradient of the
          spikes that each synapse but the first read (written, read).

    Args:
        point: Network and batch.
        through_time: BPTT instead of NIT.
        rates: "copy_bytes_per_second" and "matmul_flops_per_second", by type.

    Returns:
        "bytes", "flops", the milliseconds that each takes at the measured rates, and
        "ms", the longer of the two.
    """
    size = 4 if point.dtype == "float32" else 2
    rows, layers = point.steps * point.rows, point.layers
    moved, flops = 0, 0
    for number, layer in enumerate(layers):
        first, last = number == 0, number == len(layers) - 1
        entering, leaving = rows * layer.inputs, rows * layer.outputs
        flops += 4 * rows * layer.products
        moved += size * entering + 8 * layer.weights  # forward, and the weight's gradient
        moved += size * leaving * (1 if last else 3)
        moved += size * entering if first or last or through_time else entering // 8
        if not through_time:
            moved += 0 if last else leaving // 8
            continue
        if not first:
            flops += 2 * rows * layer.products
            moved += 2 * size * entering
        if not last:
            moved += size * leaving * (4 if first else 5)
    by_bytes = 1e3 * moved / rates["copy_bytes_per_second"]
    by_flops = 1e3 * flops / rates["matmul_flops_per_second"][point.dtype]
    return {
        "bytes": moved,
        "flops": flops,
        "ms_of_bytes": by_bytes,
        "ms_of_flops": by_flops,
        "ms": max(by_bytes, by_flops),
    }
