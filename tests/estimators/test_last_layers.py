"""Losses without a derivative under a credit: the last layer's likelihood ratio stands in."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import LossError
from nit_snn.noise.streams import ReplicaNoise

SEED, ROWS, REPLICAS, SIGMA, BETA, STEPS = 3, 5, 4, 0.625, 0.5, 3


class Net(nn.Module):
    """4-6-3 with spiking outputs; what it returns depends on `form`."""

    def __init__(self, form: str = "counts") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.lif1 = nn.Linear(4, 6), snn.Leaky(beta=BETA, reset_mechanism="zero")
        self.fc2, self.lif2 = nn.Linear(6, 3), snn.Leaky(beta=BETA, reset_mechanism="zero")
        self.form = form
        swap_neurons(self.double(), sigma=SIGMA)
        self.fc1.weight.data *= 3
        self.fc2.weight.data *= 3

    def forward(self, x: Tensor) -> Any:
        mem1, mem2, found = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(STEPS):
            spike, mem1 = self.lif1(self.fc1(x), mem1)
            spike, mem2 = self.lif2(self.fc2(spike), mem2)
            found.append(spike)
        spikes = torch.stack(found)
        return spikes.sum(0).detach() if self.form == "values" else spikes.sum(0)


def mistakes(counts: Tensor) -> Tensor:
    """A loss of whole numbers."""
    return (counts.detach()[:, 0] < 2).double() + (counts.detach()[:, 1] > 1).double()


def gradients(net: nn.Module, learner: NITLearner, x: Tensor, passes: int = 1) -> dict[str, Tensor]:
    """Of the last of some passes over the same rows."""
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            losses = mistakes(net(learner.expand(x)))
        learner.backward(losses)
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def attach(net: nn.Module, **options: Any) -> NITLearner:
    return NITLearner(
        net, **{"credit": "layers", "residual": 0, "replicas": REPLICAS, "seed": SEED, **options}
    )


def inputs() -> Tensor:
    return torch.rand(ROWS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 1


def by_formula(net: Net, x: Tensor) -> Tensor:
    """The gradient of fc1.weight in the first pass, written out."""
    source = ReplicaNoise(SEED, REPLICAS)
    rows, normal = REPLICAS * ROWS, torch.distributions.Normal(0.0, 1.0)
    x = x.repeat(REPLICAS, 1)
    signal: Any = None
    state: list[Any] = [None, None]
    density, spikes, noises = [], [], []
    for call in range(STEPS):
        signal = x
        for i, dense in enumerate((net.fc1, net.fc2)):
            u = (signal @ dense.weight.T + dense.bias).detach()
            eps = source.draw(
                (rows, len(dense.weight)), x.dtype, index=0, layer=i, layers=2, call=call
            )
            nu, variance = SIGMA * eps, torch.full_like(eps, SIGMA**2)
            if state[i] is not None:
                before, carried, spread, fired = state[i]
                u = u + BETA * before * (1 - fired)
                nu, variance = (
                    nu + BETA * carried * (1 - fired),
                    variance + BETA**2 * spread * (1 - fired),
                )
            u = u + SIGMA * eps
            signal = (u > 1).double()
            state[i] = (u, nu, variance, signal)
            if i == 0:
                width = variance.sqrt()
                density.append(normal.log_prob((1 - (u - nu)) / width).exp() / width)
                spikes.append(signal)
            else:
                noises.append(eps)
        counts = signal if call == 0 else counts + signal  # noqa: F821
    losses = mistakes(counts).view(REPLICAS, ROWS)
    advantage = ((losses - losses.mean(0)) * REPLICAS / (REPLICAS - 1)).flatten()
    total, later = torch.zeros(6, 4, dtype=x.dtype), None
    for t in reversed(range(STEPS)):
        f2 = advantage[:, None] * noises[t] / SIGMA / rows
        f1 = (f2 @ net.fc2.weight.detach()) * density[t]
        if later is not None:  # the membrane alone: its own steps, and its reset
            f1 = f1 + later * (BETA * (1 - spikes[t]) - density[t] * BETA)
        later = f1
        total += f1.T @ x
    return total


@pytest.mark.parametrize("credit", ["layers", "time"])
def test_it_is_its_formula(credit: str) -> None:
    net, x = Net(), inputs()
    found = gradients(net, attach(net, credit=credit), x)["fc1.weight"]
    wanted = by_formula(net, x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert wanted.abs().max() > 1e-3


def test_the_last_layer_gets_its_likelihood_ratio_as_it_is() -> None:
    nets = Net(), Net()
    found = gradients(nets[0], attach(nets[0]), inputs(), passes=3)
    wanted = gradients(nets[1], attach(nets[1], credit="none", residual=1), inputs(), passes=3)
    for name in ("fc2.weight", "fc2.bias"):
        torch.testing.assert_close(found[name], wanted[name])
    assert not torch.allclose(found["fc1.weight"], wanted["fc1.weight"])


def test_a_residual_of_one_has_no_use_for_it() -> None:
    net = Net()
    learner = attach(net, residual=1)
    with pytest.raises(LossError, match="derivative"):
        gradients(net, learner, inputs())


def test_the_residual_is_weighed_as_with_any_loss() -> None:
    net = Net()
    learner = attach(net, residual="auto")
    found = gradients(net, learner, inputs(), passes=6)
    weights = learner.state_dict()["choice"]["wiener"]["squares"]
    assert list(weights) == ["lif1"]
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_it_points_where_the_expected_loss_falls() -> None:
    """The cosine to the unbiased gradient, from 2^17 draws of each; both within some 0.02."""
    x = inputs()[:1].expand(2**12, 4)
    nets = Net(), Net()
    found = gradients(nets[0], attach(nets[0], replicas=32), x)["fc1.weight"]
    learner = attach(nets[1], replicas=32, credit="none", residual=1)
    wanted = gradients(nets[1], learner, x)["fc1.weight"]
    assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.9


def test_without_outputs_to_start_from_the_loss_is_refused() -> None:
    net = Net("values")
    learner = attach(net)
    with pytest.raises(LossError, match="derivative"):
        gradients(net, learner, inputs())


def test_a_learned_noise_level_has_a_gradient_in_every_layer() -> None:
    net = Net()
    learner = attach(net, learn_sigma=True)
    gradients(net, learner, inputs(), passes=3)
    levels = [net.lif1.sigma, net.lif2.sigma]
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)


@pytest.mark.parametrize("conditional", [False, True])
def test_several_steps_at_once_are_single_steps(conditional: bool) -> None:
    """Three layers, so that the walk passes one that is neither the first nor the last."""
    found = []
    for mode in ("m", "s"):
        torch.manual_seed(0)
        sizes = ((4, 6), (6, 5), (5, 3))
        net = nn.Sequential(*[m for n in sizes for m in (layer.Linear(*n), neuron.LIFNode())])
        functional.set_step_mode(swap_neurons(net.double(), sigma=0.6), mode)
        for dense in net[::2]:
            dense.weight.data *= 4
        learner = attach(net, replicas=8, conditional=conditional)
        with learner.record():
            x = learner.expand(inputs())
            steps = x.repeat(STEPS, 1, 1)
            spikes = net(steps).sum(0) if mode == "m" else sum(net(step) for step in steps)
            losses = mistakes(spikes)
        learner.backward(losses)
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    torch.testing.assert_close(*found)
    assert all(gradient.abs().sum() > 0 for gradient in found[0].values())
