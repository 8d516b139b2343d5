"""The networks of benchmarks/gpu.py, and who takes a learning step on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.dynamics.backend import VARIABLE, backend_of
from nit_snn.errors import BackendError

KERNELS, TORCH = "NIT, kernels", "NIT, torch"
EXPANDED = "NIT, kernels, expand()"
SNNTORCH = "snnTorch"
JELLY, COMPILED = "SpikingJelly", "SpikingJelly, compiled"
MEMOPT, AUTOCAST = "SpikingJelly, memopt", "SpikingJelly, autocast alone"

#: Who is measured everywhere.
USUAL = (KERNELS, TORCH, SNNTORCH, JELLY, COMPILED)
DTYPES = ("float32", "bfloat16")
#: What a peer cannot do without.
NEEDS = {
    KERNELS: "kernels",
    EXPANDED: "kernels",
    SNNTORCH: "snntorch",
    JELLY: "spikingjelly",
    COMPILED: "spikingjelly",
    MEMOPT: "spikingjelly",
    AUTOCAST: "spikingjelly",
}

CHANNELS, CLASSES = (3, 32, 64), 10
RATE, SIGMA = 0.2, 0.5

Step = Callable[[], None]


@dataclass(frozen=True)
class Layer:
    """What one row is to a synapse at one step: numbers in and out, weights, multiply-adds."""

    inputs: int
    outputs: int
    weights: int
    products: int


@dataclass(frozen=True)
class Point:
    """A network and a batch.

    Attributes:
        network: "linear", width-width-width-10; or "conv", two 3x3 convolutions of stride 2 with 32
            and 64 channels on 3 channels, and a linear readout. LIF neurons behind all
            but the readout.
        steps: T.
        width: Of the linear layers, or the side of the images.
        rows: N.
        dtype: "float32", or "bfloat16" by autocast.
    """

    network: str = "linear"
    steps: int = 128
    width: int = 4096
    rows: int = 256
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, N, *) of the input."""
        image = (CHANNELS[0], self.width, self.width)
        inner = (self.width,) if self.network == "linear" else image
        return (self.steps, self.rows, *inner)

    @property
    def layers(self) -> list[Layer]:
        """The synapses, the readout last."""
        if self.network == "linear":
            sizes = [self.width] * 3
            found = [Layer(i, o, i * o, i * o) for i, o in pairwise(sizes)]
        else:
            found, side = [], self.width
            for i, o in pairwise(CHANNELS):
                outputs = o * (side // 2) ** 2
                found.append(Layer(i * side**2, outputs, 9 * i * o, 9 * i * outputs))
                side //= 2
        last = found[-1].outputs
        return [*found, Layer(last, CLASSES, last * CLASSES, last * CLASSES)]

    def synapses(self, kind: Any) -> list[nn.Module]:
        """Those with neurons behind them; `kind` has the classes Linear and Conv2d."""
        if self.network == "linear":
            return [kind.Linear(self.width, self.width) for _ in range(2)]
        return [kind.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairwise(CHANNELS)]

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")


class SpikingJellyNet(nn.Module):
    """All steps of a layer at once; (T, N, *) to (N, 10)."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        layer, neuron = (jelly(name) for name in ("layer", "neuron"))
        self.blocks = nn.ModuleList(
            nn.Sequential(synapse, neuron.LIFNode(tau=2.0)) for synapse in point.synapses(layer)
        )
        self.readout = layer.Linear(point.layers[-1].inputs, CLASSES)
        jelly("functional").set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.readout(x.flatten(2)).sum(0)

    def forget(self) -> None:
        """After each step, as SpikingJelly's documentation has it."""
        jelly("functional").reset_net(self)


class SnnTorchNet(nn.Module):
    """Step by step; (T, N, *) to (N, 10). Decay and reset are those of `SpikingJellyNet`."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        snn = import_module("snntorch")
        self.synapses = nn.ModuleList(point.synapses(nn))
        self.neurons = nn.ModuleList(
            snn.Leaky(beta=0.5, reset_mechanism="zero") for _ in self.synapses
        )
        self.readout = nn.Linear(point.layers[-1].inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        membranes = [neuron.reset_mem() for neuron in self.neurons]
        total = torch.zeros((), device=x.device)
        for spikes in x:
            for i, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                spikes, membranes[i] = neuron(synapse(spikes), membranes[i])
            total = total + self.readout(spikes.flatten(1))
        return total

    def forget(self) -> None:
        """Lets go of the graph that led to the last membranes."""
        for neuron in self.neurons:
            neuron.reset_mem()


def jelly(name: str) -> Any:
    """A part of SpikingJelly."""
    return import_module(f"spikingjelly.activation_based.{name}")


@dataclass(frozen=True)
class Bench:
    """Where the peers run.

    Attributes:
        device: The device.
        replicas: C of NIT; rows are replicas times samples.
        obstacles: What cannot be had here ("spikingjelly", "snntorch", "kernels"), and why.
    """

    device: torch.device
    replicas: int
    obstacles: dict[str, str]

    @staticmethod
    def on(device: torch.device, replicas: int) -> Bench:
        obstacles = {}
        for name in ("spikingjelly", "snntorch"):
            try:
                import_module(name)
            except ImportError as error:
                obstacles[name] = f"{name} cannot be imported ({error})"
        try:
            with backend(_kernels(device)):
                backend_of(device)
        except BackendError as error:
            obstacles["kernels"] = str(error)
        return Bench(device, replicas, obstacles)

    def missing(self) -> dict[str, str]:
        """The peers that are left out, and why."""
        return {p: self.obstacles[n] for p, n in NEEDS.items() if n in self.obstacles}

    def network(self, point: Point, jelly: bool) -> SpikingJellyNet | SnnTorchNet:
        with self.device:
            return SpikingJellyNet(point) if jelly else SnnTorchNet(point)

    def batch(self, point: Point) -> tuple[Tensor, Tensor]:
        """Random spikes, (T, N, *), and labels, (N,): each sample once for every replica."""
        generator = torch.Generator(self.device).manual_seed(0)
        steps, rows, *inner = point.shape
        shape = (steps, rows // self.replicas, *inner)
        x = (torch.rand(shape, generator=generator, device=self.device) < RATE).float()
        y = torch.randint(CLASSES, shape[1:2], generator=generator, device=self.device)
        repeats = (1, self.replicas, *(1,) * len(inner))
        return x.repeat(repeats), y.repeat(self.replicas)

    def step(self, peer: str, point: Point, x: Tensor, y: Tensor) -> AbstractContextManager[Step]:
        """In which a peer can take learning steps: forward, loss, backward into `.grad`.

        A step lets go of its gradients at its end, where an optimizer would have used them.
        """
        if peer.startswith("NIT"):
            name = "torch" if peer == TORCH else _kernels(self.device)
            return self._nit(point, x, y, name, expands=peer == EXPANDED)
        return self._bptt(peer, point, x, y)

    @contextmanager
    def _nit(self, point: Point, x: Tensor, y: Tensor, name: str, expands: bool) -> Iterator[Step]:
        net = self.network(point, "spikingjelly" not in self.obstacles)
        swap_neurons(net, sigma=SIGMA)
        learner = NITLearner(net, replicas=self.replicas, credit="none", seed=0)
        if expands:
            samples = point.rows // self.replicas
            x, y = x[:, :samples].contiguous(), y[:samples]

        def step() -> None:
            with learner.record(), point.autocast(self.device):
                # Unmarked rows: the first layer is computed for each of them, as it is for all.
                xr, yr = (learner.expand(x, dim=1), learner.expand(y)) if expands else (x, y)
                losses = F.cross_entropy(net(xr), yr, reduction="none")
            learner.backward(losses)
            net.forget()
            net.zero_grad(set_to_none=True)

        with backend(name):
            try:
                yield step
            finally:
                learner.close()

    @contextmanager
    def _bptt(self, peer: str, point: Point, x: Tensor, y: Tensor) -> Iterator[Step]:
        net = self.network(point, peer != SNNTORCH)
        forward: Callable[[Tensor], Tensor] = net
        if point.dtype != "float32" and peer in (JELLY, COMPILED) and self.device.type == "cuda":
            store_in_bfloat16(net, self.device)
        if peer == MEMOPT:
            save_memory(net, x)
        if peer == COMPILED:
            # On a CPU inductor would take a C++ compiler and a minute.
            how = "inductor" if self.device.type == "cuda" else "aot_eager"
            forward = torch.compile(net, backend=how)

        def step() -> None:
            with point.autocast(self.device):
                losses = F.cross_entropy(forward(x), y, reduction="none")
            losses.mean().backward()
            net.forget()
            net.zero_grad(set_to_none=True)

        try:
            yield step
        finally:
            if peer == COMPILED:
                torch.compiler.reset()


def store_in_bfloat16(net: nn.Module, device: torch.device) -> None:
    """SpikingJelly's fused neurons under autocast; by autocast alone they run step by step."""
    precision = jelly("precision")
    config = precision.PrecisionConfig(mode="bf16", neuron_storage="bf16")
    precision.prepare_model_for_precision(net, device, config)


def save_memory(net: SpikingJellyNet, x: Tensor) -> None:
    """SpikingJelly's own way to less memory: blocks are run again, their spikes kept as bits."""
    jelly("memopt").optimize_memory(net, nn.Sequential, lambda model: model(x), level=1)
    jelly("functional").invalidate_reset_cache(net)
    net.forget()


def _kernels(device: torch.device) -> str:
    """The backend that is measured as the kernels; on a CPU it only stands in for them."""
    return "cupy" if device.type == "cuda" else "reference"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces nit_snn's backend."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
