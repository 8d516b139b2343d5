"""The GPU benchmark as far as it goes without a GPU: all of the script but CUDA's own clock."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from nit_snn.errors import BackendError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUICK = ["--device", "cpu", "--quick"]
FASTEST = "SpikingJelly, fastest"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    names = ("gpu", "gpu_peers", "gpu_measure", "gpu_kernels", "gpu_report")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture
def gpu(modules: dict[str, Any]) -> Any:
    return modules["gpu"]


def run(gpu: Any, patch: pytest.MonkeyPatch, *arguments: str) -> None:
    patch.setattr(sys, "argv", ["gpu.py", *arguments])
    gpu.main()


@pytest.fixture(scope="module")
def finished(
    modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, str]:
    """Results of a quick run, where they are, and what it printed."""
    output = tmp_path_factory.mktemp("gpu")
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        run(modules["gpu"], patch, *QUICK, "--output", str(output))
    return json.loads((output / "gpu.json").read_text()), output, printed.getvalue()


@pytest.mark.full
def test_every_peer_is_measured_on_every_network(gpu: Any, finished: tuple[Any, Path, str]) -> None:
    results, output, text = finished
    assert results["device"] == "cpu, quick: no GPU numbers" and not results["missing"]
    assert {"command", "versions", "python", "machine", "replicas", "notes"} <= set(results)
    shapes = [(p["network"], p["dtype"]) for p in results["points"]]
    assert shapes == [("linear", "float32"), ("linear", "bfloat16"), ("conv", "float32")]
    wanted = [(*gpu.USUAL, gpu.EXPANDED, gpu.MEMOPT), gpu.peers_of(gpu.QUICK[1], None), gpu.USUAL]
    for point, peers in zip(results["points"], wanted, strict=True):
        assert tuple(point["peers"]) == peers
        assert point["rows"] % results["replicas"] == 0
        for name, found in point["peers"].items():
            low, high = found["ms_quartiles"]
            assert 0 < low <= found["ms"] <= high and found["repetitions"] >= 5
            assert found["peak_bytes"] is None  # there is no such thing on a CPU
            assert name in text and f"{found['ms']:.3f}" in text
        for method in ("NIT", "BPTT"):
            assert point["floor"][method]["ms"] > 0
    assert (output / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert not (output / "gpu.partial").exists()
    assert all(note in text for note in results["notes"])


@pytest.mark.full
def test_ratios_are_those_of_the_numbers(gpu: Any, finished: tuple[Any, Path, str]) -> None:
    results, _, text = finished
    for point in results["points"]:
        peers = point["peers"]
        base = peers[gpu.KERNELS]["ms"]
        assert set(point["ratios"]) == {*peers, FASTEST} - {gpu.KERNELS}
        for name, ratio in point["ratios"].items():
            measured = peers[ratio["peer"] if name == FASTEST else name]
            assert math.isclose(ratio["time"], measured["ms"] / base)
        fastest = min(found["ms"] for name, found in peers.items() if name.startswith(gpu.JELLY))
        assert math.isclose(point["ratios"][FASTEST]["time"], fastest / base)
    first, second = results["points"][:2]
    headline = results["headline"]
    assert headline["float32"] == first["ratios"] and headline["bfloat16"] == second["ratios"]
    for name, gain in headline["float32_over_bfloat16"].items():
        assert math.isclose(gain, first["peers"][name]["ms"] / second["peers"][name]["ms"])
    assert "Headline, float32" in text and "Headline, bfloat16" in text


def test_memory_is_compared_and_a_failure_is_no_number(gpu: Any) -> None:
    peers = {
        gpu.KERNELS: {"ms": 2.0, "peak_bytes": 100},
        gpu.JELLY: {"ms": 8.0, "peak_bytes": 900},
        gpu.COMPILED: {"ms": 6.0, "peak_bytes": 700},
        gpu.SNNTORCH: {"failed": "out of memory"},
    }
    found = gpu.ratios(peers)
    assert found == {
        gpu.JELLY: {"time": 4.0, "memory": 9.0},
        gpu.COMPILED: {"time": 3.0, "memory": 7.0},
        FASTEST: {"peer": gpu.COMPILED, "time": 3.0, "memory": 7.0},
    }
    assert gpu.ratios({gpu.KERNELS: {"failed": "out of memory"}, gpu.JELLY: peers[gpu.JELLY]}) == {}


@pytest.mark.full
def test_every_kernel_is_measured_alone(finished: tuple[Any, Path, str]) -> None:
    results, _, text = finished
    rows = {(row["kernel"], row["dtype"]): row for row in results["kernels"]}
    assert {name for name, _ in rows} == {
        "noisy_lif",
        "weighted_score",
        "sigma_gradient",
        "unpack_bits",
        "linear_gradient",
        "linear_sign_gradient",
    }
    steps, samples, inner = 4, 8, 16
    numbers = steps * samples * inner
    for (name, dtype), row in rows.items():
        per_second = 1e3 / row["ms"]
        assert math.isclose(row["bytes_per_second"], row["bytes"] * per_second)
        assert math.isclose(row["numbers_per_second"], numbers * per_second)
        streams = name in ("noisy_lif", "unpack_bits", "weighted_score")
        assert streams == (row["fraction_of_copy"] is not None)
        if streams:
            copied = row["bytes_per_second"] / row["copy_bytes_per_second"]
            assert math.isclose(row["fraction_of_copy"], copied)
        assert f"{name}, {dtype}" in text
    lif = rows["noisy_lif", "float32"]["bytes"]
    assert lif == 4 * (2 * numbers + samples * inner) + samples * inner + 24
    assert rows["weighted_score", "bfloat16"]["bytes"] == 2 * numbers + 4 * samples + 12
    flops = rows["linear_gradient", "float32"]
    assert math.isclose(flops["flops_per_second"] * flops["ms"], 2e3 * numbers * inner)
    counted = rows["linear_sign_gradient", "float32"]
    assert math.isclose(counted["popcounts_per_second"] * counted["ms"], 1e3 * samples * inner**2)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_the_floor_is_what_its_formula_says(modules: dict[str, Any], dtype: str, size: int) -> None:
    steps, samples, w = 4, 8, 16
    point = modules["gpu_peers"].Point("linear", steps, w, samples, dtype)
    rates = {"copy_bytes_per_second": 1e3, "matmul_flops_per_second": {dtype: 1e3}}
    rows, products, weights = steps * samples, 2 * w**2 + 10 * w, 2 * w**2 + 10 * w
    wide = rows * w * size  # a layer's numbers
    forward = 3 * wide + 2 * 3 * wide + 10 * rows * size + 4 * weights
    nit = forward + 4 * weights + 2 * wide + 2 * rows * w // 8 + rows * w // 8
    gradients = wide * (1 + 1) + wide * (1 + 2) + 2 * 2 * wide
    bptt = forward + 4 * weights + 3 * wide + 2 * 2 * wide + gradients
    for through_time, moved, flops in (
        (False, nit, 4 * rows * products),
        (True, bptt, 4 * rows * products + 2 * rows * (products - w**2)),
    ):
        found = modules["gpu_measure"].floor(point, through_time, rates)
        assert (found["bytes"], found["flops"]) == (moved, flops)
        assert found["ms"] == max(found["ms_of_bytes"], found["ms_of_flops"]) == max(moved, flops)


@pytest.mark.parametrize("network", ["linear", "conv"])
def test_layers_are_those_of_the_networks(modules: dict[str, Any], network: str) -> None:
    peers = modules["gpu_peers"]
    point = peers.Point(network, 2, 8, 4)
    bench = peers.Bench.on(torch.device("cpu"), 2)
    x, y = bench.batch(point)
    assert x.shape == point.shape and y.shape == (4,)
    assert torch.equal(x[:, :2], x[:, 2:]) and torch.equal(y[:2], y[2:])
    for jelly in (True, False):
        net = bench.network(point, jelly)
        assert net(x).shape == (4, 10)
        matrices = [p.numel() for p in net.parameters() if p.dim() > 1]
        assert matrices == [layer.weights for layer in point.layers]


def without(modules: dict[str, Any], patch: pytest.MonkeyPatch, *absent: str) -> None:
    """As if these packages could not be imported."""
    found = modules["gpu_peers"].import_module

    def import_module(name: str) -> Any:
        if name.split(".")[0] in absent:
            raise ImportError(f"No module named {name!r}")
        return found(name)

    patch.setattr(modules["gpu_peers"], "import_module", import_module)


@pytest.mark.parametrize("absent", ["snntorch", "spikingjelly"])
def test_a_missing_peer_is_left_out_and_named(
    absent: str,
    modules: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu = modules["gpu"]
    without(modules, monkeypatch, absent)
    monkeypatch.setattr(gpu, "QUICK", gpu.QUICK[:1])
    monkeypatch.setattr(gpu.gpu_kernels, "cases", lambda *_: [])
    monkeypatch.setattr(gpu, "USUAL", tuple(p for p in gpu.USUAL if p != gpu.COMPILED))
    run(gpu, monkeypatch, *QUICK, "--output", str(tmp_path))
    results = json.loads((tmp_path / "gpu.json").read_text())
    gone = [gpu.SNNTORCH] if absent == "snntorch" else [gpu.JELLY, gpu.COMPILED, gpu.MEMOPT]
    peers = results["points"][0]["peers"]
    text = capsys.readouterr().out
    for name in gone:
        assert f"{name} is left out: {absent} cannot be imported" in text
        assert absent in results["missing"][name] and name not in peers
    assert all(found["ms"] > 0 for found in peers.values()) and gpu.KERNELS in peers
    learns_on = "SpikingJelly's" if absent == "snntorch" else "snnTorch's"
    assert any(f"NIT learns on {learns_on} network" in note for note in results["notes"])


def test_missing_kernels_are_named(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = modules["gpu_peers"]

    def backend_of(device: torch.device) -> None:
        raise BackendError("CuPy is not installed")

    monkeypatch.setattr(peers, "backend_of", backend_of)
    missing = peers.Bench.on(torch.device("cpu"), 2).missing()
    assert missing == dict.fromkeys((peers.KERNELS, peers.EXPANDED), "CuPy is not installed")


def test_without_any_network_it_says_so(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(modules, monkeypatch, "snntorch", "spikingjelly")
    with pytest.raises(SystemExit, match="no network to learn on"):
        run(modules["gpu"], monkeypatch, *QUICK, "--output", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        run(gpu, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "only --device cpu --quick"),
        ([*QUICK, "--output", str(BENCHMARKS.parent / "docs" / "benchmarks")], "does not belong"),
        ([*QUICK, "--replicas", "3"], "divide the rows"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str],
    message: str,
    gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(gpu, monkeypatch, *arguments)
    assert message in capsys.readouterr().err


def test_failures_are_told_apart(modules: dict[str, Any]) -> None:
    attempt = modules["gpu_measure"].attempt

    def fails(error: Exception) -> Callable[[], Any]:
        def run() -> Any:
            raise error

        return run

    assert attempt(lambda: {"ms": 1}) == {"ms": 1}
    spent = {"failed": "out of memory"}
    assert attempt(fails(torch.OutOfMemoryError("CUDA out of memory. Tried to"))) == spent
    assert attempt(fails(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"))) == spent
    assert attempt(fails(ValueError("no\ncompiler"))) == {"failed": "ValueError: no compiler"}


def test_nothing_is_begun_when_time_is_over(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(modules["gpu"], monkeypatch, *QUICK, "--minutes", "0", "--output", str(tmp_path))
    results = json.loads((tmp_path / "gpu.json").read_text())
    found = [p for point in results["points"] for p in point["peers"].values()]
    assert all("minutes were over" in p["failed"] for p in [*found, *results["kernels"]])
    assert (tmp_path / "gpu.png").exists()


class Clock:
    """Stands in for a CUDA event: each one is recorded a millisecond after the other."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Clock.now += 1.0
        self.at = Clock.now

    def elapsed_time(self, other: Clock) -> float:
        return other.at - self.at


def test_a_gpu_is_measured_by_its_own_clock_and_allocator(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"now": 1000, "peak": 5000}

    def step() -> None:
        held["peak"] = max(held["peak"], held["now"] + 250)

    def reset(_: Any) -> None:
        held["peak"] = held["now"]

    fakes: dict[str, Any] = {
        "Event": Clock,
        "synchronize": lambda _: None,
        "memory_allocated": lambda _: held["now"],
        "max_memory_allocated": lambda _: held["peak"],
        "reset_peak_memory_stats": reset,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    found = modules["gpu_measure"].measure(step, torch.device("cuda"), 0.0)
    assert found == {"ms": 1.0, "ms_quartiles": [1.0, 1.0], "repetitions": 5, "peak_bytes": 250}
