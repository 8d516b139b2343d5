"""Replicas and samples shared out over processes: real ones, on gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import SnnTorchNet, SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, LossError, NonFiniteLossError
from nit_snn.training.distributed import Ranks

Body = Callable[[int], Any]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def enter(rank: int, size: int, port: int, folder: str, bodies: Sequence[Body]) -> None:
    """One process: joins the group, and saves what each of `bodies` returns."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        torch.save([body(rank) for body in bodies], Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(size: int, folder: Path, *bodies: Body) -> list[list[Any]]:
    """For each of `bodies` what it returned in each of so many processes."""
    folder.mkdir()
    mp.spawn(enter, (size, free_port(), str(folder), bodies), nprocs=size)
    by_rank = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    return [list(results) for results in zip(*by_rank, strict=True)]


class Readout(nn.Module):
    """Two noisy layers and a readout that autograd trains."""

    def __init__(self, framework: str) -> None:
        super().__init__()
        self.body = SnnTorchNet(steps=4) if framework == "snntorch" else SpikingJellyNet(steps=4)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def learn(
    framework: str, options: dict[str, Any], x: Tensor, passes: int = 2
) -> tuple[dict[str, Tensor], list[float]]:
    """Gradients of some passes added up, and the mean losses."""
    # Each process starts from weights of its own; the first one's count.
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    net = swap_neurons(Readout(framework), sigma=0.8)
    shares = options.pop("shared", False)
    learner = NITLearner(net, **{"replicas": 8, "credit": "none", "seed": 3, **options})
    means = []

    def losses_of(x: Tensor) -> Tensor:
        losses = (net(x) - 1).square().sum(1)
        if options.get("per_step_losses"):
            return torch.stack([losses * (t + 1) for t in range(4)])
        return losses

    for _ in range(passes):
        with learner.record():
            losses = losses_of(learner.expand(x))
        term = losses.unflatten(-1, (learner.replicas, -1)).mean(-1).sqrt() if shares else None
        means.append(learner.backward(losses, shared=term).item())
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, means


CASES: list[tuple[str, dict[str, Any]]] = [
    ("snntorch", {}),
    ("spikingjelly", {"learn_sigma": True, "rule": "nit-s"}),
    ("snntorch", {"antithetic": True, "replicas": 16}),
    ("snntorch", {"baseline": "batch-mean", "per_step_losses": True}),
    ("spikingjelly", {"noise_reuse": True, "baseline": "none"}),
    ("snntorch", {"antithetic": True, "replicas": 16, "recompute": True}),
    ("spikingjelly", {"recompute": True}),
    ("spikingjelly", {"conditional": True, "learn_sigma": True}),
    ("snntorch", {"credit": "layers", "residual": 0}),
    ("spikingjelly", {"credit": "time", "residual": 0, "learn_sigma": True}),
    ("snntorch", {"credit": "feedback", "residual": 0}),
    ("spikingjelly", {"credit": "feedback", "residual": 0, "learn_sigma": True}),
    ("snntorch", {"shared": True}),
    ("spikingjelly", {"shared": True, "per_step_losses": True, "learn_sigma": True}),
    ("snntorch", {"shared": True, "credit": "layers", "residual": 0}),
    ("kernels", {}),
    ("kernels", {"antithetic": True, "replicas": 16}),
]


def one_case(framework: str, options: dict[str, Any]) -> Any:
    """On the kernels' models in torch for "kernels"."""
    torch.manual_seed(7)
    x = torch.randn(5, 4)
    with pytest.MonkeyPatch.context() as patch:
        if framework == "kernels":
            patch.setenv("NIT_SNN_BACKEND", "reference")
        return learn("snntorch" if framework == "snntorch" else "spikingjelly", {**options}, x)


def all_cases(rank: int) -> list[Any]:
    return [one_case(name, {**options, "shard": "replicas"}) for name, options in CASES]


def check_all_cases(results: list[Any]) -> None:
    for i, (framework, options) in enumerate(CASES):
        wanted, means = one_case(framework, options)
        for found, others in (result[i] for result in results):
            assert others == pytest.approx(means, rel=1e-5)
            assert found.keys() == wanted.keys()
            for name, gradient in wanted.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_nor_does_it_depend_on_how_many_have_them(tmp_path: Path) -> None:
    check_all_cases(*run(4, tmp_path / "ranks", all_cases))


def unlike_limits(rank: int) -> Any:
    """One process has little memory, and draws the noise again; the other keeps it."""
    options = {"memory_budget": 10 ** (rank * 9), "shard": "replicas"}
    return one_case("snntorch", options)


READOUT = {"credit": "readout", "residual": 1}


def shared_samples(rank: int) -> Any:
    torch.manual_seed(20 + rank)
    x = torch.randn(5, 4)
    found = learn("spikingjelly", {"shard": "samples", **READOUT}, x, passes=1)
    return (*found, x)


def bad_in_one(rank: int) -> str:
    net = swap_neurons(Readout("snntorch"))
    learner = NITLearner(net, replicas=4, credit="none", seed=3, shard="replicas")
    with learner.record():
        net(learner.expand(torch.randn(5, 4)))
    losses = torch.full((10,), float("nan") if rank else 1.0)
    with pytest.raises(NonFiniteLossError, match="10 of 10" if rank else "1 other process"):
        learner.backward(losses)
    with pytest.raises(LossError, match="1 other process" if rank else "reduction='none'") as bad:
        learner.backward(torch.ones(10 if rank else 9))
    assert not isinstance(bad.value, NonFiniteLossError)
    assert all(p.grad is None for p in net.parameters())
    return "both have refused"


def skipped_in_all(rank: int) -> tuple[int, float]:
    """A bad loss, and then a gradient that is bad, in one process: both leave the batch out."""
    net = swap_neurons(Readout("snntorch"))
    learner = NITLearner(
        net, replicas=4, credit="none", seed=3, shard="replicas", on_nonfinite="skip"
    )
    x = torch.ones(5, 4)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    for bad_loss in (True, False):
        with learner.record():
            net(learner.expand(x if bad_loss or not rank else x * float("inf")))
        mean = learner.backward(torch.full((10,), float("nan") if bad_loss and rank else 1.0))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    return learner.skipped, float(mean)


def refusals(rank: int) -> list[str]:
    found = []
    for options in (
        {"replicas": 7, "credit": "none"},
        {"replicas": 6, "credit": "none", "antithetic": True},
        {"replicas": 8},
        {"replicas": 8, "credit": "readout", "residual": 1},
    ):
        with pytest.raises(AttachError) as error:
            NITLearner(swap_neurons(SnnTorchNet()), shard="replicas", **options)
        found.append(str(error.value))
    wrapped = nn.parallel.DistributedDataParallel(swap_neurons(SnnTorchNet()))
    with pytest.raises(AttachError) as error:
        NITLearner(wrapped, replicas=8)
    return [*found, str(error.value)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """Two processes in which all of this happens, since starting them takes longest."""
    folder = tmp_path_factory.mktemp("pair") / "ranks"
    bodies = (shared_samples, bad_in_one, refusals, skipped_in_all, all_cases, unlike_limits)
    return run(2, folder, *bodies)


def test_the_gradient_does_not_depend_on_who_has_which_replicas(pair: list[list[Any]]) -> None:
    check_all_cases(pair[4])


def test_processes_may_differ_in_memory(pair: list[list[Any]]) -> None:
    wanted, means = one_case("snntorch", {})
    for found, others in pair[5]:
        assert others == pytest.approx(means, rel=1e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_shared_samples_have_noise_of_their_own_and_one_gradient(pair: list[list[Any]]) -> None:
    """It is the mean of what each process alone would get from its batch and its noise."""
    (first, means, _), (second, _, _) = pair[0]
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
    parts = [
        learn("spikingjelly", {**READOUT, "seed": 3 + r * 0x9E3779B97F4A7C15}, x, 1)
        for r, (_, _, x) in enumerate(pair[0])
    ]
    assert means == pytest.approx([(parts[0][1][0] + parts[1][1][0]) / 2])
    for name, gradient in first.items():
        mean = (parts[0][0][name] + parts[1][0][name]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-5)


def test_a_bad_loss_in_one_process_stops_all(pair: list[list[Any]]) -> None:
    assert pair[1] == ["both have refused"] * 2


def test_a_bad_batch_in_one_process_is_skipped_by_all(pair: list[list[Any]]) -> None:
    assert pair[3] == [(2, 1.0)] * 2


def test_what_cannot_be_shared_out_is_refused(pair: list[list[Any]]) -> None:
    words = ["multiple of 2", "multiple of 4", "differently", "all replicas"]
    for message, word in zip(pair[2][0], [*words, "DistributedDataParallel"], strict=True):
        assert word in message


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("torch", {}),
        ("reference", {}),
        ("torch", {"noise_reuse": True}),
    ],
    ids=str,
)
def test_shared_samples_never_share_noise(
    backend: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the noise comes from, two processes with a batch each draw other numbers."""
    monkeypatch.setenv("NIT_SNN_BACKEND", backend)
    monkeypatch.setattr(Ranks, "same_everywhere", lambda self, seed, net: seed)
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(Ranks, "of", lambda shares, rank=rank: Ranks(shares, rank, 2))
        net = swap_neurons(SnnTorchNet())
        learner = NITLearner(net, replicas=4, credit="none", seed=1, shard="samples", **options)
        noise, _ = learner._session.source.next(4, [torch.device("cpu")])
        drawn.append(noise.draw((8, 5), index=0, layer=0, call=0, layers=2))
    assert not (drawn[0].abs() == drawn[1].abs()).any()


def test_without_a_process_group() -> None:
    for shares, message in (("replicas", "torchrun"), ("ranks", "one of")):
        with pytest.raises(AttachError, match=message):
            NITLearner(swap_neurons(SnnTorchNet()), replicas=4, credit="none", shard=shares)


@pytest.mark.full
def test_the_example_is_the_same_run_however_many_processes_there_are(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "distributed_mnist.py"
    losses = []
    for size in (1, 2):
        output = tmp_path / str(size)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
        options = ["--limit", "400", "--epochs", "1", "--replicas", "8", "--output", str(output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NIT_SNN_DATA": ""}
        subprocess.run(
            [*launcher, "--master-port", str(free_port()), str(script), *options],
            check=True,
            env=environment,
        )
        results = json.loads((output / "results.json").read_text())
        assert results["processes"] == size
        losses.append(results["history"][0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
