"""The cost model against real steps of two processes, by hand, and against its document."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nit_snn import NITLearner, swap_neurons

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "benchmarks" / "scaling.json"


@pytest.fixture(scope="module")
def scaling() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("scaling")


@pytest.fixture(scope="module")
def model(scaling: ModuleType) -> ModuleType:
    return sys.modules["scaling_model"]


@pytest.fixture(scope="module")
def tables(scaling: ModuleType) -> ModuleType:
    return sys.modules["scaling_tables"]


@pytest.fixture(scope="module")
def small(scaling: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole measurement, with one process and with two, on networks that take no time."""
    folder = tmp_path_factory.mktemp("scaling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "RANKS", (1, 2))
        patch.setattr(scaling, "ROWS", ((4, 8), (6, 8)))
        patch.setattr(scaling, "BARE", (4, 4**9))
        options = ["--widths", "5", "7", "--rounds", "2", "--output", str(folder)]
        page = shutil.copy(ROOT / "docs" / "scaling.md", folder)
        patch.setattr(sys, "argv", ["scaling.py", *options, "--document", page])
        scaling.main()
    assert (folder / "scaling.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((folder / "scaling.json").read_text())
    assert_shown(found, Path(page).read_text(), scaling)
    return found


def assert_shown(results: dict[str, Any], page: str, scaling: ModuleType) -> None:
    """Every table of a page is that of the results, and there is no other."""
    shown = scaling.markdown(results)
    for title, text in shown.items():
        assert f"<!-- table: {title} -->\n{text}\n<!-- end -->" in page
    assert page.count("<!-- table: ") == page.count("<!-- end -->") == len(shown)


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


@pytest.mark.full
def test_bytes_of_the_model_are_those_of_a_real_step(
    small: dict[str, Any], scaling: ModuleType, model: ModuleType
) -> None:
    """Of every message by itself."""
    seen = set()
    for row in small["rows"]:
        step = scaling.step_of(row)
        seen.add((step.ranks, step.shares))
        assert sorted(row["bytes_counted"]) == sorted(model.messages(step))
        assert row["bytes_of_model"] == model.messages(step)
        assert row["bytes_when_attached"] == model.first_messages(step.widths)
    assert seen == {(1, "replicas"), (2, "replicas"), (2, "samples")}


@pytest.mark.full
def test_the_measurement_has_all_it_takes(small: dict[str, Any], scaling: ModuleType) -> None:
    assert {"command", "seed", "versions", "machine", "rounds"} <= set(small)
    for row in small["rows"]:
        assert row["measured"]["step"] > row["measured"]["communication"] > 0
        low, high = row["quartiles_of_step"]
        assert row["measured"]["step"] <= low <= high
    assert {row["ranks"] for row in small["all_reduce"]} == {2}
    shown = scaling.markdown(small)
    assert shown["measured"].count("\n") == 1 + sum(row["ranks"] == 2 for row in small["rows"])


def test_the_examples_hold(model: ModuleType, tables: ModuleType) -> None:
    for module in (model, tables):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_bytes_by_hand(model: ModuleType) -> None:
    """784-50-10: 39,760 numbers and four flags; 64 samples."""
    step = model.Step([784, 50, 10], 8, 64, 16, "replicas", 4)
    assert model.messages(step) == [4, 4 * 64, 4 * (39_760 + 4), 4]
    assert (step.own_samples, step.rows) == (64, 256)
    step = model.Step([784, 50, 10], 8, 64, 16, "samples", 4)
    assert model.messages(step) == [4, 4 * (39_760 + 4), 4]
    assert (step.own_samples, step.rows) == (16, 256)
    assert model.messages(model.Step([784, 50, 10], 8, 64, 16)) == [4 * (39_760 + 4), 4]
    assert model.wire_bytes(1000, 4) == 1500


def test_work_by_hand(model: ModuleType) -> None:
    """3-5-7-2 over 10 steps, 4 samples, 6 replicas shared out over 2: 12 rows."""
    step = model.Step([3, 5, 7, 2], 10, 4, 6, "replicas", 2)
    assert model.flops(step) == 4 * (15 * 4 + (35 + 14) * 10 * 12)
    assert model.neuron_steps(step) == 12 * 10 * 12
    processor = model.Processor(fixed=1.0, flop=0.5, neuron_step=0.25, parameter=0.125, cores=1)
    alone = 1 + model.flops(step) / 2 + 1440 / 4 + (20 + 42 + 16) / 8
    assert model.compute_seconds(step, processor) == alone
    fabric = model.Fabric(hop_inside=0.0, inside=math.inf)
    assert model.step_seconds(step, processor, fabric) == 2 * alone
    with pytest.raises(ValueError, match="shared out"):
        model.Step([3, 5, 2], 10, 4, 6, "samples", 3)


def test_a_sum_by_hand(model: ModuleType) -> None:
    """16 processes in two nodes: 28 hops inside, two between; a tree has 14 and two."""
    fabric = model.Fabric(
        hop_inside=1.0, inside=100.0, hop_between=10.0, between=50.0, per_node=8, base=5.0
    )
    assert model.all_reduce_seconds(1600, 16, fabric) == 5 + 28 + 20 + 3000 / 50
    assert model.all_reduce_seconds(1600, 8, fabric) == 5 + 14 + 2800 / 100
    assert model.all_reduce_seconds(1600, 1, fabric) == 0
    trees = model.Fabric(**{**vars(fabric), "trees": True})
    assert model.all_reduce_seconds(0, 16, trees) == 5 + 14 + 20
    crowded = model.Fabric(hop_inside=1.0, inside=100.0, cores=2)
    assert model.all_reduce_seconds(400, 4, crowded) == 2 * (6 + 6)


def test_the_fit_finds_the_constants_that_made_the_times(
    scaling: ModuleType, model: ModuleType
) -> None:
    processor = model.Processor(3e-3, 1e-11, 7e-9, 2e-9, cores=2)
    steps = scaling.cases(1, [64, 512])
    times = [{"compute": 1000 * model.compute_seconds(step, processor)} for step in steps]
    rows = [{**vars(step), "measured": t} for step, t in zip(steps, times, strict=True)]
    assert vars(scaling.fit_processor(rows, 2)) == pytest.approx(vars(processor))
    fabric = model.Fabric(hop_inside=1e-4, inside=1e9, cores=2)
    bare = [
        {"ranks": r, "bytes": b, "milliseconds": 1000 * model.all_reduce_seconds(b, r, fabric)}
        for r in (2, 4)
        for b in (4, 4**8, 4**12)
    ]
    found = scaling.fit_fabric(bare, 2)
    assert (found.hop_inside, found.inside) == pytest.approx((1e-4, 1e9))


def test_at_the_break_even_width_both_take_as_long(model: ModuleType, tables: ModuleType) -> None:
    """Above the balance from one width on, below it between two, or nowhere."""
    processor = tables.processor()
    fabric = model.Fabric(hop_inside=1e-13, inside=2e11)
    balanced = model.balanced_row_steps(8, processor, fabric)
    assert model.break_even_widths(balanced / 50, 8, processor, fabric) is not None
    assert model.break_even_widths(balanced / 50, 8, processor, tables.fabric("Ethernet")) is None
    for share in (0.02, 0.9, 1.1, 20):
        row_steps = share * balanced
        low, high = model.break_even_widths(row_steps, 8, processor, fabric)
        assert low < high and (high == math.inf) is (share > 1)
        for n in (low, high) if share < 1 else (low,):
            compute = row_steps * (4 * n**2 * processor.flop + n * processor.neuron_step)
            latency = 4 * model.all_reduce_seconds(0, 8, fabric)
            moved = model.wire_bytes(4 * n**2, 8) / fabric.inside
            assert compute == pytest.approx(latency + moved)


@pytest.mark.parametrize("recompute", [True, False])
def test_what_is_kept_is_what_a_pass_keeps(
    scaling: ModuleType, model: ModuleType, recompute: bool
) -> None:
    """Bits and scores that the recording holds; autograd saves spikes if there is room for them."""
    step = model.Step([6, 5, 7, 3], 11, 4, 2)
    net = swap_neurons(scaling.Net(step.widths, step.steps))
    options = {"credit": "none", "recompute": recompute}
    learner = NITLearner(net, replicas=step.replicas, seed=0, **options)
    saved: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x

    with learner.record(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        xr = learner.expand(torch.rand(4, 6))
        out = net(xr)
    F.cross_entropy(out, torch.zeros(8, dtype=torch.long), reduction="none")
    expected = model.kept_bytes(step, not recompute)
    segments = [layer.segments for layer in learner._session.recorder.trace.layers.values()]
    activities = [own[0].inputs[0].source.activity for own in segments]
    assert activities[0].untyped_storage().nbytes() == expected["input"] == xr.numel() * 4
    # The last layer's, 7 for each 5, are in the readout's graph: as bits, or as numbers.
    assert activities[1].bits.numel() == expected["bits"] * 5 // 12
    kept = [noise for own in segments for s in own for noise in (s.noise, s.total)]
    assert sum(4 * noise.numel() for noise in kept if noise is not None) == expected["noise"]
    assert (11 * 8 * 7 in saved) == (not recompute)


def test_the_numbers_in_the_document_are_those_of_the_results(
    committed: dict[str, Any], scaling: ModuleType, tables: ModuleType
) -> None:
    document = (ROOT / "docs" / "scaling.md").read_text()
    assert_shown(committed, document, scaling)
    batch = f"{tables.SAMPLES:,} samples with {tables.REPLICAS} replicas and T = {tables.STEPS}"
    own = f"{tables.OWN_SAMPLES} samples and {tables.OWN_REPLICAS} replicas"
    assert batch in document and own in document
    assert committed["command"] == "python benchmarks/scaling.py"


def test_the_tables_follow_from_the_assumptions(
    committed: dict[str, Any], tables: ModuleType
) -> None:
    assert committed["assumptions_of_tables"] == json.loads(json.dumps(tables.ASSUMPTIONS))
    assert committed["tables"] == json.loads(json.dumps(tables.all_tables()))


def test_committed_bytes_are_those_of_the_model(
    committed: dict[str, Any], scaling: ModuleType, model: ModuleType
) -> None:
    for row in committed["rows"]:
        assert row["bytes_counted"] == model.messages(scaling.step_of(row))
