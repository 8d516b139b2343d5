"""Sequences conditioned on their spikes give what single steps give, to rounding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import nit_snn.dynamics.torch_executor
from nit_snn import NITLearner, swap_neurons
from nit_snn.dynamics.firing import Firing
from nit_snn.dynamics.torch_executor import TorchExecutor
from nit_snn.robustness import NoisyClassifier

OPTIONS: list[dict[str, Any]] = [
    {},
    {"credit": "readout"},
    {"credit": "layers"},
    {"credit": "time"},
    {"credit": "time", "learn_sigma": True},
    {"credit": "time", "learn_sigma": "shared"},
    {"learn_sigma": True},
    {"credit": "time", "antithetic": True, "replicas": 6},
    {"credit": "time", "noise_reuse": True},
    {"credit": "time", "replicas": 2},
    {"credit": "time", "route": "general"},
    {"route": "general"},
    {"baseline": "none", "replicas": 6},
    {"credit": "time", "residual": 0, "replicas": 1, "learn_sigma": True},
    {"credit": "layers", "residual": 0.3, "learn_sigma": True},
]
NODES: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft": {"v_reset": None},
    "elsewhere": {"v_reset": -0.2, "decay_input": False},
}


class Net(nn.Module):
    """Layers of nodes in multi-step mode; those that keep all membranes go step by step."""

    def __init__(self, hidden: int, stepwise: bool, pieces: int, node: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for i, (ins, outs) in enumerate(pairwise([5, *[7] * hidden])):
            kind = neuron.LIFNode if i % 2 == 0 else neuron.IFNode
            own = {k: v for k, v in node.items() if kind is neuron.LIFNode or k != "decay_input"}
            layers += [layer.Linear(ins, outs)]
            layers += [kind(v_threshold=0.3, store_v_seq=stepwise, **own)]
        self.layers, self.readout = nn.Sequential(*layers), layer.Linear(7, 3)
        self.pieces = pieces
        functional.set_step_mode(self, "m")
        swap_neurons(self, sigma=0.5).double()

    def forward(self, x: Tensor) -> Tensor:
        """Time in so many pieces, without a reset between them."""
        functional.reset_net(self)
        return torch.cat([self.readout(self.layers(part)) for part in x.chunk(self.pieces)])


def gradients(net: Net, static: bool, per_step: bool, **options: Any) -> dict[str, Tensor]:
    """Of the second of two passes."""
    own = {"replicas": 4, "conditional": True, "credit": "none", "residual": 1}
    learner = NITLearner(net, seed=3, per_step_losses=per_step, **{**own, **options})
    x = torch.rand(1 if static else 6, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    y = torch.tensor([0, 1, 2, 0])
    for _ in range(2):
        net.zero_grad()
        with learner.record():
            yr = learner.expand(y)
            xr = learner.expand(x[0]).expand(6, -1, -1) if static else learner.expand(x, dim=1)
            out = net(xr)
            losses = [
                F.cross_entropy(o, yr, reduction="none")
                for o in (out if per_step else [out.sum(0)])
            ]
        learner.backward(torch.stack(losses) if per_step else losses[0])
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    learner.close()
    return found


def compare(
    ways: list[Net], count: list[int], static: bool, per_step: bool = False, **options: Any
) -> None:
    found = []
    for net, expected in zip(ways, (True, False), strict=True):
        count[0] = 0
        found.append(gradients(net, static, per_step, **options))
        assert (count[0] > 0) == expected
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(
            found[0][name], gradient, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences went at once."""
    found, own = [0], TorchExecutor._sequence

    def noted(*args: Any) -> Any:
        found[0] += 1
        return own(*args)

    monkeypatch.setattr(TorchExecutor, "_sequence", noted)
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("hidden", [1, 3])
def test_a_sequence_is_its_steps(
    hidden: int, static: bool, options: dict[str, Any], count: list[int]
) -> None:
    compare([Net(hidden, s, 1, {}) for s in (False, True)], count, static, **options)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("credit", ["none", "time"])
def test_sequences_that_follow_each_other(
    node: str, pieces: int, credit: str, count: list[int]
) -> None:
    """What a sequence leaves behind leads to the next, under every reset; the level is learned."""
    for hidden, learn_sigma in ((1, True), (2, False)):
        nets = [Net(hidden, s, pieces, NODES[node]) for s in (False, True)]
        compare(nets, count, False, credit=credit, learn_sigma=learn_sigma)


@pytest.mark.parametrize("pieces", [1, 2])
def test_losses_of_each_step(pieces: int, count: list[int]) -> None:
    compare(
        [Net(2, s, pieces, {}) for s in (False, True)],
        count,
        False,
        per_step=True,
        learn_sigma=True,
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_steps_at_a_time(
    steps: int, count: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many steps of 16 rows and 7 neurons are weighted at once."""
    monkeypatch.setattr(nit_snn.dynamics.torch_executor, "_AT_ONCE", steps * 16 * 7)
    options = {"conditional": False, "credit": "time", "learn_sigma": True}
    compare([Net(1, s, 1, {}) for s in (False, True)], count, False, **options)


@pytest.mark.parametrize("credit", ["none", "time"])
def test_gradients_of_images(credit: str, count: list[int]) -> None:
    """An attack's gradient goes the same way: through the graph of the currents."""
    found = []
    for stepwise in (False, True):
        net = Net(2, stepwise, 1, {})
        classifier = NoisyClassifier(
            net,
            draws=16,
            gradient="lr",
            conditional=True,
            credit=credit,
            seed=1,
            encode=lambda x: x.expand(5, *x.shape),
            dim=1,
            readout=lambda out: out.sum(0),
        )
        images = torch.rand(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(2))
        images.requires_grad_()
        F.cross_entropy(classifier(images), torch.tensor([0, 1, 2])).backward()
        assert images.grad is not None and images.grad.abs().max() > 0
        found.append(images.grad)
    assert count[0] == 2
    torch.testing.assert_close(*found)


def test_a_membrane_carries_on_no_less_than_nothing() -> None:
    """However far rounding has brought the noise to the other side of the threshold."""
    spike, level = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, -1.0, 3.0])
    firing = Firing(spike, level, torch.tensor([0.5, -0.5, 3.0]))
    assert torch.equal(firing.decay, torch.zeros(3))
