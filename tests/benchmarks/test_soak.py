"""The soak run: it measures, and nothing stays behind a network that is gone."""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nit_snn import NITLearner, swap_neurons
from nit_snn.robustness import NoisyClassifier

pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import soak


@pytest.mark.parametrize("make", soak.NETWORKS)
@pytest.mark.parametrize("options", soak.OPTIONS, ids=str)
def test_nothing_is_left_of_a_network(make: Any, options: dict[str, Any]) -> None:
    x, y = torch.rand(64, 784), torch.randint(0, 10, (64,))
    for _ in range(2):  # what is made once, and kept; what other tests left goes meanwhile
        soak.train_once(make, options, x, y, steps=1)
    before = soak.tensors()
    soak.train_once(make, options, x, y, steps=2)
    assert soak.tensors() <= before  # fewer, where what other tests left is still going


@pytest.mark.parametrize("make", soak.NETWORKS)
@pytest.mark.parametrize("options", soak.OPTIONS, ids=str)
def test_a_step_leaves_nothing_to_the_garbage_collector(make: Any, options: dict[str, Any]) -> None:
    """What a step holds goes with it; in a circle it would stay until Python looks for one."""
    x, y = torch.rand(64, 784), torch.randint(0, 10, (64,))
    net = swap_neurons(make(), sigma=0.5)
    learner = NITLearner(net, **options)

    def step() -> None:
        with learner.record():
            images, labels = learner.expand(x, y)
            losses = F.cross_entropy(net(images), labels, reduction="none")
        learner.backward(losses)

    assert circles(step) == []
    learner.close()


@pytest.mark.parametrize("make", soak.NETWORKS)
@pytest.mark.parametrize("options", [{}, {"credit": "time"}], ids=str)
def test_nor_does_a_gradient_in_the_input(make: Any, options: dict[str, Any]) -> None:
    x, y = torch.rand(8, 784), torch.randint(0, 10, (8,))
    net = swap_neurons(make(), sigma=0.5)
    classifier = NoisyClassifier(net, draws=4, gradient="lr", **options)

    def step() -> None:
        F.cross_entropy(classifier(x.clone().requires_grad_()), y).backward()

    assert circles(step) == []


def circles(step: Callable[[], None]) -> list[str]:
    """What of torch's and this package's only the garbage collector takes away after a step.

    Of ctypes' the types of arrays: those of functions go with a library, which any test may load.
    """
    step()  # what is made once
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        step()
        gc.collect()
        kinds = [type(found) for found in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return [
        kind.__name__
        for kind in kinds
        if issubclass(kind, torch.Tensor)
        or kind is type(ctypes.c_float * 1)
        or kind.__module__.startswith("nit_snn")
    ]


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    soak.main(["--minutes", "0.02", "--every", "4", "--steps", "2", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["steps"] == found["points"][-1]["steps"] > 0
    made = [p["steps"] for p in found["points"]]
    assert {b - a for a, b in itertools.pairwise(made)} <= {4}
    assert found["rise"].keys() == found["points"][0].keys() - {"seconds", "steps"}
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_a_rise_is_told_from_the_second_quarter_to_the_last() -> None:
    points = [{"mib": value} for value in (0.0, 5.0, 6.0, 9.0)]
    assert soak.rise(points, "mib") == 4.0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not tell")
def test_allocated_memory_is_what_was_asked_for() -> None:
    before = soak.allocated()
    held = torch.ones(2**22)  # 16 MiB
    now = soak.allocated()
    assert before is not None and now is not None
    assert now - before == pytest.approx(held.nbytes / 2**20, rel=0.05)
    del held
    assert soak.allocated() == pytest.approx(before, abs=1)
