"""Networks as users bring them, from the tutorials of snnTorch and SpikingJelly.

Each has a `forward` from images (N, 1, 28, 28) in [0, 1] to what the loss reads, (N, 10).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import architectures
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn.datasets import load


class Deep(nn.Module):
    """784-100-100-100-10, T = 8, beta 0.5, a linear readout summed over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, 100) for i in (784, 100, 100))
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.5) for _ in range(3))
        self.out = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x, membranes = x.flatten(1), [each.reset_mem() for each in self.neurons]
        total = torch.zeros(())
        for _ in range(8):
            spikes = x
            for i, (dense, lif) in enumerate(zip(self.layers, self.neurons, strict=True)):
                spikes, membranes[i] = lif(dense(spikes), membranes[i])
            total = total + self.out(spikes)
        return total


class Tutorial5(nn.Module):
    """snnTorch's tutorial 5: 784-1000-10, T = 25, beta 0.95; the loss reads spike counts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 1000), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(1000, 10), snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> Tensor:
        x, mem1, mem2 = x.flatten(1), self.lif1.reset_mem(), self.lif2.reset_mem()
        counts = []
        for _ in range(25):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            counts.append(spk2)
        return torch.stack(counts).sum(0)


class Tutorial6(nn.Module):
    """snnTorch's tutorial 6: 12C5-MP2-64C5-MP2-10, T = 10, beta 0.5; spiking outputs."""

    def __init__(self, channels: tuple[int, int] = (12, 64)) -> None:
        super().__init__()
        first, second = channels
        self.conv1, self.lif1 = nn.Conv2d(1, first, 5), snn.Leaky(beta=0.5)
        self.conv2, self.lif2 = nn.Conv2d(first, second, 5), snn.Leaky(beta=0.5)
        self.fc, self.lif3 = nn.Linear(second * 16, 10), snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        counts = []
        for _ in range(10):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(x), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            counts.append(spk3)
        return torch.stack(counts).sum(0)


class JellyConv(nn.Module):
    """SpikingJelly's Fashion CSNN, T = 4: conv-BN-IF-MP twice, then two FC-IF; firing rates."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer.Conv2d(1, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(),
            layer.MaxPool2d(2, 2),
            layer.Conv2d(channels, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Linear(channels * 49, channels * 16, bias=False),
            neuron.IFNode(),
            layer.Linear(channels * 16, 10, bias=False),
            neuron.IFNode(),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.body(x.unsqueeze(0).repeat(4, 1, 1, 1, 1)).mean(0)


class JellyLinear(nn.Module):
    """SpikingJelly's lif_fc_mnist: one layer of LIF, T = 100, Poisson spikes in; firing rates."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer.Flatten(), layer.Linear(784, 10, bias=False), neuron.LIFNode(tau=2.0)
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        steps = x.unsqueeze(0).expand(100, *x.shape)
        return self.body((torch.rand_like(steps) <= steps).to(x)).mean(0)


class Rows(nn.Module):
    """Reads an image row by row through 128 neurons, beta 0.9; with feedback if recurrent."""

    def __init__(self, recurrent: bool = False) -> None:
        super().__init__()
        self.fc1, self.lif = nn.Linear(28, 128), snn.Leaky(beta=0.9)
        self.feedback = nn.Linear(128, 128) if recurrent else None
        self.out = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        mem, total = self.lif.reset_mem(), torch.zeros(())
        spikes = x.new_zeros(len(x), 128)
        for row in x[:, 0].unbind(1):
            current = self.fc1(row)
            if self.feedback is not None:
                current = current + self.feedback(spikes)
            spikes, mem = self.lif(current, mem)
            total = total + self.out(spikes)
        return total


def of_the_examples(name: str) -> nn.Module:
    """A network of examples/architectures.py, its currents balanced on 1,000 images as there."""
    experiment = architectures.EXPERIMENTS[name]
    net = experiment.build(architectures.parse_arguments([name]))
    architectures.balance(net, load("mnist", "")[0][:1000, None] / 255, *experiment.spread)
    return net


def spiking_outputs() -> nn.Module:
    """784-50-10 with spiking outputs, T = 8, beta 0.5, balanced likewise."""
    net = architectures.Layers(*architectures.dense(784, 50, 10), steps=8)
    architectures.balance(net, load("mnist", "")[0][:1000, None] / 255, 1.0, 0.5)
    return net


def cross_entropy(out: Tensor, labels: Tensor) -> Tensor:
    """Of a readout, or of spike counts; (N,)."""
    return F.cross_entropy(out, labels, reduction="none")


def squared_error(out: Tensor, labels: Tensor) -> Tensor:
    """Of firing rates, as SpikingJelly's examples have it; (N,)."""
    return (out - F.one_hot(labels, 10).to(out)).square().mean(1)


@dataclass(frozen=True)
class Task:
    """A network and how it is trained.

    Attributes:
        make: Makes the network.
        data: The data set.
        images: How many are trained on.
        epochs: How often each is seen.
        batch: Rows in a batch.
        loss: From what the network returns and labels to a loss for each row.
        sigma: The noise of all but STBP; None is that of `swap_neurons(net)`.
        rates: The learning rates that every method tries.
    """

    make: Callable[[], nn.Module]
    data: str
    images: int
    epochs: int
    batch: int
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    sigma: float | None = None
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)


TASKS = {
    "deep": Task(Deep, "mnist", 8000, 6, 128),
    "tutorial 5": Task(Tutorial5, "mnist", 6000, 2, 128),
    "tutorial 6, 8 and 16 channels": Task(lambda: Tutorial6((8, 16)), "mnist", 4000, 1, 64),
    "SpikingJelly's CSNN": Task(JellyConv, "fashion-mnist", 4000, 1, 64, squared_error),
    "SpikingJelly's lif_fc_mnist": Task(JellyLinear, "mnist", 6000, 1, 64, squared_error),
    "rows": Task(Rows, "fashion-mnist", 6000, 2, 128),
    "conv": Task(lambda: of_the_examples("conv"), "mnist", 4000, 1, 64),
    "128 recurrent": Task(lambda: of_the_examples("recurrent"), "mnist", 6000, 2, 128),
    "polystep": Task(lambda: of_the_examples("polystep"), "mnist", 6000, 2, 128),
    "spiking 784-50-10": Task(spiking_outputs, "mnist", 6000, 2, 128),
    "rows, recurrent": Task(lambda: Rows(recurrent=True), "fashion-mnist", 6000, 2, 128),
}
