"""What docs/own_network.md promises of a newcomer's networks: they learn, are saved and loaded.

The page itself is run by `make docs`. Here similar networks learn ten images by heart in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.datasets import load
from nit_snn.inspect.monitoring import firing

snn = pytest.importorskip("snntorch")
utils = pytest.importorskip("snntorch.utils")


class Steps(nn.Module):
    """Sums over time what an snnTorch network says of the same image."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self.layers)
        return sum(self.layers(x) for _ in range(4))


class Sequence(Steps):
    """The same in SpikingJelly's multi-step mode."""

    def __init__(self, functional: ModuleType, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.functional = functional
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        self.functional.reset_net(self)
        return self.layers(x.expand(4, *x.shape)).sum(0)


def lif() -> nn.Module:
    return snn.Leaky(beta=0.5, init_hidden=True)


def dense() -> nn.Module:
    return Steps(nn.Flatten(), nn.Linear(784, 50), lif(), nn.Linear(50, 10))


def convolutional() -> nn.Module:
    layers = nn.Conv2d(1, 4, 5), lif(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 5), nn.MaxPool2d(2), lif()
    return Steps(*layers, nn.Flatten(), nn.Linear(128, 10))


def jelly() -> nn.Module:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    def node() -> nn.Module:
        return neuron.LIFNode(tau=2.0, decay_input=False)

    first = layer.Conv2d(1, 4, 5), layer.MaxPool2d(2), node()
    second = layer.Conv2d(4, 8, 5), layer.MaxPool2d(2), node()
    return Sequence(functional, *first, *second, layer.Flatten(), layer.Linear(128, 10))


def louder(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= 4
    return net


@pytest.mark.parametrize("build", [dense, convolutional, jelly])
def test_it_learns_by_heart_is_saved_and_is_loaded(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    images, labels = load("mnist")
    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    x, y = images[first][:, None] / 255, labels[first]
    net = swap_neurons(louder(build()), sigma=0.5)
    learner = NITLearner(net, seed=0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with learner.record():
            xr, yr = learner.expand(x, y)
            each = F.cross_entropy(net(xr), yr, reduction="none")
        losses.append(learner.backward(each).item())
        optimizer.step()
    learner.close()
    assert losses[-1] < 0.3 * losses[0], losses

    torch.save(net.state_dict(), tmp_path / "net.pt")
    again, plain = swap_neurons(build(), sigma=0.5), build()
    for other in (again, plain):
        other.load_state_dict(torch.load(tmp_path / "net.pt"))
    drawn = []
    with torch.no_grad():
        for noisy in (net, again):
            torch.manual_seed(1)
            drawn.append(noisy(x))
        with noise_off(net):
            quiet = net(x)
        assert torch.equal(*drawn) and not torch.equal(drawn[0], quiet)
        assert torch.equal(plain(x), quiet)
        assert torch.equal(restore_neurons(net)(x), quiet)


def test_a_convolutional_network_is_nearly_silent_until_its_weights_grow() -> None:
    """The fourth of the page's four things."""
    torch.manual_seed(0)
    images, _ = load("mnist")
    x = images[:50, None] / 255

    def rates(net: nn.Module) -> list[float]:
        with firing(net) as layers, noise_off(net), torch.no_grad():
            net(x)
        return [layer.rates.mean().item() for layer in layers.values()]

    net = swap_neurons(convolutional(), sigma=0.5)
    assert rates(net)[1] < 0.01
    assert min(rates(louder(net))) > 0.05
