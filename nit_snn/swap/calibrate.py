"""Scales the weights of a network to data, so that its hidden layers fire from the beginning.

Deep spiking networks with torch's usual weights fall silent from layer to layer. Rossbroich, Gygax
and Zenke (2022) choose the weights such that the input's fluctuations alone make neurons fire
now and then. Here each layer's gain is measured: layer after layer, on the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..neurons.ann import NoisyActivation
from ..neurons.base import NoisyNeuron, noise_off, noisy_neurons
from .feeding import Feeding, Scaled, feeding, rates

#: Gains beyond this are no matter of scale.
_LARGEST = 1000.0
_TRIALS = 16
#: A neuron that fires more often than not says as little as one that hardly ever does.
_OFTEN = 0.5
_NEAR = 0.05


class Calibrated(NamedTuple):
    """What became of one noisy layer.

    Attributes:
        layer: Its qualified name.
        before: Its firing rate before, without noise, in spikes per neuron and step.
        after: Its firing rate now.
        gain: What the weights that feed it were multiplied by; 1 if they were left alone.
    """

    layer: str
    before: float
    after: float
    gain: float


def calibrate(
    net: nn.Module, x: Tensor | tuple[Any, ...] | Callable[[], Any], *, rate: float = 0.03
) -> list[Calibrated]:
    """Makes every hidden noisy layer of `net` fire, by one gain for the weights before it.

    In place, and opt-in: before training. From the first layer to the last, where a layer fires
    less often than `rate`, the weight and bias of what feeds it (Linear, ConvNd, or a
    normalisation if it comes last) are multiplied by one number, and likewise where it fires at
    more than half of the steps. Rates are those without noise. Noise levels stay as they are.

    Left alone are layers whose spikes no other layer reads: an output that is louder than its
    training has made it starts with a wrong answer. So are layers that nothing trainable feeds.

    Args:
        net: A network with noisy neurons (see `nit_snn.swap_neurons`).
        x: Some 100 samples, as `net` takes them; several arguments as a tuple. Where one call is
            one time step, a function without arguments that runs all steps.
        rate: The lowest firing rate without noise, in spikes per neuron and time step, between 0
            and 1.

    Returns:
        One entry for each noisy layer, in the order in which they run.

    Raises:
        CalibrationError: There is no spiking noisy neuron, nothing fed it, no gain gives a layer
            that rate, or `rate` is none. All weights are as they were.

    Note:
        Membranes are reset. Buffers, such as BatchNorm's statistics, and the random generators are
        as they were.

    Example:
        >>> import snntorch, torch
        >>> from nit_snn import calibrate, swap_neurons
        >>> _ = torch.manual_seed(0)
        >>> hidden, out = (snntorch.Leaky(beta=0.5, init_hidden=True) for _ in range(2))
        >>> net = torch.nn.Sequential(torch.nn.Linear(9, 50), hidden, torch.nn.Linear(50, 3), out)
        >>> first, last = calibrate(swap_neurons(net), torch.rand(100, 9) / 4)
        >>> first.before < 0.01, abs(first.after - 0.03) < 0.003, last.gain
        (True, True, 1.0)
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
        raise CalibrationError(f"rate must be a number between 0 and 1, got {rate!r}.")
    neurons = {n: m for n, m in noisy_neurons(net).items() if not isinstance(m, NoisyActivation)}
    if not neurons:
        raise CalibrationError(
            "The network has no noisy neuron that spikes. Call nit_snn.swap_neurons(net) first."
        )
    run = _runner(net, x, neurons)
    with _as_it_was(net, neurons):
        found, before = feeding(net, neurons, run)
        gains: dict[str, float] = {}
        with _undone_by_errors(found):
            for name in found.order:
                gains[name] = _fit(name, found, neurons, run, rate)
        after = rates(neurons, run)
    return [Calibrated(name, before[name], after[name], gains[name]) for name in found.order]


def _fit(
    name: str,
    found: Feeding,
    neurons: Mapping[str, NoisyNeuron],
    run: Callable[[], Any],
    rate: float,
) -> float:
    """Scales what feeds a layer; returns the gain. The rate rises with it: bisection."""
    scaled = Scaled(found.parameters[name])
    if not scaled.parameters:
        return 1.0

    def fires(gain: float) -> float:
        scaled.by(gain)
        fired = rates(neurons, run)[name]
        if fired != fired:
            raise CalibrationError(f"The membranes of {name} are not finite.")
        return fired

    low, high, gain, now = 0.0, 0.0, 1.0, fires(1.0)
    if rate <= now <= max(rate, _OFTEN):
        return gain
    rises = now < rate
    rate = rate if rises else max(rate, _OFTEN)
    for _ in range(_TRIALS):
        if abs(now - rate) <= _NEAR * rate:
            return gain
        low, high = (gain, high) if now < rate else (low, gain)
        if high == 0 and gain < _LARGEST:
            gain *= 2
        elif low == 0 and gain > 1 / _LARGEST:
            gain /= 2
        elif high > 0 and low > 0:
            gain = (low * high) ** 0.5
        else:
            break
        now = fires(gain)
    if low > 0 and high > 0:  # the rate jumps past what was asked for
        gain = high if rises else low
        scaled.by(gain)
        return gain
    raise CalibrationError(
        f"{name} fires at a rate of {now:.2g}, and no gain of {', '.join(found.modules[name])} "
        f"makes it {rate:g}. Its current may be "
        "negative, or the same whatever the weights are (a normalisation without affine "
        "parameters). All weights are as they were."
    )


def _runner(net: nn.Module, x: Any, neurons: Mapping[str, NoisyNeuron]) -> Callable[[], Any]:
    """Runs the network from rest, with the same random numbers each time."""

    def run() -> Any:
        for neuron in neurons.values():
            neuron.reset_state()
        torch.manual_seed(0)
        with noise_off(net):  # it makes layers fire to which nothing gets through
            if callable(x) and not isinstance(x, Tensor):
                return x()
            return net(*x) if isinstance(x, tuple) else net(x)

    return run


@contextmanager
def _as_it_was(net: nn.Module, neurons: Mapping[str, NoisyNeuron]) -> Iterator[None]:
    """Afterwards random generators and buffers are as before, and membranes at rest."""
    membranes = {id(n) for neuron in neurons.values() for n in neuron.modules()}
    held = [
        (buffer, buffer.clone())
        for module in net.modules()
        if id(module) not in membranes
        for buffer in module.buffers(recurse=False)
    ]
    with torch.random.fork_rng(), torch.no_grad():
        try:
            yield
        finally:
            for buffer, value in held:
                buffer.copy_(value)
            for neuron in neurons.values():
                neuron.reset_state()


@contextmanager
def _undone_by_errors(found: Feeding) -> Iterator[None]:
    parameters = {p: p.detach().clone() for some in found.parameters.values() for p in some}
    try:
        yield
    except BaseException:
        for parameter, value in parameters.items():
            parameter.copy_(value)
        raise
