"""BatchNorm behind noise: a credit follows its statistics, scores do not and say so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import BiasWarning


class Jelly(nn.Module):
    """conv-BN-IF-MP twice and a linear readout, on 8 x 8 images; T = 4."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()

        def block(inputs: int) -> list[nn.Module]:
            return [
                layer.Conv2d(inputs, channels, 3, padding=1, bias=False),
                layer.BatchNorm2d(channels),
                neuron.IFNode(),
                layer.MaxPool2d(2, 2),
            ]

        readout = (layer.Flatten(), layer.Linear(4 * channels, 2))
        self.body = nn.Sequential(*block(1), *block(channels), *readout)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.body(x.expand(4, *x.shape)).mean(0)


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, 0), ({"credit": "none"}, 1), ({"credit": "layers", "residual": 1, "replicas": 4}, 1)],
    ids=str,
)
def test_it_trains_from_scratch_in_training_mode(options: dict[str, Any], told: int) -> None:
    """Stripes, upright or not: two of three errors go within 40 steps."""
    torch.manual_seed(0)
    net = swap_neurons(Jelly())
    learner = NITLearner(net, seed=0, **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    stripes = (torch.arange(8) % 4 < 2).float().expand(8, 8)
    x = torch.stack([stripes, stripes.T])[:, None].repeat(8, 1, 1, 1) + 0.3 * torch.rand(
        16, 1, 8, 8
    )
    y = torch.tensor([0, 1]).repeat(8)
    seen = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(40):
            optimizer.zero_grad()
            with learner.record():
                xr, yr = learner.expand(x, y)
                losses = F.cross_entropy(net(xr), yr, reduction="none")
            seen.append(float(learner.backward(losses)))
            learner.reset()
            optimizer.step()
    said = [w for w in found if w.category is BiasWarning]
    assert len(said) == told
    assert all(w.filename == __file__ and "body.5" in str(w.message) for w in said)
    assert sum(seen[-5:]) < sum(seen[:5]) / 3


@pytest.mark.parametrize("training", [True, False])
def test_a_credit_follows_the_statistics(training: bool) -> None:
    """All rows have one input, so one density: the gradient is that of a shift of all rows.

    In training mode BatchNorm takes such a shift out, so nothing is left of it.
    """
    torch.manual_seed(0)
    leaky = snn.Leaky(beta=0.5, init_hidden=True)
    net = nn.Sequential(nn.Linear(3, 5), leaky, nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[3].train(training)
    learner = NITLearner(swap_neurons(net.double(), sigma=0.5), seed=0, credit="layers", residual=0)
    with learner.record():
        out = net(learner.expand(torch.ones(50, 3, dtype=torch.float64)))
        losses = F.cross_entropy(out, torch.arange(50) % 2, reduction="none")
    learner.backward(losses)
    largest = net[0].weight.grad.abs().max()
    assert largest < 1e-12 if training else largest > 1e-3
