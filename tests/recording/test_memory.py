"""The memory modes: they give one and the same gradient, and take what they say."""

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

import nit_snn.recording.memory
from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, NonFiniteLossError, RecordingError
from nit_snn.recording import planning, two_passes
from nit_snn.recording.packed_spikes import SpikeTrain
from nit_snn.recording.shares import Shares

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
    build: Callable[[], nn.Module], memory: str, limit: int | None = None, **options: Any
) -> tuple[list[Tensor], Tensor, NITLearner]:
    """The gradients of one batch, its mean loss, and the learner."""
    torch.manual_seed(0)
    net = swap_neurons(build(), sigma=0.5)
    given = {"replicas": 8, "seed": 1, **options}
    learner = NITLearner(net, memory=memory, memory_limit=limit, **given)
    x, y = torch.rand(6, 7), torch.randint(3, (6,))

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        steps = net(x)
        if learner.causal:
            return torch.stack([F.cross_entropy(step, y, reduction="none") for step in steps])
        return F.cross_entropy(steps.sum(0), y, reduction="none")

    mean = learner.learn(losses_of, x, y)
    learner.close()
    return [p.grad for p in net.parameters() if p.grad is not None], mean, learner


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "changing input": (Net, {}),
    "static input": (Static, {}),
    "poisson input": (Poisson, {}),
    "no readout": (lambda: Net(readout=False), {}),
    "general route": (General, {}),
    "antithetic": (Net, {"antithetic": True}),
    "learned sigma": (Net, {"learn_sigma": True}),
    "signs": (Static, {"rule": "nit-s"}),
    "table, antithetic": (Net, {"noise": "table", "antithetic": True}),
    "conditional": (Net, {"conditional": True, "learn_sigma": True}),
    "batch mean": (Static, {"baseline": "batch-mean"}),
    "layerwise": (Net, {"layerwise": True, "antithetic": True}),
    "causal": (Net, {"causal": True}),
    "causal, static": (Static, {"causal": True, "learn_sigma": True}),
    "SpikingJelly": (Jelly, {"learn_sigma": True}),
    "SpikingJelly, causal": (Jelly, {"causal": True}),
    "SpikingJelly, single steps": (lambda: Jelly("s"), {}),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_all_modes_and_splits_give_the_same_gradient(
    case: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", backend)
    monkeypatch.setattr(two_passes, "AT_ONCE", 2000)  # so that a replay drains every few steps
    drained = []
    drain = two_passes.drain
    monkeypatch.setattr(two_passes, "drain", lambda *args: (drained.append(1), drain(*args)))
    build, options = CASES[case]
    if backend == "reference" and options.get("noise") == "table":
        pytest.skip("the kernels' models have no table")
    wanted, mean, _ = gradients(build, "scores", **options)
    ways = [("replay", None, 1), ("replay", 1, 8)]
    if not options.get("conditional"):
        ways += [("bits", None, 1)]
    if backend == "torch":
        ways += [("scores", 1, 8)]
    for memory, limit, parts in ways:
        drained.clear()
        found, again, learner = gradients(build, memory, limit, **options)
        unit = (2 if options.get("antithetic") else 1) * (2 if options.get("layerwise") else 1)
        parts = min(parts, 8 // unit)
        way = learner._planner.plan(8, torch.device("cpu"))
        assert (way.mode, way.parts) == (memory, parts)
        if memory == "replay" and parts == 1 and case not in ("static input", "signs"):
            assert len(drained) > 2  # while it ran, not only in the end
        if case == "poisson input" and parts > 1:
            continue  # its parts drew other spikes from torch than the whole did
        torch.testing.assert_close(again, mean)
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"control": "network"}, {"conditional": "pathwise"}])
def test_what_needs_all_steps_together_is_not_replayed(options: dict[str, Any]) -> None:
    wanted, _, _ = gradients(Net, "scores", **options)
    found, _, learner = gradients(Net, "auto", 1, **options)
    way = learner._planner.plan(8, torch.device("cpu"))
    parts = 1 if "control" in options else 8
    assert (way.twice, way.parts) == (parts > 1, parts) and way.mode != "replay"
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    with pytest.raises(AttachError, match="all steps together"):
        gradients(Net, "replay", **options)


def test_sobol_points_are_not_taken_apart() -> None:
    wanted, _, _ = gradients(Net, "scores", sobol=True)
    found, _, learner = gradients(Net, "replay", 1, sobol=True)
    assert learner._planner.plan(8, torch.device("cpu")).parts == 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_auto_goes_on_to_the_next_mode_when_a_pass_does_not_fit() -> None:
    """Each limit is just what the mode needs, by its own forecast."""
    _, _, learner = gradients(Net, "auto", 10**9)
    footprint, rows = learner._planner.footprint, learner._planner.rows
    assert footprint is not None
    need = {mode: footprint.of(mode, rows) for mode in ("scores", "bits")}
    assert need["bits"] < need["scores"]
    for limit, mode in (
        (need["scores"], "scores"),
        (need["scores"] - 1, "bits"),
        (need["bits"] - 1, "replay"),
    ):
        found = planning.plan(footprint, ["scores", "bits", "replay"], limit, rows, [1, 2, 4, 8])
        assert found.mode == mode and found.bytes <= limit
        assert (found.parts > 1) == (mode == "replay")  # so few rows are drained in the end alone


def test_an_unplanned_pass_keeps_scores_while_there_is_room() -> None:
    """Half of the layers' scores fit: the rest is drawn again, and the gradient is the same."""
    found = []
    for limit in (None, 2 * 7 * 48 * 9 * 4):
        torch.manual_seed(0)
        net = swap_neurons(Net(), sigma=0.5)
        learner = NITLearner(net, replicas=8, seed=1, memory_limit=limit)
        with learner.record():
            steps = net(learner.expand(torch.rand(6, 7)))
        traces = learner._recording.traces.values()
        kept = [e.scores is not None for trace in traces for e in trace.events]
        assert all(kept) if limit is None else any(kept) and not all(kept)
        learner.backward(steps.sum((0, 2)))
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*found)


@pytest.fixture
def live_peak(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], int]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    return memory.live_peak


def step_of(
    build: type,
    memory: str,
    steps: int,
    readout: bool = False,
    rows: int = 64,
    **options: Any,
) -> tuple[Callable[[], None], NITLearner]:
    """A learning step of a network that holds no more than the sum of its outputs."""
    net = swap_neurons(build(steps, (40, 64, 32), readout), sigma=0.5)
    net.counts = True
    learner = NITLearner(net, replicas=8, memory=memory, seed=1, **options)
    x = torch.rand(rows // 8, 40)
    return lambda: learner.learn(lambda x: net(x).square().sum((0, 2)), x) and None, learner


@pytest.mark.parametrize("build", [Static, Poisson])
@pytest.mark.parametrize("readout", [False, True])
def test_memory_grows_by_one_bit_per_presynaptic_spike(
    build: type, readout: bool, live_peak: Any
) -> None:
    """A trained readout keeps its presynaptic spikes, too, and autograd its outputs."""
    peaks = []
    for steps in (64, 192):
        step, _ = step_of(build, "bits", steps, readout)
        step()
        peaks.append(live_peak(step))
    spikes = 64 + (32 if readout else 0) + (40 if build is Poisson else 0)
    assert peaks[1] - peaks[0] <= 64 * 128 * spikes / 8 * 1.02


def test_a_replay_does_not_grow_with_time(live_peak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_passes, "AT_ONCE", 2**18)
    peaks = []
    for steps in (128, 384):
        step, _ = step_of(Poisson, "replay", steps)
        step()
        peaks.append(live_peak(step))
    assert peaks[1] <= 1.02 * peaks[0]


PATHWISE, TIME = {"conditional": "pathwise"}, {"conditional": "pathwise", "control": "time"}


@pytest.mark.parametrize("build", [Static, Net])
@pytest.mark.parametrize(
    ("memory", "options"),
    [
        *((mode, {}) for mode in ("scores", "bits", "replay")),
        *(
            ("scores", options)
            for options in (
                {"learn_sigma": True},
                {"conditional": True},
                PATHWISE,
                {"control": "readout"},
                {"control": "network"},
                TIME,
            )
        ),
    ],
)
def test_the_forecast_of_the_peak_is_near(
    build: type,
    memory: str,
    options: dict[str, Any],
    live_peak: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a quarter."""
    for module in (nit_snn.recording.memory, two_passes):
        monkeypatch.setattr(module, "AT_ONCE", 2**20)
    step, learner = step_of(build, memory, 60, readout=True, rows=512, **options)
    step()
    peak = live_peak(step)  # only the second pass knows which layers a control variate reads
    assert learner._planner.footprint.of(memory, 512) == pytest.approx(peak, rel=1 / 4)


def test_the_forecast_is_made_before_a_run_and_shown() -> None:
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=4, seed=1)
    assert "peak unknown before the first pass" in repr(learner)
    state = torch.get_rng_state()
    peak = learner.peak_memory(lambda x: net(x).sum((0, 2)), torch.rand(1000, 7))
    assert list(peak) == ["scores", "bits", "replay"] and peak["bits"] < peak["scores"]
    assert "scores: " in repr(learner) and "MiB for 4000 rows" in repr(learner)
    # It has taught nothing, and changed nothing.
    assert learner.passes == 0 and all(p.grad is None for p in net.parameters())
    state.copy_(state)
    twice = learner.peak_memory(lambda x: net(x).sum((0, 2)), torch.rand(2000, 7))
    assert twice["scores"] > 1.8 * peak["scores"]


@pytest.mark.parametrize("memory", ["scores", "replay"])
def test_every_pass_starts_from_reset_neurons(memory: str) -> None:
    """Also where nothing in the losses resets them, and after a pass with another batch size."""
    net = nn.Sequential(
        nn.Linear(7, 9), swap_neurons(snn.Leaky(beta=0.9, init_hidden=True)), nn.Linear(9, 2)
    )
    learner = NITLearner(net, replicas=4, seed=1, memory=memory)
    found = []
    for rows in (5, 3, 5):
        learner.passes = 0
        net.zero_grad()
        learner.learn(lambda x: sum(net(x) for _ in range(4)).square().sum(1), torch.ones(rows, 7))
        found.append(net[0].weight.grad.clone())
    torch.testing.assert_close(found[2], found[0])


def test_torchs_random_numbers_are_the_same_both_times() -> None:
    """Dropout in what is learned from: else the losses of the two passes would differ."""
    net = nn.Sequential(swap_neurons(Net(), sigma=0.5), nn.Dropout(0.5))
    learner = NITLearner(net, replicas=4, seed=1, memory="replay")
    learner.learn(lambda x: net(x).sum((0, 2)), torch.rand(5, 7))
    assert net[0].fc1.weight.grad is not None


def test_a_loss_that_is_another_the_second_time_writes_nothing() -> None:
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=4, seed=1, memory="replay")
    net.fc1.weight.grad = held = torch.ones_like(net.fc1.weight)
    calls = []

    def losses_of(x: Tensor) -> Tensor:
        calls.append(1)
        return net(x).sum((0, 2)) + len(calls)

    with pytest.raises(RecordingError, match="the second time"):
        learner.learn(losses_of, torch.rand(5, 7))
    assert net.fc1.weight.grad is held and bool((held == 1).all())
    assert net.fc2.weight.grad is None


def test_a_bad_loss_writes_nothing() -> None:
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=4, seed=1, memory="replay")
    with pytest.raises(NonFiniteLossError):
        learner.learn(lambda x: net(x).sum((0, 2)) / 0, torch.rand(5, 7))
    assert all(p.grad is None for p in net.parameters())


def test_gradients_add_up_over_batches() -> None:
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=4, seed=1, memory="replay")
    found = []
    for _ in range(2):
        learner.passes = 0
        learner.learn(lambda x: net(x).sum((0, 2)), torch.ones(5, 7))
        found.append(net.fc1.weight.grad.clone())
    torch.testing.assert_close(found[1], 2 * found[0])


def test_what_cannot_be_run_twice_is_refused() -> None:
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=4, memory="replay")
    with pytest.raises(RecordingError, match=r"call learner\.learn"), learner.record():
        pass

    def differentiates(x: Tensor) -> Tensor:
        losses = net(x).square().sum((0, 2))
        torch.autograd.grad(losses.sum(), net.out.weight)
        return losses

    with pytest.raises(RecordingError, match="run twice"):
        learner.learn(differentiates, torch.rand(5, 7))
    learner.close()
    normed = nn.Sequential(nn.BatchNorm1d(7), net)
    learner = NITLearner(normed, replicas=4, memory="replay")
    with pytest.raises(RecordingError, match="BatchNorm in training mode"):
        learner.learn(lambda x: normed(x).sum((0, 2)), torch.rand(5, 7))
    learner.close()
    learner = NITLearner(normed, replicas=4, memory_limit=1)
    before = normed[0].running_mean.clone()
    learner.peak_memory(lambda x: normed(x).sum((0, 2)), torch.rand(5, 7))
    assert torch.equal(normed[0].running_mean, before) and normed[0].training
    learner.learn(lambda x: normed(x).sum((0, 2)), torch.rand(5, 7))  # whole, and once
    assert int(normed[0].num_batches_tracked) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "disk"}, "memory must be one of"),
        ({"memory_limit": 0}, "memory_limit must be a positive"),
        ({"memory": "replay", "replicas": "auto"}, "all steps together"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(Net()), **{"replicas": 4, **options})


def test_shares_are_blocks_of_replicas_with_their_partners() -> None:
    rows = torch.arange(2 * 8 * 3).view(2, 24)  # two steps, eight replicas, three samples
    for antithetic, first in ((False, [0, 1]), (True, [0, 4])):
        shares = Shares(8, 4, antithetic)
        own = shares.of(rows, 0)
        assert own.shape == (2, 6)
        assert own[0].view(2, 3)[:, 0].tolist() == [3 * c for c in first]
        assert torch.equal(shares.join([shares.of(rows, p) for p in range(4)]), rows)
    assert Shares(8, 4, True).of(torch.zeros(0), 1).shape == (0,)


def test_only_zeros_and_ones_become_bits() -> None:
    train = SpikeTrain()
    assert train.add(torch.tensor([[0.0, 0.5]])) is None
    packed = train.add(torch.tensor([[0.0, 1.0]]))
    assert packed is not None and packed.unpack(torch.float32).tolist() == [[0.0, 1.0]]


def test_spikes_that_a_readout_saves_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution and a dense layer behind spikes save bits; their gradients are autograd's."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), swap_neurons(snn.Leaky(beta=0.9, init_hidden=True)), nn.Conv2d(3, 2, 3)
    )
    learner = NITLearner(net, replicas=4, seed=1, memory="bits")
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
