"""What `time_to_accuracy.py` and its search share: the network in both frameworks, and one run.

784-50-10 over T steps, beta 0.5, reset to zero, the linear readout summed over time. Both
frameworks' networks compute the same function of the same weights; only the comparison at exactly
the threshold differs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import functional, layer, memopt, neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nit_snn import NITLearner, noise_off, swap_neurons

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training

SURROGATES = {
    "snnTorch": {
        "atan": lambda slope: snn_surrogate.atan(alpha=slope),
        "fast sigmoid": lambda slope: snn_surrogate.fast_sigmoid(slope=slope),
    },
    "SpikingJelly": {
        "atan": lambda slope: sj_surrogate.ATan(alpha=slope),
        "sigmoid": lambda slope: sj_surrogate.Sigmoid(alpha=slope),
    },
}


@dataclass(frozen=True)
class Setting:
    """How a method trains.

    Attributes:
        framework: "snnTorch" or "SpikingJelly".
        learner: Options of `NITLearner`; None for backpropagation through time.
        sigma: Noise level, for NIT.
        memopt: SpikingJelly's memory-optimised training.
        once: The current of the first layer is computed once by the network itself.
        surrogate: Name and slope, for backpropagation through time.
        spread: Standard deviation and mean that the currents of the hidden neurons are given
            before training; None leaves the framework's initialisation.
        center: Whether the mean of the training images is subtracted.
        batch_size: Images in a batch.
        lr: Adam's learning rate.
        beta2: Adam's second decay.
        warmup: Steps over which the learning rate rises.
        horizon: Steps at which it has fallen, in a straight line, to `floor` times itself.
        floor: See there.
    """

    framework: str
    learner: dict[str, Any] | None = None
    sigma: float = 0.5
    memopt: bool = False
    once: bool = False
    surrogate: tuple[str, float] = ("atan", 2.0)
    spread: tuple[float, float] | None = None
    center: bool = False
    batch_size: int = 128
    lr: float = 5e-3
    beta2: float = 0.999
    warmup: int = 0
    horizon: int = 1000
    floor: float = 0.1

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with at a step."""
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        return rising * max(self.floor, 1 - (1 - self.floor) * step / self.horizon)

    def described(self) -> dict[str, Any]:
        """What matters to this method, for the results."""
        other = ("surrogate", "once", "memopt") if self.learner is not None else ("sigma",)
        return {k: v for k, v in asdict(self).items() if k not in (*other, "framework")}


class SnnTorch(nn.Module):
    """Step by step, as snnTorch's tutorials do."""

    def __init__(self, hidden: int, steps: int, setting: Setting) -> None:
        super().__init__()
        self.synapse, self.readout = nn.Linear(784, hidden), nn.Linear(hidden, 10)
        name, slope = setting.surrogate
        spike_grad = SURROGATES["snnTorch"][name](slope)
        self.neuron = snn.Leaky(beta=0.5, reset_mechanism="zero", spike_grad=spike_grad)
        self.steps, self.once = steps, setting.once

    def forward(self, x: Tensor) -> Tensor:
        membrane, outputs = self.neuron.reset_mem(), []
        if self.once:
            current = self.synapse(x)
        for _ in range(self.steps):
            spikes, membrane = self.neuron(current if self.once else self.synapse(x), membrane)
            outputs.append(self.readout(spikes))
        return torch.stack(outputs).sum(0)


class Hidden(nn.Module):
    """A block of SpikingJelly's, synapse and neuron, which memopt may checkpoint."""

    def __init__(self, synapse: nn.Module, neurons: nn.Module) -> None:
        super().__init__()
        self.synapse, self.neuron = synapse, neurons

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.synapse(x))


class SpikingJelly(nn.Module):
    """All steps at once, its fastest mode."""

    def __init__(self, hidden: int, steps: int, setting: Setting) -> None:
        super().__init__()
        name, slope = setting.surrogate
        node = neuron.LIFNode(
            tau=2.0,
            decay_input=False,
            v_reset=0.0,
            surrogate_function=SURROGATES["SpikingJelly"][name](slope),
        )
        self.hidden = Hidden(layer.Linear(784, hidden), node)
        self.readout = layer.Linear(hidden, 10)
        self.steps, self.once = steps, setting.once
        functional.set_step_mode(self, "m")

    @property
    def synapse(self) -> nn.Module:
        return self.hidden.synapse

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        if self.once:
            current = self.hidden.synapse(x)
            spikes = self.hidden.neuron(current.expand(self.steps, *current.shape))
        else:
            spikes = self.hidden(x.expand(self.steps, *x.shape))
        return self.readout(spikes).sum(0)


FRAMEWORKS = {"snnTorch": SnnTorch, "SpikingJelly": SpikingJelly}


@torch.no_grad()
def spread(synapse: nn.Linear, images: Tensor, std: float, mean: float) -> None:
    """Scales a synapse so that its currents have this deviation, and each neuron this mean."""
    current = synapse(images)
    factor = std / (current - current.mean(0)).std()
    synapse.weight *= factor
    synapse.bias.copy_(mean - (current.mean(0) - synapse.bias) * factor)


@dataclass
class Data:
    """Images as rows, (N, 784), and labels; `test` is what accuracy is told by."""

    images: Tensor
    labels: Tensor
    test: TensorDataset

    def centered(self) -> Data:
        mean = self.images.mean(0)
        test = TensorDataset(self.test.tensors[0] - mean, self.test.tensors[1])
        return Data(self.images - mean, self.labels, test)


class Run:
    """One network and its way of being trained.

    Args:
        setting: What it is.
        data: What it learns from.
        seed: Of weights, order of the images, and noise.
        hidden: Number of hidden neurons.
        steps: T.
    """

    def __init__(self, setting: Setting, data: Data, seed: int, hidden: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.setting, self.data, self.steps_made = setting, data, 0
        self.net: nn.Module = FRAMEWORKS[setting.framework](hidden, steps, setting)
        if setting.spread is not None:
            spread(self.net.synapse, data.images[:1000], *setting.spread)
        self.learner: NITLearner | None = None
        if setting.learner is not None:
            swap_neurons(self.net, sigma=setting.sigma)
            self.learner = NITLearner(self.net, seed=seed, **setting.learner)
        if setting.memopt:
            # The block is computed again, the spikes before the readout are kept as bits. Levels
            # above 1 measure a GPU's memory and refuse to run without one.
            shown = data.images[: setting.batch_size]
            kinds = (Hidden, layer.Linear)
            memopt.optimize_memory(self.net, kinds, lambda net: net(shown), level=1)
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=setting.lr, betas=(0.9, setting.beta2), fused=True
        )
        self.order = self._batches(torch.Generator().manual_seed(seed))

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        size = self.setting.batch_size
        while True:
            order = torch.randperm(len(self.data.labels), generator=generator)
            yield from order[: len(order) // size * size].split(size)

    def step(self) -> None:
        """One update, from the choice of the images on."""
        rows = next(self.order)
        x, y = self.data.images[rows], self.data.labels[rows]
        self.optimizer.param_groups[0]["lr"] = self.setting.lr * self.setting.factor(
            self.steps_made
        )
        self.optimizer.zero_grad()
        if self.learner is not None:
            with self.learner.record():
                xr, yr = self.learner.expand(x, y)
                losses = F.cross_entropy(self.net(xr), yr, reduction="none")
            self.learner.backward(losses)
        else:
            F.cross_entropy(self.net(x), y).backward()
        self.optimizer.step()
        self.steps_made += 1

    def accuracy(self) -> float:
        """Percent of the test images; the first layer, whose result is the same, computed once."""
        own, self.net.once = self.net.once, True
        found = training.accuracy(self.net, self.data.test)
        self.net.once = own
        return found

    def curve(
        self, seconds: float, every: float, target: float | None = None, silent: bool = True
    ) -> list[dict[str, float]]:
        """Trains, and tells the accuracy each time another `every` seconds have been trained for.

        Only the steps are timed. With a `target` it ends where that has been reached and has held.

        Args:
            seconds: Training time, of the processor: other programs do not change where a run is
                looked at.
            every: Such time between two evaluations.
            target: Percent.
            silent: Tell the accuracy of a noisy network without its noise, too.
        """
        found: list[dict[str, float]] = []
        wall, cpu = 0.0, 0.0
        while cpu < seconds:
            while cpu < every * (len(found) + 1):
                started, started_cpu = time.perf_counter(), time.process_time()
                self.step()
                wall += time.perf_counter() - started
                cpu += time.process_time() - started_cpu
            point = {"seconds": wall, "cpu_seconds": cpu, "steps": self.steps_made}
            point["test"] = self.accuracy()
            if self.learner is not None and silent:
                with noise_off(self.net):
                    point["test_noise_off"] = self.accuracy()
            found.append(point)
            if target is not None and reached(found, target) is not None:
                break
        if self.learner is not None:
            self.learner.close()
        return found


def reached(curve: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """The first point at or above the target with the next one at or above it as well."""
    for point, following in pairwise(curve):
        if point["test"] >= target and following["test"] >= target:
            return point
    return None
