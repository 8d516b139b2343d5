"""Losses that come per time step: the noise of a step is charged with those that follow."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, LossError

X = torch.linspace(-1, 2, 24).view(6, 4)


def test_per_step_losses_by_hand() -> None:
    """One neuron layer without memory: step t's bias gradient is its score times later losses."""
    net = swap_neurons(SnnTorchNet(reset="none").double(), sigma=0.5)
    learner = NITLearner(net, replicas=4, credit="none", seed=3, per_step_losses=True)
    x = X.double()
    with learner.record():
        net(learner.expand(x))
    losses = torch.rand(3, 24, dtype=torch.float64)
    mean = learner.backward(losses)
    torch.testing.assert_close(mean, losses.sum(0).mean())
    advantages = (
        losses.view(3, 4, 6)
        - (losses.view(3, 4, 6).sum(1, keepdim=True) - losses.view(3, 4, 6)) / 3
    )
    expected = torch.zeros(6, dtype=torch.float64)
    for t in range(3):
        noise, _ = learner._session.source.next(4, [torch.device("cpu")])
        noise = noise.draw((24, 6), torch.float64, index=0, layer=0, call=t, layers=2)
        later = advantages[t:].sum(0).flatten() / 24
        expected += (later[:, None] * noise / 0.5).sum(0)
    torch.testing.assert_close(net.fc1.bias.grad, expected)


@pytest.mark.montecarlo
def test_per_step_losses_have_the_same_mean_and_less_variance() -> None:
    """150 passes each of 8 replicas of 96 samples, output spikes of every step as its loss: means
    within 5 standard errors (p < 1e-4), the variance lower by a tenth or more."""
    found = {}
    for per_step in (True, False):
        torch.manual_seed(0)
        net = swap_neurons(SpikingJellyNet(steps=5), sigma=0.8)
        learner = NITLearner(net, replicas=8, credit="none", seed=7, per_step_losses=per_step)
        gradients = []
        for _ in range(150):
            net.zero_grad()
            with learner.record():
                losses = net.spikes(learner.expand(X.repeat(16, 1))).sum(2)
            learner.backward(losses if per_step else losses.sum(0))
            gradients.append(net.body[0].weight.grad.flatten().clone())
        found[per_step] = torch.stack(gradients)
    error = ((found[True].var(0) + found[False].var(0)) / 150).sqrt()
    assert ((found[True].mean(0) - found[False].mean(0)).abs() <= 5 * error).all()
    assert found[True].var(0).sum() < 0.9 * found[False].var(0).sum()


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.ones(24), r"shape \(T, 24\)"),
        (torch.ones(3, 12), r"shape \(T, 24\)"),
        (torch.ones(2, 24), "of 2 time steps, but lif1 made 3 steps"),
        (torch.full((3, 24), float("nan")), "NaN"),
    ],
    ids=["no time", "rows", "steps", "nan"],
)
def test_per_step_losses_that_do_not_fit(losses: Tensor, message: str) -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=4, credit="none", per_step_losses=True)
    with learner.record():
        net(learner.expand(X))
    with pytest.raises(LossError, match=message):
        learner.backward(losses)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("options", [{"credit": "none"}, {}, {"conditional": True}], ids=str)
def test_a_neuron_of_two_sizes_learns_too(options: dict[str, Any]) -> None:
    fc1, fc2, lif = nn.Linear(4, 4), nn.Linear(4, 2), snn.Leaky(beta=0.5)
    net = swap_neurons(nn.ModuleList([fc1, fc2, lif]), sigma=1.0)
    learner = NITLearner(net, seed=1, **options)
    with learner.record():
        spike, _ = lif(fc1(learner.expand(torch.randn(5, 4))), lif.reset_mem())
        spike, _ = lif(fc2(spike), torch.zeros(5 * learner.replicas, 2))
    learner.backward(spike.sum(1))
    assert fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("credit", ["readout", "layers", "time"])
def test_the_cheap_estimate_is_that_of_the_sum(credit: str) -> None:
    """It is a derivative of the losses: which step they belong to makes no difference.

    The credit of the readout ends at the last layer; the first has its likelihood ratio.
    """
    found = []
    for per_step in (True, False):
        torch.manual_seed(0)
        net = swap_neurons(SpikingJellyNet(steps=5), sigma=0.8)
        options = {"credit": credit, "residual": 0, "per_step_losses": per_step}
        learner = NITLearner(net, seed=7, **options)
        with learner.record():
            losses = net.spikes(learner.expand(X)).sum(2)
        learner.backward(losses if per_step else losses.sum(0))
        layers = net.body[2:] if credit == "readout" else net.body
        found.append([p.grad for p in layers.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][-1].abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_step_losses": True, "credit": "layers", "residual": 1}, "only if residual=0"),
        ({"per_step_losses": 1}, "True or False"),
        ({"replicas": "many"}, "positive integer"),
        ({"replicas": 1, "credit": "none"}, "at least 2"),
        ({"replicas": 3, "antithetic": True}, "even number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(SnnTorchNet()), **{"replicas": 8, **options})
