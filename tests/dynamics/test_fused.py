"""A learner on the kernels' route gives what it gives on the slow one from the same noise.

The kernels' models in torch stand in for them here (NIT_SNN_BACKEND=reference); that the kernels
do as their models is tested kernel by kernel. On the slow route the same noise is drawn as a
tensor and kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.dynamics import cuda_executor as fused
from nit_snn.dynamics import torch_executor as torch_layer
from nit_snn.dynamics.torch_executor import TorchExecutor
from nit_snn.errors import RecordingError
from nit_snn.recording import recorder


class Convolution(nn.Module):
    """A convolution, a batch norm and a dense layer, in one sequence."""

    steps = 7

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        middle = [layer.BatchNorm2d(3).eval()] if norm else []
        self.body = nn.Sequential(
            layer.Conv2d(1, 3, 3), *middle, neuron.LIFNode(), layer.Flatten(), layer.Linear(108, 4)
        )
        self.body.append(neuron.LIFNode())
        for module in self.body:
            module.step_mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.view(-1, 1, 8, 8).expand(self.steps, -1, 1, 8, 8).contiguous()).sum(0)


class Every(nn.Module):
    """One hidden layer of any snnTorch neuron, step by step."""

    steps = 4

    def __init__(self, hidden: nn.Module, states: int) -> None:
        super().__init__()
        self.fc1, self.hidden, self.fc2 = nn.Linear(4, 6), hidden, nn.Linear(6, 3)
        self.states = states

    def forward(self, x: Tensor) -> Tensor:
        initial = self.hidden.reset_mem()
        states = list(initial) if isinstance(initial, tuple) else [initial]
        total = torch.zeros(())
        for _ in range(self.steps):
            spikes, *states = self.hidden(self.fc1(x), *states)
            total = total + self.fc2(spikes)
        return total


def _late(above: Tensor) -> Tensor:
    """Spikes, and so resets, that come later than the threshold says."""
    return (above > 0.3).to(above.dtype)


def _half(above: Tensor) -> Tensor:
    return 0.5 * (above > 0).to(above.dtype)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "snntorch zero": lambda: SnnTorchNet("zero", steps=10),
    "snntorch subtract": lambda: SnnTorchNet("subtract"),
    "snntorch none": lambda: SnnTorchNet("none"),
    "snntorch no delay": lambda: SnnTorchNet("zero", reset_delay=False),
    "snntorch inhibition": lambda: SnnTorchNet("zero", inhibition=True),
    "snntorch late spikes": lambda: SnnTorchNet("zero", spike_grad=_late),
    "snntorch half spikes": lambda: SnnTorchNet("subtract", spike_grad=_half),
    "snntorch learned beta": lambda: SnnTorchNet("zero", learn_beta=True),
    "lapicque": lambda: Every(snn.Lapicque(beta=0.8, reset_mechanism="zero"), 1),
    "synaptic": lambda: Every(snn.Synaptic(alpha=0.6, beta=0.8), 2),
    "alpha": lambda: Every(snn.Alpha(alpha=0.8, beta=0.6), 3),
    "rleaky": lambda: Every(snn.RLeaky(beta=0.8, linear_features=6, reset_mechanism="zero"), 2),
    "rsynaptic": lambda: Every(snn.RSynaptic(alpha=0.6, beta=0.8, linear_features=6), 3),
    "lif sequence": lambda: SpikingJellyNet(steps=12),
    "lif soft": lambda: SpikingJellyNet(steps=4, v_reset=None, decay_input=False),
    "lif high reset": lambda: SpikingJellyNet(steps=4, v_reset=-0.3),
    "lif step by step": lambda: SpikingJellyNet(steps=4, mode="s"),
    "if": lambda: SpikingJellyNet(neuron.IFNode, steps=4),
    "plif": lambda: SpikingJellyNet(neuron.ParametricLIFNode, steps=4),
    "convolution": Convolution,
    "convolution, norm": lambda: Convolution(norm=True),
}


def inputs(net: nn.Module) -> Tensor:
    return torch.randn(5, 64) if isinstance(net, Convolution) else torch.randn(5, 4)


def gradients(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
    dtype: torch.dtype,
    backend: str = "reference",
    **options: Any,
) -> dict[str, Tensor]:
    """Two passes, so that the second one's noise is another; the gradient of both."""
    monkeypatch.setenv("NIT_SNN_BACKEND", backend)
    if not fast:
        monkeypatch.setattr(recorder, "executor_for", lambda *x: TorchExecutor(*x[:5]))
    torch.manual_seed(0)
    net = swap_neurons(NETWORKS[name](), sigma=0.7).to(dtype)
    learner = NITLearner(net, **{"replicas": 8, "credit": "none", "seed": 5, **options})
    if not fast:  # then it is the framework that fires, after each step
        learner._session.watch.binary = set()
    for _ in range(2):
        with learner.record():
            out = net(learner.expand(inputs(net).to(dtype)))
        wrong = (out.float() - 1).square().sum(1).detach()
        if options.get("per_step_losses"):
            wrong = torch.stack([wrong * (t + 1) for t in range(net.steps)])
        learner.backward(wrong)
    learner.close()
    monkeypatch.undo()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def compare(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
    **options: Any,
) -> None:
    fast = gradients(name, monkeypatch, True, dtype, **options)
    slow = gradients(name, monkeypatch, False, dtype, **options)
    assert fast.keys() == slow.keys()
    assert any(gradient.any() for gradient in fast.values())
    for key, found in fast.items():
        size = slow[key].float().norm()
        assert (found.float() - slow[key].float()).norm() <= tolerance * size, key


@pytest.mark.parametrize("rule", ["nit", "nit-s"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_neuron(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(name, monkeypatch, rule=rule, learn_sigma=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("snntorch zero", torch.float16),
        ("snntorch zero", torch.bfloat16),
        ("lif sequence", torch.float16),
        ("lif sequence", torch.bfloat16),
        ("convolution", torch.float16),
    ],
)
def test_half_precision(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel rounds a membrane once a step, torch after each operation: some spikes differ."""
    compare(name, monkeypatch, dtype, tolerance=0.3)


@pytest.mark.parametrize(
    "options",
    [
        {"conditional": True, "learn_sigma": True},
        {"antithetic": True},
        {"per_step_losses": True, "learn_sigma": True},
        {"learn_sigma": "shared"},
        {"replicas": "auto"},
        {"route": "general"},
        {"baseline": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["lapicque", "lif sequence", "convolution"])
def test_every_option(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compare(name, monkeypatch, **options)


@pytest.mark.parametrize("options", [{}, {"rule": "nit-s"}, {"conditional": True}], ids=str)
@pytest.mark.parametrize("small", [0, 2**16])
@pytest.mark.parametrize("at_once", [1, 500, 2**25])
@pytest.mark.parametrize("name", ["lif sequence", "convolution"])
def test_chunks_of_time_and_gradients_from_bits(
    name: str,
    at_once: int,
    small: int,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the work is cut up, and whichever way a dense layer takes, the result is one."""
    wanted = gradients(name, monkeypatch, False, torch.float32, **options)
    monkeypatch.setattr(fused, "_AT_ONCE", at_once)
    monkeypatch.setattr(fused, "_SMALL", small)
    found = gradients(name, monkeypatch, True, torch.float32, **options)
    for key, gradient in found.items():
        assert (gradient - wanted[key]).norm() <= 1e-5 * wanted[key].norm(), key


@pytest.mark.parametrize(
    ("options", "small", "called"),
    [
        ({}, 2**16, ["linear_gradient"]),
        ({}, 0, []),
        ({"rule": "nit-s"}, 0, ["linear_sign_gradient"]),
        ({"conditional": True}, 2**16, []),
    ],
)
def test_which_dense_layers_take_their_gradient_from_bits(
    options: dict[str, Any], small: int, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for kernel in ("linear_gradient", "linear_sign_gradient"):
        own = getattr(fused, kernel)

        def spy(name: str = kernel, own: Any = own, **what: Any) -> Tensor:
            seen.append(name)
            return own(**what)

        monkeypatch.setattr(fused, kernel, spy)
    monkeypatch.setattr(fused, "_SMALL", small)
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")
    learner = NITLearner(
        swap_neurons(SpikingJellyNet(steps=4)), replicas=4, credit="none", **options
    )
    with learner.record():
        out = learner.net(learner.expand(torch.rand(3, 4)))
    learner.backward(out.sum(1))
    assert seen == called


def test_nothing_is_kept_but_bits_and_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between record and backward, a sequence leaves a bit for each spike, and no noise."""
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")
    net = SpikingJellyNet(steps=16)
    learner = NITLearner(swap_neurons(net, sigma=1.0), replicas=4, credit="none")
    with learner.record():
        net(learner.expand(torch.rand(5, 4)))
    for trace in learner._session.recorder.trace.active:
        (segment,) = trace.segments
        held = (segment.noise, segment.total, segment.drift, segment.membrane, segment.node)
        assert held == (None,) * 5
        (each,) = segment.inputs
        if each.source.name == "body.2":
            assert each.source.activity.bits.nbytes == 16 // 8 * 20 * 6
        else:
            assert each.source.name == "body.0"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "nit-s"},
        {"learn_sigma": True},
        {"learn_sigma": True, "recompute": True},
        {"antithetic": True},
        {"per_step_losses": True, "learn_sigma": True},
        {"per_step_losses": True, "recompute": True},
        {"noise_reuse": True},
        {"replicas": "auto"},
        {"route": "general"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "name",
    [
        "snntorch zero",
        "snntorch late spikes",
        "snntorch half spikes",
        "lapicque",
        "rleaky",
        "lif sequence",
        "lif soft",
        "if",
        "convolution",
    ],
)
def test_few_passes_by_torch(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's backend too, sequences and closed forms give what single steps do; in float64."""
    compare(name, monkeypatch, torch.float64, backend="torch", **options)


@pytest.mark.parametrize("at_once", [1, 100, 2**18])
def test_few_passes_in_chunks(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = gradients("lif sequence", monkeypatch, False, torch.float64, backend="torch")
    monkeypatch.setattr(torch_layer, "_AT_ONCE", at_once)
    found = gradients("lif sequence", monkeypatch, True, torch.float64, backend="torch")
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", ["snntorch zero", "lif sequence", "convolution"])
def test_what_a_learner_may_be_given(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty batch, a copied network, strided input, and autocast."""
    monkeypatch.setenv("NIT_SNN_BACKEND", backend)

    def step(net: nn.Module, x: Tensor) -> Tensor:
        net.zero_grad()
        learner = NITLearner(net, replicas=4, credit="none", seed=1)
        learner.reset()
        with learner.record():
            out = net(learner.expand(x))
        learner.backward((out.float() - 1).square().sum(1))
        learner.close()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    net = swap_neurons(NETWORKS[name](), sigma=0.7)
    x = inputs(net)
    assert not step(net, x[:0]).any()
    wanted = step(net, x)
    assert torch.equal(step(copy.deepcopy(net), x), wanted)
    torch.testing.assert_close(step(net, x.t().contiguous().t()), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(net, x)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, wanted, 0) > 0.8


def test_rows_with_parameters_of_their_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and shape; those of the neurons, given for one row, are taken."""
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")
    for rows, refused in ((8, True), (1, False)):
        net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(0.9, threshold=torch.rand(rows, 3)))
        learner = NITLearner(swap_neurons(net, sigma=1.0), replicas=2, credit="none", seed=0)
        error = pytest.raises(RecordingError, match="not of each row, got \\(8, 3\\)")
        with error if refused else contextlib.nullcontext(), learner.record():
            net(learner.expand(torch.rand(4, 4)))
