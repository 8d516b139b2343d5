"""Sequences, single steps and the general route: every estimate is the same on all of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.dynamics.torch_executor import TorchExecutor

OPTIONS: list[dict[str, Any]] = [
    {},
    {"replicas": 2},
    {"antithetic": True, "replicas": 6},
    {"learn_sigma": True},
    {"rule": "nit-s"},
    {"recompute": True},
    {"noise_reuse": True},
    {"conditional": True, "learn_sigma": True},
    {"residual": 0, "replicas": 1, "learn_sigma": True},
    {"residual": 0.5, "learn_sigma": True},
    {"residual": "auto", "learn_sigma": True},
]
CREDITS = ("readout", "layers", "time")


def network(hidden: int, stepwise: bool) -> nn.Module:
    """Layers of nodes in multi-step mode; those that keep all membranes go step by step."""
    torch.manual_seed(0)
    sizes = [5, *[7] * hidden]
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [layer.Linear(i, o), neuron.LIFNode(v_threshold=0.3, store_v_seq=stepwise)]
    net = nn.Sequential(*layers, layer.Linear(7, 3))
    functional.set_step_mode(net, "m")
    return swap_neurons(net, sigma=0.5).double()


def gradients(net: nn.Module, static: bool, **options: Any) -> list[Tensor]:
    """Of the second of two passes."""
    learner = NITLearner(net, seed=3, **{"replicas": 4, "residual": 1, **options})
    x = torch.rand(1 if static else 6, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    y = torch.tensor([0, 1, 2, 0])
    for _ in range(2):
        net.zero_grad()
        functional.reset_net(net)
        with learner.record():
            (yr,) = (learner.expand(y),)
            xr = learner.expand(x[0]).expand(6, -1, -1) if static else learner.expand(x, dim=1)
            losses = F.cross_entropy(net(xr).sum(0), yr, reduction="none")
        learner.backward(losses)
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("hidden", [1, 2])
def test_all_ways_give_the_same_gradient(
    hidden: int, static: bool, options: dict[str, Any], credit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, own = [], TorchExecutor._sequence

    def noted(*args: Any) -> Any:
        sequences.append(1)
        return own(*args)

    monkeypatch.setattr(TorchExecutor, "_sequence", noted)
    found = {}
    for way, stepwise, route in (
        ("sequence", False, "auto"),
        ("step", True, "auto"),
        ("general", True, "general"),
    ):
        sequences.clear()
        net = network(hidden, stepwise)
        found[way] = gradients(net, static, route=route, credit=credit, **options)
        assert len(sequences) == (2 * hidden if way == "sequence" else 0)
    # A direction knows no presynaptic sign on the general route.
    long = found["step" if options.get("rule") == "nit-s" else "general"]
    assert any(gradient.abs().max() > 0 for gradient in long)
    for way in ("sequence", "step"):
        torch.testing.assert_close(found[way], long)
