"""A learning step as a CUDA graph, without a GPU: what a replay does, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from pretended_cuda import move, pretended, put
from pretended_graph import with_graphs
from torch import Tensor

from nit_snn import NITLearner, cuda_graph, swap_neurons
from nit_snn.errors import BackendError

GPU = torch.device("cuda:0")
NETWORKS = {"snntorch": SnnTorchNet, "spikingjelly": SpikingJellyNet}


def prepared(network: str, **options: Any) -> tuple[NITLearner, Tensor, Any]:
    """A learner, its input, and a step on it."""
    torch.manual_seed(0)
    net = move(swap_neurons(NETWORKS[network](), sigma=0.8), GPU)
    x = put(torch.rand(3, 4), GPU)
    learner = NITLearner(net, seed=4, **{"replicas": 4, **options})

    def step() -> Tensor:
        with learner.record():
            out = net(learner.expand(x))
        return learner.backward((out - 0.3).square().sum(1))

    return learner, x, step


def gradient(learner: NITLearner) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.net.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    "options",
    [
        {"credit": "none"},
        pytest.param({"credit": "none", "rule": "nit-s"}, marks=pytest.mark.full),
        {"credit": "layers", "residual": 1.0},
        pytest.param({"credit": "layers", "replicas": 1}, marks=pytest.mark.full),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_replay_is_the_next_step(
    network: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended(monkeypatch) as cuda:
        wanted = []
        learner, x, step = prepared(network, **options)
        for index in range(6):
            learner.net.zero_grad()
            x.copy_(torch.full_like(x, 0.2 + 0.1 * index))
            wanted.append((step(), gradient(learner)))
        learner.close()
        with_graphs(monkeypatch, cuda)
        learner, x, step = prepared(network, **options)
        replay = cuda_graph(learner, step)
        assert all(p.grad is None for p in learner.net.parameters())
        for index in range(3, 6):
            learner.net.zero_grad()
            x.copy_(torch.full_like(x, 0.2 + 0.1 * index))
            found = replay()
            torch.testing.assert_close(found, wanted[index][0])
            torch.testing.assert_close(gradient(learner), wanted[index][1])
        assert not torch.equal(wanted[3][1], wanted[4][1])
        assert learner.state_dict()["passes"] == 6


def test_what_was_accumulated_before_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch) as cuda:
        with_graphs(monkeypatch, cuda)
        learner, _, step = prepared("spikingjelly", credit="none")
        for p in learner.net.parameters():
            p.grad = torch.ones_like(p)
        cuda_graph(learner, step)
        assert all(bool((p.grad == 1).all()) for p in learner.net.parameters())


def test_a_cpu_is_refused() -> None:
    learner = NITLearner(swap_neurons(SnnTorchNet(), sigma=1.0), replicas=2)
    with pytest.raises(BackendError, match="this one is on cpu"):
        cuda_graph(learner, lambda: None)


def test_torchs_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "torch")
    with pretended(monkeypatch):
        learner, _, step = prepared("snntorch")
        with pytest.raises(BackendError, match=r"only the kernels draw fresh noise.*forced by"):
            cuda_graph(learner, step)
