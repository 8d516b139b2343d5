"""A control variate from the readout takes short ways; they give what the long way gives."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.estimators.control import FiringRecord

OPTIONS: list[dict[str, Any]] = [
    {},
    {"replicas": 2},
    {"antithetic": True, "replicas": 6},
    {"sobol": True, "replicas": 8},
    {"learn_sigma": True},
    {"rule": "nit-s"},
    {"memory": "bits"},
    {"noise": "table"},
]


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
    """Of two passes: from the second on the learner knows which layers the loss reads."""
    learner = NITLearner(net, seed=3, control="readout", **{"replicas": 4, **options})
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("hidden", [1, 2])
def test_all_ways_give_the_same_gradient(
    hidden: int, static: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    for name in ("sequence", "step", "add"):
        own = getattr(FiringRecord, name)

        def noted(*args: Any, _own: Any = own, _name: str = name, **kwargs: Any) -> Any:
            taken.append(_name)
            return _own(*args, **kwargs)

        monkeypatch.setattr(FiringRecord, name, noted)
    found = {}
    for way, stepwise, route in (
        ("sequence", False, "auto"),
        ("step", True, "auto"),
        ("add", True, "general"),
    ):
        taken.clear()
        found[way] = gradients(network(hidden, stepwise), static, route=route, **options)
        assert way in taken and set(taken) <= {way, "add"}
    # A direction knows no presynaptic sign on the general route.
    long = found["step" if options.get("rule") == "nit-s" else "add"]
    assert any(gradient.abs().max() > 0 for gradient in long)
    for way in ("sequence", "step"):
        torch.testing.assert_close(found[way], long)
