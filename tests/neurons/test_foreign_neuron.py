"""The neuron of another framework in docs/neurons.md: its page runs, and its gradient is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError
from nit_snn.inspect.probe import probe
from nit_snn.neurons import registry

PAGE = Path(__file__).parents[2] / "docs" / "neurons.md"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code of the page has defined."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    cells = re.findall(r"^```\{code-cell\} python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile("\n".join(cells), str(PAGE), "exec"), names)
    return names


def seen(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - 1).square()


@pytest.mark.montecarlo
def test_finite_differences(page: dict[str, Any]) -> None:
    """12 passes of 8,192 rows; within 5% of a difference with 80,000 rows of common noise."""
    torch.manual_seed(2)
    net, x = swap_neurons(page["Net"](), sigma=0.4), 3 * torch.rand(16, 3)
    weight = net.fc1.weight
    direction = net.fc2.weight.detach().sign().T.expand(8, 3)  # moves all outputs one way

    def expected(shift: float) -> float:
        torch.manual_seed(4)
        weight.data += shift * direction
        with torch.no_grad():
            loss = seen(net, x.repeat(5000, 1)).mean().item()
        weight.data -= shift * direction
        return loss

    truth = (expected(0.03) - expected(-0.03)) / 0.06
    for credit in ("none", "layers"):
        learner = NITLearner(net, replicas=512, seed=0, credit=credit, residual=1)
        net.zero_grad()
        for _ in range(12):
            with learner.record():
                losses = seen(net, learner.expand(x))
            learner.backward(losses)
        learner.close()
        found = (weight.grad * direction).sum().item() / 12
        assert abs(found - truth) < 0.05 * abs(truth), (credit, found, truth)


def test_what_it_says_of_itself_is_heard(page: dict[str, Any]) -> None:
    net = swap_neurons(page["Net"]())
    assert net.cell.sigma == 0.25
    with pytest.raises(AttachError, match="it hands out its membrane"):
        NITLearner(net, replicas=2, conditional=True)
    with probe(net) as layers:
        net(torch.rand(2, 3))
    assert len(layers["cell"].spikes) == 4
