"""What goes on in training, as scalars and histograms: firing, noise, the residual's weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..learner import NITLearner
from ..neurons.ann import NoisyActivation
from ..neurons.base import noisy_neurons


class Writer(Protocol):
    """The part of `torch.utils.tensorboard.SummaryWriter` that is used here."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> Any: ...

    def add_histogram(self, tag: str, values: Any, global_step: int) -> Any: ...


@dataclass
class Firing:
    """How often the neurons of one layer fired.

    Attributes:
        spikes: How many spikes there were at each of the layer's neurons, (\\*).
        draws: How many steps of how many rows that was.
    """

    spikes: Tensor = field(default_factory=lambda: torch.zeros(()))
    draws: int = 0

    @property
    def rates(self) -> Tensor:
        """Spikes per step of each neuron, (\\*)."""
        return self.spikes / max(1, self.draws)


@contextmanager
def firing(net: nn.Module) -> Iterator[dict[str, Firing]]:
    """Counts the spikes of every noisy neuron while the network runs inside the block.

    Unlike `nit_snn.inspect.probe` it keeps no more than one number for each neuron, and it works
    while a learner records.

    Args:
        net: A network with noisy neurons. A `NoisyActivation` does not spike and is left out.

    Yields:
        The counts by the neurons' qualified names, filled as the network runs.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import noise_off, swap_neurons
        >>> from nit_snn.inspect.monitoring import firing
        >>> net = swap_neurons(torch.nn.Sequential(snntorch.Leaky(beta=0.5, init_hidden=True)))
        >>> with noise_off(net), firing(net) as layers:
        ...     spikes = net(torch.tensor([[2.0, 0.5], [2.0, 3.0]]))
        >>> layers["0"].rates
        tensor([1.0000, 0.5000])
    """
    neurons = {n: m for n, m in noisy_neurons(net).items() if not isinstance(m, NoisyActivation)}
    counts = {name: Firing() for name in neurons}
    hooks = [
        neuron.register_forward_hook(_count(counts[name], neuron))
        for name, neuron in neurons.items()
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _count(count: Firing, neuron: nn.Module) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        leading = 2 if getattr(neuron, "step_mode", "s") == "m" else 1
        fired = (spikes.detach() != 0).flatten(0, leading - 1)
        count.spikes = count.spikes.to(fired.device) + fired.sum(0)
        count.draws += fired.shape[0]

    return hook


def noise_levels(net: nn.Module) -> dict[str, Tensor]:
    """A copy of sigma of every noisy neuron, in units of its membrane, by qualified name.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import swap_neurons
        >>> from nit_snn.inspect.monitoring import noise_levels
        >>> noise_levels(swap_neurons(torch.nn.Sequential(snntorch.Leaky(beta=0.5)), sigma=0.3))
        {'0': tensor(0.3000)}
    """
    return {name: n.sigma.detach().clone() for name, n in noisy_neurons(net).items()}


class TrainingLog:
    """Writes what a learner and its network do to TensorBoard.

    Scalars: `loss`, `replicas`, and for each layer `firing_rate` (spikes per step and neuron),
    `sigma` (the mean) and `residual` (see `NITLearner.residual_weights`). Histograms, where a layer
    has several neurons or levels: `firing_rates`, `sigmas`.

    Args:
        learner: Whose network is watched.
        writer: A `torch.utils.tensorboard.SummaryWriter`, or whatever has its `add_scalar` and
            `add_histogram`.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import NITLearner, swap_neurons
        >>> from nit_snn.inspect.monitoring import TrainingLog
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag)
        ...     def add_histogram(self, tag, values, step):
        ...         print(step, tag, tuple(values.shape))
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), swap_neurons(snntorch.Leaky(beta=0.9, init_hidden=True)))
        >>> learner = NITLearner(net, replicas=8, credit="none")
        >>> log = TrainingLog(learner, Printer())
        >>> with log.watching():
        ...     with learner.record():
        ...         losses = net(learner.expand(torch.rand(5, 4))).sum(1)
        ...     loss = learner.backward(losses)
        >>> log.write(0, loss)
        0 loss
        0 replicas
        0 sigma/1
        0 residual/1
        0 firing_rate/1
        0 firing_rates/1 (3,)
    """

    def __init__(self, learner: NITLearner, writer: Writer) -> None:
        self.learner = learner
        self.writer = writer
        self._replicas: int | None = None
        self._firing: dict[str, Firing] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around one learning step, or several, that `write` will tell of."""
        self._replicas = self.learner.replicas
        with firing(self.learner.net) as self._firing:
            yield

    def write(self, step: int, loss: Tensor | float | None = None) -> None:
        """Writes what was last watched, and the noise levels as they are now.

        Args:
            step: What TensorBoard calls the global step.
            loss: The mean loss, as `backward` returns it.
        """
        if loss is not None:
            self.writer.add_scalar("loss", float(loss), step)
        if self._replicas is not None:
            self.writer.add_scalar("replicas", self._replicas, step)
        for name, level in noise_levels(self.learner.net).items():
            self._both("sigma", "sigmas", name, level, step)
        for name, weight in self.learner.residual_weights.items():
            self.writer.add_scalar(_tag("residual", name), weight, step)
        for name, count in self._firing.items():
            if count.draws:
                self._both("firing_rate", "firing_rates", name, count.rates, step)

    def _both(self, one: str, several: str, name: str, values: Tensor, step: int) -> None:
        self.writer.add_scalar(_tag(one, name), float(values.mean()), step)
        if values.numel() > 1:
            self.writer.add_histogram(_tag(several, name), values, step)


def _tag(kind: str, name: str) -> str:
    return f"{kind}/{name or '(root)'}"
