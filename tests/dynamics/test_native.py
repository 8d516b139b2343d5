"""Compiled loops give what torch's operators give, to rounding, and nobody needs a compiler."""

from __future__ import annotations

import ctypes
import platform
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from test_conditioned import NODES, Net
from torch import Tensor, nn

import nit_snn.dynamics.backend
import nit_snn.dynamics.compiled.layer
from nit_snn import NITLearner, backends, swap_neurons
from nit_snn.dynamics.compiled import arguments, build
from nit_snn.dynamics.compiled import conditioned as native
from nit_snn.dynamics.compiled.settle import collect_and_settle
from nit_snn.dynamics.conditioned import Conditioned, condition
from nit_snn.dynamics.kernels.noisy_lif.reference import Dynamics
from nit_snn.errors import BackendError
from nit_snn.estimators.baselines import Sharing
from nit_snn.estimators.control_coefficients import Entry, settle
from nit_snn.estimators.control_steps import Followed
from nit_snn.neurons.base import Lif

#: Where the loops have to be there, so that to lack them is no reason to skip their tests.
SURE = (
    sys.platform == "linux"
    and platform.machine() in ("x86_64", "aarch64")
    and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
)
LACKING = not SURE and isinstance(build.loops(), str)
pytestmark = pytest.mark.skipif(LACKING, reason="no C++ compiler")
STEPS, REPLICAS, BATCH = 5, 4, 3
ROWS = REPLICAS * BATCH
#: Fewer neurons than a vector, more than a block, and two dimensions of them.
SHAPES = [(3,), (1500,), (4, 37)]
RESETS = {
    "hard": Dynamics(reset="hard", v_reset=-0.1, or_equal=True),
    "soft": Dynamics(reset="soft", rest=0.2),
}
FIELDS = tuple(Conditioned.__dataclass_fields__)


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIT_SNN_BACKEND", raising=False)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Which loops ran: what shows that a fast path was taken."""
    found: set[str] = set()
    own = arguments.compiled

    class Noted:
        def __getattr__(self, name: str) -> Any:
            found.add(name)
            return getattr(own(), name)

    monkeypatch.setattr(arguments, "compiled", Noted)
    return found


def steps_of(shape: tuple[int, ...], reset: str, spread: float, static: bool) -> dict[str, Any]:
    """What both get; membranes at up to some `spread` / sigma from the threshold."""
    torch.manual_seed(0)
    current = spread * torch.randn(1 if static else STEPS, ROWS, *shape)
    return {
        "current": current,
        "state": torch.randn(ROWS, *shape),
        "noise": [torch.randn(ROWS, *shape) for _ in range(STEPS)],
        "signs": [1.0, -1.0, 1.0, 1.0, -1.0],
        "lif": Lif(RESETS[reset], decay=torch.full(shape, 0.7), gain=0.9),
        "threshold": 0.4,
        "sigma": torch.rand(shape) * 0.3 + 0.3,
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("static", [True, False])
def test_steps_are_those_of_torch(shape: tuple[int, ...], reset: str, static: bool) -> None:
    """All that is told of them, by torch in float64."""
    given = steps_of(shape, reset, 0.3, static)
    options = {"learns_sigma": True, "controlled": True, "through_time": True}
    spikes, last, told, silent = native.condition(**given, **options)
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}
    exact["noise"] = [eps.double() for eps in given["noise"]]
    expected_spikes, expected_last, expected, expected_silent = condition(**exact, **options)
    assert torch.equal(spikes, expected_spikes.float()) and 0.1 < float(spikes.mean()) < 0.9
    torch.testing.assert_close(last.double(), expected_last, rtol=1e-5, atol=1e-6)
    assert silent is not None and expected_silent is not None
    torch.testing.assert_close(silent.double(), expected_silent, rtol=1e-5, atol=1e-5)
    for name in FIELDS:
        found, wanted = getattr(told, name), getattr(expected, name)
        assert (found is None) == (wanted is None) == (name == "gap" and reset == "hard"), name
        if found is not None:
            # float32's own error in the distance to the threshold is what the tolerance is for.
            torch.testing.assert_close(
                found.double(),
                wanted.double(),
                rtol=2e-5,
                atol=2e-5,
                msg=lambda text, n=name: f"{n}: {text}",
            )


@pytest.mark.parametrize(
    "asked",
    [
        {"learns_sigma": False, "controlled": False, "through_time": False},
        {"learns_sigma": True, "controlled": False, "through_time": False},
        {"learns_sigma": False, "controlled": True, "through_time": False},
    ],
    ids=str,
)
def test_only_what_is_asked_for_is_told(asked: dict[str, bool]) -> None:
    given = steps_of((6,), "hard", 0.3, False)
    told, expected = native.condition(**given, **asked)[2], condition(**given, **asked)[2]
    for name in FIELDS:
        if name == "level" and not asked["learns_sigma"]:
            assert told.level is None
        else:
            assert (getattr(told, name) is None) == (getattr(expected, name) is None), name


def test_far_from_the_threshold() -> None:
    """Where torch's float32 tail is zero, against float64: up to 36 sigma."""
    a = torch.linspace(-36, 36, 1441)
    given: dict[str, Any] = {
        "current": torch.zeros(1, 1, len(a)),
        "state": (-a)[None],  # so that a is the distance to a threshold of 0
        "noise": [torch.where(a > 0, a + 0.1, a - 0.1)[None]],
        "signs": [1.0],
        "lif": Lif(Dynamics(reset="hard"), decay=1.0),
        "threshold": 0.0,
        "sigma": torch.ones(()),
    }
    told = native.condition(**given, learns_sigma=True, controlled=True, through_time=True)[2]
    level = a.double()
    tail = torch.special.erfc(level.abs() * 0.5**0.5) / 2
    density = (-level.square() / 2).exp() / (2 * torch.pi) ** 0.5
    # All of these are unlikely: above it fires however far the threshold is, below it does not.
    score = torch.where(level > 0, density / tail, -density / tail)
    torch.testing.assert_close(told.score[0, 0].double(), score, rtol=2e-6, atol=0)
    assert told.density is not None and told.residual is not None
    # What is below 2^-64 is zero: too small to matter, and its products would be slow.
    torch.testing.assert_close(told.density[0, 0].double(), density, rtol=3e-5, atol=1e-19)
    torch.testing.assert_close(
        told.residual[0, 0].double(), torch.where(level > 0, 1 - tail, tail - 1), rtol=1e-6, atol=0
    )
    for name in FIELDS:
        value = getattr(told, name)
        assert value is None or value.isfinite().all(), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("read", ["each step", "all alike", "nothing"])
@pytest.mark.parametrize("arriving", [True, False])
def test_derivatives_are_settled_as_by_torch(
    shape: tuple[int, ...],
    reset: str,
    read: str,
    arriving: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = steps_of(shape, reset, 0.3, False)
    steps = native.condition(**given, learns_sigma=False, controlled=True, through_time=True)[2]
    spikes = torch.randn(STEPS, ROWS, *shape)
    if read == "all alike":
        spikes = spikes[:1].expand(STEPS, *spikes.shape[1:])
    wanted = None if read == "nothing" else spikes
    membrane = torch.randn(ROWS, *shape) if arriving else None
    carry = torch.rand(shape)
    done = collect_and_settle(steps, wanted, membrane, carry, REPLICAS, True)
    assert done is not None and done[0] is not None
    monkeypatch.setenv("NIT_SNN_BACKEND", "torch")
    drifts, found, membranes = Followed(0, steps, carry, 1.0, None).collect(wanted, membrane)
    assert steps.residual is not None and steps.wandering is not None and membranes is not None
    entry = Entry(*(x.transpose(0, 1) for x in (steps.residual, found, membranes, steps.wandering)))
    factors, explained = settle([entry], REPLICAS, Sharing())
    torch.testing.assert_close(done[0], drifts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done[1].transpose(0, 1), factors[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done[2], explained, rtol=1e-4, atol=1e-4 * float(len(done[2])))
    # Not all at once, but entry by entry: the same.
    monkeypatch.delenv("NIT_SNN_BACKEND")
    factors, explained = settle([entry, entry], REPLICAS, Sharing())
    torch.testing.assert_close(done[1].transpose(0, 1), factors[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(2 * done[2], explained, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("replicas", [2, 3, 6])
def test_any_number_of_replicas(replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    entry = Entry(*(torch.randn(replicas * 4, 5, 9) for _ in range(4)))
    found = settle([entry], replicas, Sharing())
    monkeypatch.setenv("NIT_SNN_BACKEND", "torch")
    expected = settle([entry], replicas, Sharing())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def alike(found: dict[str, Tensor], expected: dict[str, Tensor], *, zeros: bool = False) -> None:
    """Gradients that differ by rounding; none of them is zero, unless some may be."""
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert zeros or scale > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * scale)


def gradients(net: Net, static: bool, causal: bool, **options: Any) -> dict[str, Tensor]:
    learner = NITLearner(
        net, seed=3, causal=causal, **{"replicas": 4, "conditional": "pathwise", **options}
    )
    x = torch.rand(1 if static else 6, 8, 5, generator=torch.Generator().manual_seed(1))
    y = torch.arange(8) % 3
    with learner.record():
        yr = learner.expand(y)
        xr = learner.expand(x[0]).expand(6, -1, -1) if static else learner.expand(x, dim=1)
        out = net(xr)
        read = out if causal else [out.sum(0)]
        losses = torch.stack([F.cross_entropy(o, yr, reduction="none") for o in read])
    learner.backward(losses if causal else losses[0])
    learner.close()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("options", "loops"),
    [
        ({}, "nit_steps nit_charge"),
        ({"control": "readout"}, "nit_steps nit_explained nit_charge"),
        ({"control": "network"}, "nit_steps nit_explained nit_charge"),
        ({"control": "time"}, "nit_steps nit_settle nit_charge"),
        ({"control": "time", "noise": "table"}, "nit_steps nit_settle nit_charge"),
        ({"control": "time", "learn_sigma": True}, "nit_steps nit_settle"),
        ({"control": "time", "antithetic": True, "replicas": 6}, "nit_steps nit_charge"),
        ({"control": "time", "sobol": True, "replicas": 8}, "nit_steps nit_charge"),
        ({"control": "time", "route": "general"}, "nit_steps nit_settle nit_charge"),
        ({"layerwise": True, "baseline": "none"}, "nit_steps nit_charge"),
        ({"causal": True}, "nit_steps nit_charge"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("node", "pieces", "static"), [("hard", 1, True), ("soft", 2, False), ("elsewhere", 3, False)]
)
def test_a_gradient_is_that_of_torch(
    node: str,
    pieces: int,
    static: bool,
    options: dict[str, Any],
    loops: str,
    called: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"causal": False, **options}
    found = []
    for backend in ("native", "torch"):
        monkeypatch.setenv("NIT_SNN_BACKEND", backend)
        called.clear()
        net = Net(2, False, pieces, NODES[node]).float()
        found.append(gradients(net, static, **options))
        assert called == (set(loops.split()) if backend == "native" else set())
    alike(*found)


PLAIN: list[dict[str, Any]] = [
    {},
    {"antithetic": True},
    {"noise": "table"},
    {"noise": "table", "memory": "bits"},
    {"memory": "bits"},
    {"rule": "nit-s"},
    {"learn_sigma": True},
    {"control": "readout"},
    {"control": "readout", "learn_sigma": True},
    {"causal": True},
    {"layerwise": True, "baseline": "none"},
]


class Peers(nn.Module):
    """Two layers in either framework, step by step or all steps at once."""

    def __init__(self, kind: str, static: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.static = kind, static
        if kind.startswith("snnTorch"):
            reset = kind.split()[1]
            self.neurons = nn.ModuleList(
                snn.Leaky(beta=0.8, threshold=0.4, reset_mechanism=reset) for _ in range(2)
            )
        else:
            self.neurons = nn.ModuleList(
                neuron.LIFNode(v_threshold=0.4, v_reset=v) for v in (0.0, None)
            )
            functional.set_step_mode(self, "m" if kind.endswith("many") else "s")
        self.synapses = nn.ModuleList([nn.Linear(5, 40), nn.Linear(40, 40)])
        self.readout = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(T, N, 3) from (T, N, 5)."""
        if self.kind.endswith("many"):
            functional.reset_net(self)
            for synapse, neurons in zip(self.synapses, self.neurons, strict=True):
                x = neurons(synapse(x))
            return self.readout(x)
        states: list[Any] = [None, None]
        if self.kind.startswith("snnTorch"):
            states = [neurons.reset_mem() for neurons in self.neurons]
        else:
            functional.reset_net(self)
        found = []
        for now in x:
            for i, (synapse, neurons) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                if states[i] is None:
                    now = neurons(synapse(now))
                else:
                    now, states[i] = neurons(synapse(now), states[i])
            found.append(self.readout(now))
        return torch.stack(found)


@pytest.mark.parametrize("options", PLAIN, ids=str)
@pytest.mark.parametrize(
    ("kind", "static"),
    [
        ("SpikingJelly, many", True),
        ("SpikingJelly, many", False),
        ("SpikingJelly, one", False),
        ("snnTorch subtract", True),
        ("snnTorch zero", False),
        ("snnTorch none", False),
    ],
)
def test_the_noises_own_scores_are_those_of_torch(
    kind: str,
    static: bool,
    options: dict[str, Any],
    called: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"causal": False, "conditional": False, **options}
    found = []
    for backend in ("native", "torch"):
        monkeypatch.setenv("NIT_SNN_BACKEND", backend)
        called.clear()
        found.append(gradients(swap_neurons(Peers(kind, static), sigma=0.5), static, **options))
        assert ("nit_steps" in called) == (backend == "native")
    alike(*found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"control": "readout"},
        {"control": "network"},
        {"control": "time"},
        {"control": "time", "learn_sigma": True},
        {"control": "time", "antithetic": True, "replicas": 6},
        {"learn_sigma": True, "causal": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "kind", ["SpikingJelly, one", "snnTorch subtract", "snnTorch zero", "snnTorch none"]
)
def test_single_calls_conditioned_pathwise_are_those_of_torch(
    kind: str, options: dict[str, Any], called: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"causal": False, **options}
    found = []
    for backend in ("native", "torch"):
        monkeypatch.setenv("NIT_SNN_BACKEND", backend)
        called.clear()
        found.append(gradients(swap_neurons(Peers(kind, False), sigma=0.5), False, **options))
        assert ("nit_steps" in called) == (backend == "native")
    alike(*found)


def compare(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """The gradients of a module that tells scores, (N, 3), of (N, 5), by both backends."""
    found = []
    for backend in ("native", "torch"):
        monkeypatch.setenv("NIT_SNN_BACKEND", backend)
        torch.manual_seed(0)
        net = swap_neurons(make(), sigma=0.5)
        learner = NITLearner(net, seed=3, replicas=4, **options)
        x = torch.rand(8, 5, generator=torch.Generator().manual_seed(1))
        with learner.record():
            xr, yr = learner.expand(x, torch.arange(8) % 3)
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        learner.backward(losses)
        found.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    alike(*found, zeros=True)


class Read(nn.Module):
    """A layer of spikes, and a readout that has them in the order that it likes."""

    def __init__(self, order: str, **node: Any) -> None:
        super().__init__()
        self.order, self.synapse = order, nn.Linear(5, 7)
        self.neurons, self.readout = neuron.LIFNode(**{"v_threshold": 0.3, **node}), nn.Linear(7, 3)
        self.neurons.step_mode = "s" if order == "neurons first" else "m"

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        if self.order == "neurons first":
            calls = [self.neurons(self.synapse(x)) for _ in range(4)]
            return sum((self.readout.weight @ spikes.T.contiguous()).T for spikes in calls)
        spikes = self.neurons(self.synapse(x.expand(4, *x.shape)))
        if self.order == "rows first":
            return self.readout(spikes.transpose(0, 1)).sum(1)
        return self.readout(spikes).sum(0)


ORDERED: list[dict[str, Any]] = [
    {"control": "readout"},
    {"control": "readout", "conditional": "pathwise"},
    {"control": "network", "conditional": "pathwise"},
    {"control": "time", "conditional": "pathwise"},
]


@pytest.mark.parametrize("options", ORDERED, ids=str)
@pytest.mark.parametrize("order", ["steps first", "rows first", "neurons first"])
def test_spikes_may_be_read_in_any_order(
    order: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the loss's derivative comes in another order than what is known of the layer."""
    compare(lambda: Read(order), monkeypatch, **options)


@pytest.mark.parametrize("kind", ["residual", "gradient", "membrane", "wandering"])
@pytest.mark.parametrize("sequence", [True, False])
def test_an_entry_may_be_in_any_order(
    kind: str, sequence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    names = ("residual", "gradient", "membrane", "wandering")
    tensors = {name: torch.randn(12, 5, 9) for name in names}
    if sequence:  # as layers keep them
        tensors = {k: v.transpose(0, 1).contiguous().transpose(0, 1) for k, v in tensors.items()}
    other = tensors[kind].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    entry = Entry(**{**tensors, kind: other})
    found = settle([entry], 4, Sharing())
    monkeypatch.setenv("NIT_SNN_BACKEND", "torch")
    torch.testing.assert_close(found, settle([entry], 4, Sharing()), rtol=1e-4, atol=1e-4)


def test_torchs_default_type_and_device_are_not_asked() -> None:
    arguments._constant.cache_clear()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            held = arguments.repeated(0.5, torch.Size([3]))
    finally:
        torch.set_default_dtype(before)
        arguments._constant.cache_clear()
    assert held.dtype == torch.float32 and held.device.type == "cpu"


@pytest.mark.parametrize("options", [{"conditional": "pathwise"}, {"control": "readout"}], ids=str)
def test_a_threshold_that_nothing_reaches(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Read):
        def __init__(self) -> None:
            super().__init__("steps first")
            self.before = nn.Sequential(nn.Linear(5, 7), neuron.LIFNode(v_threshold=float("inf")))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.before(x).sum()

    compare(Silent, monkeypatch, **options)


def test_parameters_may_have_the_batch_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thresholds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.synapse, self.readout = nn.Linear(5, 7), nn.Linear(7, 3)
            beta, threshold = torch.rand(1, 7), torch.rand(1, 7) * 0.3 + 0.2
            self.neurons = snn.Leaky(beta=beta, threshold=threshold, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            self.neurons.reset_mem()
            return sum(self.readout(self.neurons(self.synapse(x))) for _ in range(3))

    for options in ({}, {"control": "time", "conditional": "pathwise"}):
        compare(Thresholds, monkeypatch, **options)


def test_no_neurons_are_no_reason_to_die() -> None:
    entry = Entry(torch.zeros(12, 0), torch.zeros(12, 0))
    factors, explained = settle([entry], 4, Sharing())
    assert factors[0].shape == (12, 0) and torch.equal(explained, torch.zeros(12))


def test_noise_in_pieces_is_noise_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (1, 2**21):
        monkeypatch.setattr(nit_snn.dynamics.compiled.layer, "_AT_ONCE", most)
        net = swap_neurons(Peers("SpikingJelly, many", True), sigma=0.5)
        found.append(
            gradients(net, True, False, conditional=False, memory="bits", learn_sigma=True)
        )
    for name, expected in found[1].items():
        assert torch.equal(found[0][name], expected), name


def test_float64_goes_by_torch(called: set[str]) -> None:
    net = swap_neurons(Peers("SpikingJelly, many", True), sigma=0.5).double()
    learner = NITLearner(net, replicas=4)
    with learner.record():
        losses = net(learner.expand(torch.rand(3, 2, 5).double(), dim=1)).sum((0, 2))
    learner.backward(losses)
    assert not called


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(arguments, "_ENOUGH", 1)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_bit(two_threads: None) -> None:
    """Rows are shared out, and nothing is summed over what two threads have."""
    found = []
    for count in (2, 1):
        torch.set_num_threads(count)
        net = Net(2, False, 1, {}).float()
        found.append(gradients(net, True, False, control="time", replicas=6))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_few_numbers_are_for_one_thread(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert arguments.threads(100) == 1


def test_neurons_in_several_dimensions() -> None:
    """Behind a convolution, with a noise level for each channel."""
    net = torch.nn.Sequential(
        layer.Conv2d(1, 3, 3), neuron.LIFNode(), layer.Flatten(), layer.Linear(3 * 16, 2)
    )
    functional.set_step_mode(net, "m")
    swap_neurons(net, sigma=0.5)
    found = []
    for backend in ("native", "torch"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NIT_SNN_BACKEND", backend)
            net.zero_grad()
            functional.reset_net(net)
            learner = NITLearner(net, replicas=4, seed=0, conditional="pathwise", control="time")
            with learner.record():
                x = torch.rand(2, 5, 1, 6, 6, generator=torch.Generator().manual_seed(2))
                losses = net(learner.expand(x, dim=1)).sum(0).square().sum(1)
            learner.backward(losses)
            learner.close()
            found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], ctypes.CDLL | str]:
    """Compiles and loads one of the sources as a new process would, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "_SOURCES", ("charge.cpp",))
    monkeypatch.setattr(build, "_own_folder", lambda: tmp_path / "own")
    (tmp_path / "own").mkdir()
    return build.loops.__wrapped__


def test_without_a_compiler_torch_does_it(
    anew: Callable[[], ctypes.CDLL | str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = anew()
    assert isinstance(found, str) and found.startswith("there is no C++ compiler")
    monkeypatch.setattr(nit_snn.dynamics.backend, "loops", lambda: found)
    assert str(backends()["cpu"]).startswith("torch (no compiled loops here: there is no C++")
    net = Net(1, False, 1, {}).float()
    assert gradients(net, True, False, control="time")
    monkeypatch.setenv("NIT_SNN_BACKEND", "native")
    with pytest.raises(BackendError, match="NIT_SNN_BACKEND=native cannot run here: there is no"):
        backends()


def test_a_compiler_that_fails_is_told_of(
    anew: Callable[[], ctypes.CDLL | str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no licence' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert anew() == "broken failed: no licence"


def test_what_is_compiled_is_kept_where_nobody_else_writes(
    anew: Callable[[], ctypes.CDLL | str], tmp_path: Path
) -> None:
    folder = tmp_path / "nit_snn"
    assert isinstance(anew(), ctypes.CDLL)
    (library,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    made = library.stat().st_mtime_ns
    assert isinstance(anew(), ctypes.CDLL)
    assert library.stat().st_mtime_ns == made  # not compiled again
    folder.chmod(0o777)  # whose library may that be now?
    assert isinstance(anew(), ctypes.CDLL)
    assert [path.name for path in (tmp_path / "own").iterdir()] == [library.name]


def test_without_another_place_it_is_kept_in_the_home(
    anew: Callable[[], ctypes.CDLL | str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert isinstance(anew(), ctypes.CDLL)
    assert len(list((tmp_path / ".cache" / "nit_snn").iterdir())) == 1


@pytest.mark.parametrize(
    ("module", "elsewhere"), [("sys", {"byteorder": "big"}), ("os", {"name": "nt"})]
)
def test_elsewhere_nothing_is_compiled(
    module: str,
    elsewhere: dict[str, str],
    anew: Callable[[], ctypes.CDLL | str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, module, SimpleNamespace(**elsewhere))
    found = anew()
    assert isinstance(found, str) and "little-endian processors under POSIX" in found


def test_without_a_home_it_is_compiled_for_this_process(
    anew: Callable[[], ctypes.CDLL | str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    assert isinstance(anew(), ctypes.CDLL)
    assert list((tmp_path / "own").iterdir())


def test_a_library_that_others_can_write_to_is_compiled_again(
    anew: Callable[[], ctypes.CDLL | str],
) -> None:
    library = build._library()
    library.write_bytes(b"planted")
    library.chmod(0o666)
    assert isinstance(anew(), ctypes.CDLL)
    assert library.stat().st_size > 1000 and build._is_own(library)


def test_a_damaged_library_is_compiled_again(anew: Callable[[], ctypes.CDLL | str]) -> None:
    library = build._library()
    library.write_bytes(b"no library")
    assert isinstance(anew(), ctypes.CDLL)
    assert library.stat().st_size > 1000


def test_another_source_is_another_library(
    anew: Callable[[], ctypes.CDLL | str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(anew(), ctypes.CDLL)
    monkeypatch.setattr(build, "_SOURCES", ("explained.cpp",))
    found = anew()
    assert isinstance(found, ctypes.CDLL) and found.nit_explained
    assert len(list((tmp_path / "nit_snn").iterdir())) == 2


def test_torch_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends()["cpu"].name == "native"
    monkeypatch.setenv("NIT_SNN_BACKEND", "torch")
    assert backends()["cpu"].name == "torch"
    monkeypatch.setenv("NIT_SNN_BACKEND", "native")
    assert str(backends()["cpu"]) == "native (forced by NIT_SNN_BACKEND)"
    with pytest.raises(BackendError):
        monkeypatch.setenv("NIT_SNN_BACKEND", "nativ")
        backends()
