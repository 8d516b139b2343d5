"""The credit alone is a surrogate gradient whose surrogate is the noise's own density.

Written out with torch's autograd on the same samples of noise: the density of what a membrane
carries of its noise in place of a spike's derivative, and a reset that is a jump at the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import SnnTorchNet
from torch import Tensor

from nit_snn import NITLearner, swap_neurons
from nit_snn.noise.streams import ReplicaNoise

SIGMA, BETA, STEPS, ROWS = 0.6, 0.8, 3, 4


class Fire(torch.autograd.Function):
    """Whether a membrane is above 1; to its drift, the derivative of how likely that was.

    `carried` is what the membrane carries of its own noise, with this variance.
    """

    @staticmethod
    def forward(
        ctx: Any, membrane: Tensor, drift: Tensor, carried: Tensor, variance: Tensor
    ) -> Tensor:
        ctx.save_for_backward(membrane - carried, variance.sqrt())
        return (membrane > 1).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        mean, deviation = ctx.saved_tensors
        level = (1 - mean) / deviation
        density = torch.exp(-level.square() / 2) / math.sqrt(2 * math.pi) / deviation
        return None, gradient * density, None, None


def with_values(values: Tensor, gradient: Tensor) -> Tensor:
    """`values`, with the derivative of `gradient` added to theirs."""
    return values + gradient - gradient.detach()


def layer(
    parameters: Sequence[Tensor], inputs: Sequence[Tensor], number: int, reset: str, credit: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes and membranes of each step, in the layer's own draws."""
    weight, bias = parameters
    noise, spikes, membranes = ReplicaNoise(5, 1), [], []
    u = spike = carried = variance = torch.zeros(ROWS, len(bias), dtype=torch.float64)
    for step, x in enumerate(inputs):
        fall = spike - spike.detach()  # the derivative of the jump, which is at the threshold 1
        if reset == "zero":
            u = u * (1 - spike.detach()) - fall
        drift = BETA * u + (x if credit == "time" else x.detach()) @ weight.T + bias
        if reset == "subtract":
            drift = drift - spike
        eps = noise.draw(drift.shape, drift.dtype, index=0, layer=number, call=step, layers=2)
        kept = BETA * (1 - spike.detach()) if reset == "zero" else BETA
        carried, variance = kept * carried + SIGMA * eps, kept**2 * variance + SIGMA**2
        u = drift + SIGMA * eps
        spike = Fire.apply(u.detach(), drift, carried, variance)
        out, read = spike, u
        if credit == "layers":  # what comes in is followed to what goes out at the same step alone
            direct = with_values(drift.detach(), x @ weight.detach().T)
            out = with_values(spike, Fire.apply(u.detach(), direct, carried, variance))
            read = with_values(u, direct)
        spikes.append(out)
        membranes.append(read)
    return spikes, membranes


def losses(spikes: Tensor, membranes: Tensor) -> Tensor:
    return spikes.sum(0).square().sum(1) + 0.3 * membranes.sum(0).sin().sum(1)


@pytest.mark.parametrize("route", ["auto", "general"])
@pytest.mark.parametrize("credit", ["layers", "time"])
@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_it_is_autograd_with_the_noises_density(reset: str, credit: str, route: str) -> None:
    net = swap_neurons(SnnTorchNet(reset, STEPS).double(), sigma=SIGMA)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    x = 2 * torch.randn(ROWS, 4, dtype=torch.float64)
    learner = NITLearner(net, replicas=1, credit=credit, residual=0, seed=5, route=route)
    with learner.record():
        both, u = net.spikes_and_membranes(learner.expand(x))
        values = losses(both[..., 6:], u)
    learner.backward(values)

    own = [p.detach().clone().requires_grad_() for p in net.parameters()]
    hidden, _ = layer(own[:2], [x] * STEPS, 0, reset, credit)
    spikes, membranes = layer(own[2:], hidden, 1, reset, credit)
    expected = losses(torch.stack(spikes), torch.stack(membranes))
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    expected.mean().backward()
    for p, q in zip(net.parameters(), own, strict=True):
        assert q.grad.abs().sum() > 0
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)
