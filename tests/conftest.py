"""Networks that several tests share. All of them are small enough to be seen through."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import snntorch as snn
import torch
from hypothesis import settings
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, nn

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """Tests count what they leave behind: what is there already need not be looked at again."""
    gc.collect()
    gc.freeze()


class SnnTorchNet(nn.Module):
    """Two dense layers of snnTorch's Leaky; returns summed output membranes, (N, 3)."""

    def __init__(self, reset: str = "zero", steps: int = 3, **options: object) -> None:
        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(4, 6)
        self.lif1 = snn.Leaky(beta=0.8, reset_mechanism=reset, **options)
        self.fc2 = nn.Linear(6, 3)
        self.lif2 = snn.Leaky(beta=0.8, reset_mechanism=reset, **options)

    def spikes_and_membranes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes of both layers, (T, N, 6 + 3), and output membranes, (T, N, 3)."""
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(torch.cat([spk1, spk2], -1))
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes_and_membranes(x)[1].sum(0)


class SpikingJellyNet(nn.Module):
    """Two dense layers of SpikingJelly nodes in either step mode; returns spike counts, (N, 3)."""

    def __init__(self, node: type = neuron.LIFNode, steps: int = 3, mode: str = "m", **options):
        super().__init__()
        self.steps, self.mode = steps, mode
        self.body = nn.Sequential(
            layer.Linear(4, 6), node(**options), layer.Linear(6, 3), node(**options)
        )
        functional.set_step_mode(self, mode)

    def spikes(self, x: Tensor) -> Tensor:
        """Output spikes, (T, N, 3)."""
        functional.reset_net(self)
        if self.mode == "m":
            return self.body(x.unsqueeze(0).repeat(self.steps, *(1,) * x.dim()))
        return torch.stack([self.body(x) for _ in range(self.steps)])

    def forward(self, x: Tensor) -> Tensor:
        return self.spikes(x).sum(0)


def reset_nodes(net: nn.Module) -> None:
    """SpikingJelly's `reset_net`, which before 2.0 stumbles over snnTorch's neurons."""
    for module in net.modules():
        if isinstance(module, base.MemoryModule):
            module.reset()


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)  # as the examples leave it on
