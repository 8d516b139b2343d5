"""The kernels on an NVIDIA GPU, against their models in torch on the CPU.

All that is here needs a device and CuPy, and is skipped without. `LAUNCHED` counts launches, so a
test that quietly took another path fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, cuda_graph, swap_neurons
from nit_snn.dynamics.backend import _obstacle
from nit_snn.dynamics.kernels.launch import LAUNCHED
from nit_snn.dynamics.kernels.linear_gradient.op import linear_gradient
from nit_snn.dynamics.kernels.linear_sign_gradient.op import linear_sign_gradient
from nit_snn.dynamics.kernels.noisy_lif.op import noisy_lif
from nit_snn.dynamics.kernels.sigma_gradient.op import sigma_gradient
from nit_snn.dynamics.kernels.unpack_bits.op import unpack_bits
from nit_snn.dynamics.kernels.weighted_score.op import weighted_score
from nit_snn.recording import bits as spike_bits

_WHY_NOT = (
    _obstacle(torch.device("cuda")) if torch.cuda.is_available() else "there is no CUDA device"
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))]

STREAM = {
    "seed": 11,
    "layer": 1,
    "replicas": 4,
    "antithetic": False,
}
DYNAMICS = {"rest": 0.0, "v_reset": 0.0, "reset": "hard", "delayed": True, "or_equal": False}
SHAPES = [(1, 4, 1), (3, 8, 13), (9, 8, 64), (33, 20, 100), (128, 16, 256)]


def levels(seed: int, inner: int) -> list[Tensor]:
    """decay, gain, threshold and sigma, the last one for each neuron."""
    generator = torch.Generator().manual_seed(seed)
    one = [torch.rand(1, generator=generator) / 2 + 0.5 for _ in range(3)]
    return [*one, torch.rand(inner, generator=generator) + 0.2]


def on(device: str, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(device) for t in tensors]


def both(operator: Callable[..., Any], kernel: str, **what: Any) -> tuple[Any, Any]:
    """What an operator gives on the device, and on the CPU; and that the kernel ran."""
    results = []
    for device in ("cuda", "cpu"):
        before = LAUNCHED.get(kernel, 0)
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in what.items()}
        results.append(operator(**moved))
        assert LAUNCHED.get(kernel, 0) == before + (device == "cuda")
    return results[0], results[1]


@pytest.mark.parametrize("real", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("delayed", [True, False])
@pytest.mark.parametrize("reset", ["none", "hard", "soft"])
def test_noisy_lif(shape: tuple[int, ...], real: torch.dtype, reset: str, delayed: bool) -> None:
    steps, rows, inner = shape
    decay, gain, threshold, sigma = levels(0, inner)
    generator = torch.Generator().manual_seed(1)
    current = torch.randn(shape, generator=generator).to(real)
    state = torch.randn(shape[1:], generator=generator).to(real)
    found = {}
    for device in ("cuda", "cpu"):
        bits = spike_bits.empty(steps, (rows, inner), device)
        out = noisy_lif(
            *on(device, current, state),
            bits,
            *on(device, decay, gain, threshold, sigma),
            torch.tensor([3], device=device),
            **STREAM,
            **{**DYNAMICS, "reset": reset, "delayed": delayed},
            steps=steps,
            first_step=0,
            slot=0,
            wants_membranes=True,
        )
        found[device] = [*out, spike_bits.unpack(bits, range(steps))]
    wanted = found["cpu"][1].float()
    decided = ((wanted - threshold).abs() < 2e-3).cumsum(0) == 0
    assert decided.float().mean() > 0.3
    # See `test_what_a_gpu_approximates_stays_near`.
    tolerance = 1e-3 if real == torch.float32 else 2e-2
    for ours, theirs in zip(found["cuda"][:2], found["cpu"][:2], strict=True):
        ours, theirs = ours.cpu().float()[decided], theirs.float()[decided]
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(found["cuda"][0].float(), found["cuda"][3])
    assert LAUNCHED["noisy_lif"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_weighted_score(
    shape: tuple[int, ...], dtype: torch.dtype, signs: bool, summed: bool
) -> None:
    steps, rows, inner = shape
    ours, theirs = both(
        weighted_score,
        "weighted_score",
        weight=torch.linspace(-1, 1, rows),
        scale=torch.tensor([0.7]),
        passes=torch.tensor([3]),
        **STREAM,
        inner=inner,
        steps=steps,
        first_step=5,
        signs=signs,
        summed=summed,
        dtype=dtype,
    )
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sigma_gradient(shape: tuple[int, ...]) -> None:
    steps, rows, inner = shape
    ours, theirs = both(
        sigma_gradient,
        "sigma_gradient",
        weight=torch.linspace(-1, 1, rows),
        passes=torch.tensor([3]),
        **STREAM,
        inner=inner,
        steps=steps,
        first_step=5,
    )
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3 * (steps * rows) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpack_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    steps, rows, inner = shape
    bits = torch.randint(256, (-(-steps // 8) + 1, rows, inner), dtype=torch.uint8)
    ours, theirs = both(unpack_bits, "unpack_bits", bits=bits, slot=5, steps=steps, dtype=dtype)
    assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (9, 8, 300, 70), (70, 40, 64, 64)], ids=str)
@pytest.mark.parametrize("signs", [False, True])
def test_dense_gradients_from_bits(shape: tuple[int, ...], signs: bool) -> None:
    steps, rows, inputs, outputs = shape
    spikes = torch.rand(steps, rows, inputs, generator=torch.Generator().manual_seed(2)) < 0.3
    ours, theirs = both(
        linear_sign_gradient if signs else linear_gradient,
        "linear_sign_gradient" if signs else "linear_gradient",
        bits=spike_bits.pack(spikes),
        weight=torch.linspace(-1, 1, rows),
        passes=torch.tensor([3]),
        **STREAM,
        outputs=outputs,
        steps=steps,
        first_step=5,
        **({} if signs else {"scale": torch.tensor([0.7])}),
    )
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3 * (steps * rows) ** 0.5)


class Sequence(nn.Module):
    """Two dense layers over a sequence, (T, N, 32) -> (N, 8), by either framework's neurons."""

    def __init__(self, framework: str) -> None:
        super().__init__()
        if framework == "snntorch":
            snn = pytest.importorskip("snntorch")
            make = partial(snn.Leaky, beta=0.8, reset_mechanism="zero")
        else:
            neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
            make = partial(neuron.LIFNode, step_mode="m")
        self.framework = framework
        self.fc1, self.fc2, self.out = nn.Linear(32, 64), nn.Linear(64, 48), nn.Linear(48, 8)
        self.lif1, self.lif2 = make(), make()

    def forward(self, x: Tensor) -> Tensor:
        if self.framework == "spikingjelly":
            for lif in (self.lif1, self.lif2):
                lif.reset()
            return self.out(self.lif2(self.fc2(self.lif1(self.fc1(x))))).sum(0)
        states = [self.lif1.reset_mem(), self.lif2.reset_mem()]
        total = torch.zeros((), device=x.device)
        for step in x:
            spikes, states[0] = self.lif1(self.fc1(step), states[0])
            spikes, states[1] = self.lif2(self.fc2(spikes), states[1])
            total = total + self.out(spikes)
        return total


def prepared(framework: str, device: str, **options: Any) -> tuple[NITLearner, Tensor]:
    torch.manual_seed(0)
    net = swap_neurons(Sequence(framework), sigma=0.8)
    x = (torch.rand(12, 6, 32) < 0.3).float()
    net.to(device)
    return NITLearner(net, **{"replicas": 8, "credit": "none", "seed": 4, **options}), x.to(device)


def step(learner: NITLearner, x: Tensor) -> Tensor:
    with learner.record():
        out = learner.net(learner.expand(x, dim=1))
    return learner.backward((out.float() - 0.3).square().sum(1))


@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "nit-s"},
        {"learn_sigma": True},
        {"antithetic": True},
        {"conditional": True},
        {"credit": "layers", "residual": 1.0},
        {"credit": "time", "residual": 0.0},
    ],
    ids=str,
)
def test_a_learner_gives_what_it_gives_on_the_reference(
    framework: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for device, backend in (("cuda", "cupy"), ("cpu", "reference")):
        monkeypatch.setenv("NIT_SNN_BACKEND", backend)
        learner, x = prepared(framework, device, **options)
        before = sum(LAUNCHED.values())
        step(learner, x)
        assert (sum(LAUNCHED.values()) > before) == (device == "cuda")
        found[device] = torch.cat([p.grad.flatten().cpu() for p in learner.net.parameters()])
    # A membrane at the threshold may fire on one device and not on the other.
    assert torch.cosine_similarity(found["cuda"], found["cpu"], 0) > 0.999


def test_kernels_run_on_torchs_current_stream() -> None:
    learner, x = prepared("spikingjelly", "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # what runs elsewhere would read the input too early
        step(learner, x * torch.ones((), device="cuda"))
    torch.cuda.current_stream().wait_stream(side)
    other, _ = prepared("spikingjelly", "cuda")
    step(other, x)
    for a, b in zip(learner.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
def test_a_replayed_graph_draws_fresh_noise(framework: str) -> None:
    learner, x = prepared(framework, "cuda")
    eager, _ = prepared(framework, "cuda")
    wanted = []
    for _ in range(6):
        eager.net.zero_grad()
        step(eager, x)
        wanted.append(eager.net.fc1.weight.grad.clone())
    replay = cuda_graph(learner, partial(step, learner, x))
    found = []
    for _ in range(3):
        replay()
        found.append(learner.net.fc1.weight.grad.clone())
    for ours, theirs in zip(found, wanted[3:], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert learner.state_dict()["passes"] == 6


def test_operators_compile() -> None:
    scale, passes = torch.ones(1, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")

    @torch.compile(fullgraph=True)
    def twice(weight: Tensor) -> Tensor:
        drawn = [
            weighted_score(weight, scale, passes, **STREAM, inner=9, steps=2, first_step=i)
            for i in (0, 2)
        ]
        return torch.cat(drawn) * 2

    weight = torch.rand(8, device="cuda")
    whole = weighted_score(weight, scale, passes, **STREAM, inner=9, steps=4, first_step=0)
    torch.testing.assert_close(twice(weight), 2 * whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    learner, x = prepared("spikingjelly", "cuda")
    with torch.autocast("cuda", dtype):
        step(learner, x)
    other, _ = prepared("spikingjelly", "cuda")
    step(other, x)
    for a, b in zip(learner.net.parameters(), other.net.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        assert torch.cosine_similarity(a.grad.flatten(), b.grad.flatten(), 0) > 0.8


def test_a_copy_learns_by_itself() -> None:
    learner, x = prepared("spikingjelly", "cuda")
    twin = NITLearner(copy.deepcopy(learner.net), replicas=8, credit="none", seed=4)
    step(learner, x)
    step(twin, x)
    for a, b in zip(learner.net.parameters(), twin.net.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device_than_the_current_one() -> None:
    learner, x = prepared("spikingjelly", "cuda:1")
    step(learner, x)
    other, _ = prepared("spikingjelly", "cuda:0")
    step(other, x.to("cuda:0"))
    for a, b in zip(learner.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad.cpu())


def test_more_than_2_to_the_31_numbers() -> None:
    """The far end of an output of 2^31 + 2^20 numbers is what a reference says of those rows."""
    free, _ = torch.cuda.mem_get_info()
    if free < 2**34:
        pytest.skip("needs 16 GiB")
    inner = 2**16
    rows = 2**15 + 2**4
    passes, scale = torch.tensor([1], device="cuda"), torch.ones(1, device="cuda")
    weight = torch.zeros(rows, device="cuda")
    weight[-1] = 1
    one = {**STREAM, "replicas": 1}
    found = weighted_score(weight, scale, passes, **one, inner=inner, steps=1, first_step=0)
    assert not found[0, :-1].any()
    last = found[0, -1]
    assert abs(last.mean()) < 5 / inner**0.5 and abs(last.var() - 1) < 5 * (2 / inner) ** 0.5
