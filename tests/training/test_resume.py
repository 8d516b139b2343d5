"""Runs that are really killed go on to the same weights; so do all ways of keeping a pass."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("reliability.md", "reliability_long_runs.md")]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "inject_faults", ROOT / "scripts" / "inject_faults.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_run_that_is_struck_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """In processes of their own, killed by the system's own signals, mostly in mid-epoch."""
    command = [sys.executable, "scripts/inject_faults.py", "--networks", "snnTorch, NIT"]
    command += ["--times", "1", "--files", "20", "--seed", "3", "--output", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "faults.json").read_text())
    assert len(results["runs"]) == 9
    for run in results["runs"]:
        assert run["same"], run
        # A checkpoint follows each update, so one is lost, and one more if the newest is damaged.
        assert 0 <= run["updates_lost"] <= 2, run
        stopped = {"disk full": 3, "file size": 3, "killed in the midst": -25}
        code = [code for start, code in stopped.items() if run["fault"].startswith(start)]
        assert run["stopped"] == (code or [-9])[0], run
    assert all(file["refused"] == file["damaged"] == 20 for file in results["files"])


def test_the_page_shows_what_was_measured(script: ModuleType) -> None:
    results = json.loads((ROOT / "docs" / "benchmarks" / "faults.json").read_text())
    assert {"command", "seed", "versions", "python", "machine"} <= set(results)
    shown = "\n".join(page.read_text() for page in PAGES if page.exists())
    for line in script.tables(results).splitlines():
        assert line in shown, line
    assert all(run["same"] for run in results["runs"])
    assert all(file["refused"] == file["damaged"] for file in results["files"])


class SnnTorchConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(1, 3, 3, padding=1), snn.Leaky(beta=0.5)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        membrane, out = self.lif.reset_mem(), 0
        for _ in range(3):
            spikes, membrane = self.lif(self.conv(x), membrane)
            out = out + self.fc(self.pool(spikes).flatten(1))
        return out


class SpikingJellyConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer.Conv2d(1, 3, 3, padding=1),
            neuron.LIFNode(),
            layer.AvgPool2d(2),
            layer.Flatten(),
            layer.Linear(12, 3),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.body(x.expand(3, *x.shape)).sum(0)


class SnnTorchLinear(SnnTorchConv):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        self.pool, self.fc = nn.Identity(), nn.Linear(5, 3)


class SpikingJellyLinear(SpikingJellyConv):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer.Flatten(), layer.Linear(16, 5), neuron.LIFNode(), layer.Linear(5, 3)
        )
        functional.set_step_mode(self, "m")


NETWORKS = [SnnTorchLinear, SnnTorchConv, SpikingJellyLinear, SpikingJellyConv]


def weights_after(build: Callable[[], nn.Module], **options: object) -> Tensor:
    """All weights after five updates."""
    torch.manual_seed(0)
    net = swap_neurons(build(), sigma=0.5)
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    learner = NITLearner(net, seed=7, **options)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        learner.backward(losses)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize(
    "options",
    [{}, {"credit": "none"}, {"replicas": 8, "credit": "time", "conditional": True, "residual": 1}],
    ids=str,
)
def test_deterministic_algorithms(
    build: Callable[[], nn.Module], options: dict[str, object], deterministic: None
) -> None:
    first = weights_after(build, **options)
    assert torch.equal(first, weights_after(build, **options))


@pytest.mark.parametrize("build", NETWORKS)
def test_every_way_of_keeping_a_pass_trains_alike(build: Callable[[], nn.Module]) -> None:
    """Within each way bit by bit; between them to rounding, for sums run in another order."""
    ways = [{"credit": "none", "recompute": recompute} for recompute in (False, True)]
    first = weights_after(build, **ways[0])
    for way in ways:
        found = weights_after(build, **way)
        assert torch.equal(found, weights_after(build, **way))
        torch.testing.assert_close(found, first, rtol=1e-3, atol=1e-4)
