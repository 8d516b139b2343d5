"""A learner on a GPU that is a CPU: the kernels' own sources, and who waits for what.

What is known without a GPU: that the gradient is that of the kernels' models, that no tensor of
another device gets in between, and how often the host waits for the device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from pretended_cuda import move, pretended, put
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.dynamics import cuda_executor
from nit_snn.dynamics.cuda_executor import levels
from nit_snn.errors import RecordingError
from nit_snn.recording import memory_budget

GPU = torch.device("cuda:0")
#: Whoever learns whether all is finite: the losses before, the gradient after.
FINITE = [
    "_local_scalar_dense in losses.py, finite_losses",
    "_local_scalar_dense in nonfinite.py, <genexpr>",
]
FEW: list[dict[str, Any]] = [{}, {"credit": "none"}, {"credit": "none", "rule": "nit-s"}]
MORE: list[dict[str, Any]] = [
    {"credit": "none", "recompute": True},
    {"credit": "none", "conditional": True},
    {"credit": "none", "antithetic": True, "learn_sigma": True},
    {"credit": "layers", "residual": 1.0},
    {"credit": "time"},
    {"credit": "feedback"},
]
OPTIONS = [*FEW, *(pytest.param(options, marks=pytest.mark.full) for options in MORE)]


class Spikes(nn.Module):
    """snnTorch's neurons, of whose membranes nothing is read; (N, 4) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        make = partial(snn.Leaky, beta=0.8, reset_mechanism="zero")
        self.fc1, self.fc2, self.lif1, self.lif2 = nn.Linear(4, 6), nn.Linear(6, 3), make(), make()

    def forward(self, x: Tensor) -> Tensor:
        states = [self.lif1.reset_mem(), self.lif2.reset_mem()]
        total = torch.zeros((), device=x.device)
        for _ in range(5):
            spikes, states[0] = self.lif1(self.fc1(x), states[0])
            spikes, states[1] = self.lif2(self.fc2(spikes), states[1])
            total = total + spikes
        return total


NETWORKS = {"snntorch": Spikes, "spikingjelly": partial(SpikingJellyNet, steps=5)}


def step(learner: NITLearner, x: Tensor) -> Tensor:
    with learner.record():
        out = learner.net(learner.expand(x))
    return learner.backward((out.float() - 0.3).square().sum(1))


def attached(network: str, on_gpu: bool, **options: Any) -> tuple[NITLearner, Tensor]:
    """A learner and its input; the same numbers wherever they are."""
    torch.manual_seed(0)
    net, x = swap_neurons(NETWORKS[network](), sigma=0.8), torch.rand(3, 4)
    if on_gpu:
        move(net, GPU)
        put(x, GPU)
    return NITLearner(net, seed=4, **{"replicas": 4, **options}), x


def gradient(learner: NITLearner) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.net.parameters() if p.requires_grad])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_kernels_sources_make_the_gradient_of_their_models(
    network: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")
    learner, x = attached(network, on_gpu=False, **options)
    for _ in range(2):
        step(learner, x)
    wanted = gradient(learner)
    monkeypatch.setenv("NIT_SNN_BACKEND", "cupy")
    with pretended(monkeypatch, kernels=True) as found:
        learner, x = attached(network, on_gpu=True, **options)
        for _ in range(2):
            step(learner, x)
        ours = gradient(learner)
    assert found.ran["weighted_score"] > 0
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_waits_twice(
    network: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once before the estimate, for the losses, and once after it, for the gradient.

    A learned noise level is looked at once it has changed, a residual's weight is measured in some
    passes, and an input that may be kept as bits is looked at, whether it is spikes.
    """
    rare = {"tolist in network.py, _not_all", "tolist in update.py, _measure"}
    rare |= {"equal in synapse_taps.py, _as_bits"}
    with pretended(monkeypatch) as found:
        learner, x = attached(network, on_gpu=True, **options)
        optimizer = torch.optim.SGD(learner.net.parameters(), lr=1e-3)
        for _ in range(4):
            found.waits.clear()
            step(learner, x)
            optimizer.step()
    learner.close()
    assert sorted(w for w in found.waits if w not in rare) == FINITE
    assert len(found.waits) <= 3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_captured_step_waits_for_nothing(
    network: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended(monkeypatch) as found:
        learner, x = attached(network, on_gpu=True, **options)
        for _ in range(3):
            step(learner, x)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

        def refused(device: object = None) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "mem_get_info", refused)
        found.waits.clear()
        step(learner, x)
        assert found.waits == []
    learner.close()


class Sequence(nn.Module):
    """A multi-step input of spikes, made inside of the network; (N, 4) to (N, 3)."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        synapse = layer.Conv1d(1, 6, 4, step_mode="m") if conv else layer.Linear(4, 6)
        self.conv = conv
        self.body = nn.Sequential(
            synapse,
            neuron.LIFNode(step_mode="m"),
            layer.Flatten(step_mode="m"),
            layer.Linear(6, 3),
            neuron.LIFNode(step_mode="m"),
        )

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([(x > 0.1 * t).float() for t in range(11)])
        return self.body(steps.unsqueeze(2) if self.conv else steps).sum(0)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("rule", ["nit", "nit-s"])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_a_sequence_that_nothing_has_marked_is_kept_as_bits(
    conv: bool, rule: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", backend)
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net, x = swap_neurons(Sequence(conv), sigma=0.8), torch.rand(3, 4)
        learner = NITLearner(net, replicas=4, credit="none", rule=rule, seed=1, recompute=recompute)
        step(learner, x)
        found.append(gradient(learner))
    torch.testing.assert_close(*found)
    assert found[0].abs().sum() > 0


def test_a_parameter_that_was_left_on_the_cpu_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address would be read as one of the GPU's memory."""
    with pretended(monkeypatch):
        for value in (0.5, torch.tensor(0.5), torch.rand(3), put(torch.rand(3), GPU)):
            found = levels(value, torch.Size([3]), GPU)
            assert found.device == GPU and found.dtype == torch.float32


def test_a_number_is_made_on_the_stream_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_executor._held.cache_clear()
    with pretended(monkeypatch):
        made = []
        for pointer in (1, 2, 1):
            stream = partial(_stream, pointer)
            monkeypatch.setattr(torch.cuda, "current_stream", stream)
            made.append(levels(0.25, torch.Size([3]), GPU))
    assert made[0] is made[2] and made[0] is not made[1]
    cuda_executor._held.cache_clear()


def _stream(pointer: int, device: object = None) -> Any:
    return type("Stream", (), {"cuda_stream": pointer})


def test_a_graph_has_the_budget_of_the_pass_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "_LAST", {})
    with pretended(monkeypatch):
        before = memory_budget.available(GPU)
        monkeypatch.setattr(memory_budget, "being_captured", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: 1 / 0)
        assert memory_budget.available(GPU) == before == 2**34


def test_a_network_on_two_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch):
        net = swap_neurons(SnnTorchNet(), sigma=0.8)
        move(net, GPU)
        move(net.lif2, torch.device("cuda:1"))
        learner = NITLearner(net, replicas=2, credit="none", seed=0)
        refused = pytest.raises(RecordingError, match=r"lif1 on cuda:0, lif2 on cuda:1\. Move")
        with refused, learner.record():
            pass
