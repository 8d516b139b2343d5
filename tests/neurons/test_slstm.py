"""snnTorch's SLSTM with noise in the membrane that fires: its own without, unbiased with."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import AttachError

STEPS, SIZE = 4, 3
X = torch.linspace(-1, 1, 12).view(4, SIZE)


class Net(nn.Module):
    """A noisy layer, an SLSTM that reads its spikes, and an exact readout."""

    def __init__(self, reset: str, learn_threshold: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fc1, self.lif = nn.Linear(SIZE, SIZE), snn.Leaky(beta=0.7)
        options = {"threshold": 0.2, "reset_mechanism": reset, "learn_threshold": learn_threshold}
        self.lstm, self.fc2 = snn.SLSTM(SIZE, SIZE, **options), nn.Linear(SIZE, 2)
        cell = self.lstm.lstm_cell
        for weight in (self.fc1.weight, cell.weight_ih, cell.weight_hh):
            weight.data *= 2

    def forward(self, x: Tensor) -> Tensor:
        mem, (syn, out), total = self.lif.reset_mem(), self.lstm.reset_mem(), torch.zeros(len(x), 2)
        for step in range(STEPS):
            spikes, mem = self.lif(self.fc1(x), mem)
            spikes, syn, out = self.lstm(spikes, syn, out)
            total = total + (step + 1) * self.fc2(spikes)
        return (total - 3).square().sum(1)


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
def test_without_noise_it_is_the_framework_s_own(reset: str) -> None:
    net = Net(reset)
    plain = net(3 * X)
    swap_neurons(net, sigma=0.3)
    with noise_off(net):
        torch.testing.assert_close(net(3 * X), plain)
    assert list(net.state_dict()) == list(restore_neurons(net).state_dict())
    assert type(net.lstm) is snn.SLSTM


def estimates(net: Net, passes: int, replicas: int, **options: Any) -> Tensor:
    """(passes, parameters), of all that is trained in front of the readout."""
    learner = NITLearner(net, replicas=replicas, seed=0, **options)
    found = []
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            losses = net(learner.expand(X))
        learner.backward(losses)
        found.append(torch.cat([p.grad.flatten() for p in hidden(net)]))
    learner.close()
    return torch.stack(found)


def hidden(net: Net) -> list[nn.Parameter]:
    return [p for n, p in net.named_parameters() if not n.startswith("fc2")]


def moved(net: Net, along: Tensor) -> None:
    start = 0
    for parameter in hidden(net):
        parameter.data += along[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()


@pytest.mark.montecarlo
@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
def test_finite_differences(reset: str) -> None:
    """Weights of all gates, recurrent ones too, the layer before, and both thresholds."""
    net = swap_neurons(Net(reset, learn_threshold=True), sigma=0.4)
    about = estimates(net, 2, 1024, credit="layers", residual=1).mean(0)
    direction, ends = about / about.norm(), []
    for shift in (0.04, -0.04):
        moved(net, shift * direction)
        torch.manual_seed(4)
        with torch.no_grad():
            ends.append(net(X.repeat(20000, 1)).double().mean().item())
        moved(net, -shift * direction)
    truth = (ends[0] - ends[1]) / 0.08
    for options in ({"credit": "none"}, {"credit": "layers", "residual": 1}):
        values = estimates(net, 12, 512, **options) @ direction
        error = (values.std() / len(values) ** 0.5).item()
        apart = abs(values.mean().item() - truth)
        assert apart < 4 * error + 0.03 * abs(truth), (options, values.mean(), truth, error)
        assert error < 0.1 * abs(truth), (options, truth, error)


def test_conditioned_scores_are_refused() -> None:
    with pytest.raises(AttachError, match="an LSTM reads its membrane"):
        NITLearner(swap_neurons(Net("none")), replicas=4, conditional=True)
