"""Compiled loops where there is little to loop over, and with resets that few neurons have."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, neuron
from test_native import LACKING, compare
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.dynamics.compiled import arguments
from nit_snn.dynamics.compiled.layer import NativeLayer
from nit_snn.dynamics.compiled.settle import collect_and_settle
from nit_snn.dynamics.conditioned import Conditioned
from nit_snn.recording.memory import Room

pytestmark = pytest.mark.skipif(LACKING, reason="no C++ compiler")

OPTIONS: list[dict[str, Any]] = [
    {},
    {"control": "readout"},
    *({"conditional": "pathwise", "control": c} for c in ("none", "readout", "time")),
]


class Few(nn.Module):
    """So many neurons, for so many steps at once."""

    def __init__(self, neurons: int, steps: int, v_reset: float | None) -> None:
        super().__init__()
        self.steps = steps
        self.synapse, self.readout = nn.Linear(5, neurons), nn.Linear(neurons, 3)
        self.neurons = neuron.LIFNode(v_threshold=0.3, v_reset=v_reset, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.readout(self.neurons(self.synapse(x.expand(self.steps, *x.shape)))).sum(0)


@pytest.mark.parametrize(("neurons", "steps"), [(1, 4), (7, 1), (1, 1)])
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_neuron_or_one_step(
    neurons: int,
    steps: int,
    v_reset: float | None,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare(lambda: Few(neurons, steps, v_reset), monkeypatch, **options)


@pytest.mark.parametrize(("memory", "kept"), [("bits", 0), ("scores", 4)])
def test_scores_are_kept_once_and_only_where_there_is_room(memory: str, kept: int) -> None:
    """Of a static current their sum alone, of any other those of each step."""
    for static in (True, False):
        layer = recorded(static, memory=memory)
        assert len(layer.kept) == (0 if static else kept)
        assert len(layer.totals) == (min(kept, 1) if static else 0)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_what_is_kept_is_counted(
    static: bool, learn_sigma: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(Room, "take", lambda self, size: taken.append(size) is None)
    layer = recorded(static, learn_sigma=learn_sigma)
    held = [x for s in (*layer.kept.values(), *layer.totals.values()) for x in (s.drift, s.sigma)]
    assert sum(taken) == sum(x.nbytes for x in held if x is not None) > 0


def recorded(static: bool, **options: Any) -> NativeLayer:
    """What a layer keeps of a pass over four steps."""
    net = swap_neurons(Few(7, 4, 0.0), sigma=0.5)
    learner = NITLearner(net, replicas=4, **options)
    with learner.record():
        x = learner.expand(torch.rand(2, 5))
        net.neurons(net.synapse(x.expand(4, *x.shape) if static else torch.stack([x] * 4)))
    assert learner._recording is not None
    (trace,) = learner._recording.traces.values()
    assert isinstance(trace.layer, NativeLayer)
    return trace.layer


def test_no_row_is_no_reason_to_die() -> None:
    """Nothing is settled of an empty batch, whose rows nobody can count by replicas."""
    rest = torch.zeros(4, 0, 7)
    steps = Conditioned(rest, None, rest, None, None, rest, rest, rest, None, rest)
    assert collect_and_settle(steps, rest, None, 0.5, 4, True) is None


@pytest.mark.parametrize(
    ("shape", "inner"),
    [
        ((2,), (2,)),
        ((1, 2), (2,)),
        ((1, 1, 3), (3,)),
        ((2, 1), (2, 3)),
        ((3,), (2, 3)),
        ((1, 3), (2, 3)),
        ((1, 2, 3), (2, 3)),
        ((1, 2, 1, 1), (2, 3, 4)),
        ((1500,), (1500,)),
    ],
    ids=str,
)
def test_a_parameter_is_that_of_its_neuron(shape: tuple[int, ...], inner: tuple[int, ...]) -> None:
    """Two neurons with one each, too; and in whole rows."""
    value = torch.rand(shape)
    rows = arguments.repeated(value, torch.Size(inner)).unflatten(0, (-1, *inner))
    assert torch.equal(rows, value.view(shape[-len(inner) :]).expand_as(rows))


def test_a_parameter_of_each_sample_is_not_that_of_the_first() -> None:
    with pytest.raises(RuntimeError):
        arguments.repeated(torch.rand(4, 3), torch.Size([3]))


class Rows(nn.Module):
    """Each row has a threshold or a decay of its own."""

    def __init__(self, own: str) -> None:
        super().__init__()
        values: dict[str, Any] = {"beta": 0.8, "threshold": 0.3, own: torch.rand(32, 7) * 0.3 + 0.2}
        self.synapse, self.readout = nn.Linear(5, 7), nn.Linear(7, 3)
        self.neurons = snn.Leaky(**values, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        self.neurons.reset_mem()
        return sum(self.readout(self.neurons(self.synapse(x))) for _ in range(3))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("own", ["threshold", "beta"])
def test_rows_may_differ(
    own: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do by torch; compiled loops read what all rows have in common."""
    compare(lambda: Rows(own), monkeypatch, **options)


class Lapicque(nn.Module):
    def __init__(self, reset: str) -> None:
        super().__init__()
        self.synapse, self.readout = nn.Linear(5, 7), nn.Linear(7, 3)
        self.neurons = snn.Lapicque(
            beta=0.8, threshold=0.05, reset_mechanism=reset, init_hidden=True
        )

    def forward(self, x: Tensor) -> Tensor:
        self.neurons.reset_mem()
        return sum(self.readout(self.neurons(self.synapse(x))) for _ in range(4))


@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_lapicque(reset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reset to zero takes all of the next step's membrane, its current included."""
    compare(lambda: Lapicque(reset), monkeypatch)
