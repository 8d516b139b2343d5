"""What a pass keeps: with more or less memory one and the same gradient."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from conftest import SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError
from nit_snn.estimators import surrogate
from nit_snn.gradients import accumulate
from nit_snn.recording import memory_budget, surrogates
from nit_snn.recording.synapse_taps import SynapseTap

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Net(nn.Module):
    """Two noisy layers on an input that changes with time, and a trained readout or none."""

    def __init__(
        self, steps: int = 7, sizes: tuple[int, int, int] = (7, 9, 8), readout: bool = True
    ) -> None:
        super().__init__()
        self.steps, self.counts = steps, False
        self.fc1, self.fc2 = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])
        self.lif1 = snn.Leaky(beta=0.8, reset_mechanism="zero")
        self.lif2 = snn.Leaky(beta=0.9, reset_mechanism="zero")
        self.out = nn.Linear(sizes[2], 3) if readout else nn.Identity()

    def currents(self, x: Tensor) -> Iterator[Tensor]:
        """What goes into the first layer at each step."""
        for t in range(self.steps):
            yield x * (1 + t % 3)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        outputs = []
        for now in self.currents(x):
            spikes, mem1 = self.lif1(self.fc1(now), mem1)
            spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
            outputs.append(self.out(spikes))
            if self.counts:
                outputs = [sum(outputs)]
        return torch.stack(outputs)


class Static(Net):
    """The same image at every step."""

    def currents(self, x: Tensor) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield x


class Poisson(Net):
    """New spikes at every step, from torch's generator."""

    def currents(self, x: Tensor) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield (torch.rand_like(x) < x).to(x.dtype)


class General(Net):
    """The first current comes through a layer that is no registered synapse."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Bilinear(7, 1, 9)

    def currents(self, x: Tensor) -> Iterator[Tensor]:
        for t in range(self.steps):
            yield x * (1 + t % 3)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.ones(len(x), 1)
        synapse = self.fc1
        self.__dict__["fc1"] = lambda now: synapse(now, one)
        try:
            return super().forward(x)
        finally:
            del self.__dict__["fc1"]


class Jelly(SpikingJellyNet):
    def __init__(self, mode: str = "m") -> None:
        super().__init__(steps=7, mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes(x[:, :4])


def gradients(
    build: Callable[[], nn.Module], recompute: bool | str, budget: int | None = None, **options: Any
) -> list[Tensor]:
    """The gradients of one batch, or of the last of several passes of it."""
    torch.manual_seed(0)
    passes = options.pop("passes", 1)
    net = swap_neurons(build(), sigma=0.5)
    given = {"replicas": 8, "seed": 1, "credit": "none", **options}
    learner = NITLearner(net, recompute=recompute, memory_budget=budget, **given)
    x, y = torch.rand(6, 7), torch.randint(3, (6,))
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, y)
            steps = net(xr) if learner.per_step_losses else [net(xr).sum(0)]
            losses = [F.cross_entropy(step, yr, reduction="none") for step in steps]
        learner.backward(torch.stack(losses) if learner.per_step_losses else losses[0])
    learner.close()
    return [p.grad for p in net.parameters() if p.grad is not None]


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "changing input": (Net, {}),
    "static input": (Static, {}),
    "poisson input": (Poisson, {}),
    "no readout": (lambda: Net(readout=False), {}),
    "general route": (General, {}),
    "antithetic": (Net, {"antithetic": True}),
    "learned sigma": (Net, {"learn_sigma": True}),
    "signs": (Static, {"rule": "nit-s"}),
    "table, antithetic": (Net, {"noise_reuse": True, "antithetic": True}),
    "batch mean": (Static, {"baseline": "batch-mean"}),
    "per step": (Net, {"per_step_losses": True}),
    "per step, static": (Static, {"per_step_losses": True, "learn_sigma": True}),
    "SpikingJelly": (Jelly, {"learn_sigma": True}),
    "SpikingJelly, per step": (Jelly, {"per_step_losses": True}),
    "SpikingJelly, single steps": (lambda: Jelly("s"), {}),
    "layers": (Net, {"credit": "layers", "residual": 1, "learn_sigma": True}),
    "time alone": (Net, {"credit": "time", "residual": 0, "learn_sigma": True}),
    "SpikingJelly, layers": (Jelly, {"credit": "layers", "residual": 0.5}),
    "SpikingJelly, readout, signs": (
        Jelly,
        {"credit": "readout", "residual": 1, "rule": "nit-s"},
    ),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_kept_makes_no_difference(
    case: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", backend)
    build, options = CASES[case]
    if backend == "reference" and options.get("noise_reuse"):
        pytest.skip("the kernels' models have no table")
    wanted = gradients(build, False, **options)
    half = 2 * 7 * 48 * 9 * 4  # bytes of the first layer's noise, of which every other is kept
    for recompute, budget in ((True, None), ("auto", 1), ("auto", half)):
        found = gradients(build, recompute, budget, **options)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_noise_is_kept_while_there_is_room() -> None:
    """Half of the layers' noise fits: the rest is drawn again, and the gradient is the same."""
    found = []
    for budget in (None, 2 * 7 * 48 * 9 * 4):
        torch.manual_seed(0)
        net = swap_neurons(Net(), sigma=0.5)
        learner = NITLearner(net, replicas=8, seed=1, credit="none", memory_budget=budget)
        with learner.record():
            steps = net(learner.expand(torch.rand(6, 7)))
        layers = learner._session.recorder.trace.active
        kept = [
            s.noise is not None or s.total is not None for layer in layers for s in layer.segments
        ]
        assert all(kept) if budget is None else any(kept) and not all(kept)
        learner.backward(steps.sum((0, 2)))
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*found)


@pytest.fixture
def live_peak(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], int]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    return memory.live_peak


def step_of(
    build: type, steps: int, readout: bool = False, rows: int = 64, **options: Any
) -> Callable[[], None]:
    """A learning step of a network that holds no more than the sum of its outputs."""
    net = swap_neurons(build(steps, (40, 64, 32), readout), sigma=0.5)
    net.counts = True
    learner = NITLearner(net, **{"replicas": 8, "credit": "none", "seed": 1, **options})
    x = torch.rand(rows // learner.replicas, 40)

    def step() -> None:
        with learner.record():
            losses = net(learner.expand(x)).square().sum((0, 2))
        learner.backward(losses)

    return step


@pytest.mark.parametrize(
    ("build", "readout"),
    [
        (Poisson, True),
        *(
            pytest.param(*rest, marks=pytest.mark.full)
            for rest in ((Static, False), (Static, True), (Poisson, False))
        ),
    ],
)
def test_memory_grows_by_one_bit_per_presynaptic_spike(
    build: type, readout: bool, live_peak: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained readout keeps its presynaptic spikes, too, and autograd its outputs."""
    monkeypatch.setattr(accumulate, "_AT_ONCE", 2**14)  # what is unpacked at once does not grow
    peaks = []
    for steps in (64, 192):
        step = step_of(build, steps, readout, recompute=True)
        step()
        peaks.append(live_peak(step))
    spikes = 64 + (32 if readout else 0) + (40 if build is Poisson else 0)
    assert peaks[1] - peaks[0] <= 64 * 128 * spikes / 8 * 1.02


def test_a_budget_is_kept_to(live_peak: Any) -> None:
    """What can be drawn again is what the budget is for; half of it is for a step's own needs."""
    peaks = []
    for budget in (None, 2 * 10**6):
        step = step_of(Net, 60, rows=512, recompute="auto", memory_budget=budget)
        step()
        peaks.append(live_peak(step))
    noise = 60 * 512 * (64 + 32) * 4
    assert peaks[1] < peaks[0] - 0.8 * (noise - 10**6)


@pytest.mark.parametrize(
    "options",
    [
        {"credit": "layers"},
        pytest.param({"credit": "time"}, marks=pytest.mark.full),
        pytest.param({"forward_only": True}, marks=pytest.mark.full),
    ],
)
def test_a_credit_alone_takes_two_bytes_for_each_spike(
    options: dict[str, Any], live_peak: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a bit where it goes into a synapse; in the first pass, too."""
    monkeypatch.setattr(accumulate, "_AT_ONCE", 2**14)
    monkeypatch.setattr(surrogates, "_AT_ONCE", 2**14)
    monkeypatch.setattr(memory_budget, "_SPIKES", 0)
    peaks = []
    for steps in (64, 192):
        given = {"credit": "auto", "replicas": "auto", **options}
        peaks.append(live_peak(step_of(Static, steps, True, **given)))
    kept = 128 * 64 * ((64 + 32) * 2 + (64 + 32) / 8)
    assert peaks[1] - peaks[0] <= kept * 1.05


@pytest.mark.parametrize("build", [Net, Jelly, lambda: Jelly("s"), General])
@pytest.mark.parametrize(
    "options", [{"credit": "layers"}, {"credit": "time"}, {"credit": "feedback"}]
)
def test_half_precision_is_enough(
    build: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of single steps, whose surrogates have 11 bits, against one block of full precision.

    Of the second pass: in the first one, feedback has learned nothing.
    """
    given = {"passes": 2, "replicas": 1, "residual": 0, "learn_sigma": True, **options}
    wanted = gradients(build, False, **given)
    monkeypatch.setattr(surrogates, "_AT_ONCE", 1)
    monkeypatch.setattr(surrogate, "_AT_ONCE", 1)
    found = gradients(build, False, **given)
    assert len(found) == len(wanted) and not all(map(torch.equal, found, wanted))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recompute": "disk"}, "recompute must be one of"),
        ({"memory_budget": 0}, "memory_budget must be a positive"),
        ({"recompute": True, "conditional": True}, "keeps the membranes"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(Net()), **{"replicas": 4, **options})


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_only_zeros_and_ones_from_outside_become_bits(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[bool] = []
    own = SynapseTap._compute

    def noted(self: SynapseTap, *args: Any) -> Any:
        output, call = own(self, *args)
        packed.append(not isinstance(call.activity, Tensor))
        return output, call

    monkeypatch.setattr(SynapseTap, "_compute", noted)
    net = nn.Sequential(nn.Linear(4, 3), swap_neurons(snn.Leaky(beta=0.5, init_hidden=True)))
    learner = NITLearner(net, replicas=2, credit="none", recompute=True)
    with learner.record():
        x = learner.expand(torch.ones(3, 4)).clone()  # else it is known to repeat, and kept once
        x[0, 0] = value
        net(x)
    assert packed == [value == 1.0]


def test_spikes_that_a_readout_saves_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution and a dense layer behind spikes save bits; their gradients are autograd's."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), swap_neurons(snn.Leaky(beta=0.9, init_hidden=True)), nn.Conv2d(3, 2, 3)
    )
    learner = NITLearner(net, replicas=4, credit="none", seed=1, recompute=True)
    x = torch.rand(3, 1, 8, 8)
    with learner.record():
        spikes = net[:2](learner.expand(x))
        held = spikes.clone()
        losses = net[2](spikes).square().flatten(1).sum(1)
        spikes.zero_()  # what autograd would have saved; the bits know better
    learner.backward(losses)
    found = net[2].weight.grad.clone()
    net[2].weight.grad = None
    net[2](held).square().flatten(1).sum(1).mean().backward()
    torch.testing.assert_close(found, net[2].weight.grad)


def test_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    monkeypatch.setattr(
        memory, "METHODS", {k: memory.METHODS[k] for k in list(memory.METHODS)[3:5]}
    )
    monkeypatch.setattr(sys, "argv", ["memory.py", "--lengths", "8", "16", "--rows", "32"])
    args = memory.parse_arguments()
    rows = [memory.measure(name, 8, args) for name in memory.METHODS]
    assert rows[1]["tensors"] < rows[0]["tensors"]
