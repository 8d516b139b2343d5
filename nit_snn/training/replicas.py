"""How many replicas a batch gets: as many as its gradient needs, within bounds.

A batch of B samples has a gradient with two sources of variance: which samples it holds, and the
noise in their replicas. With s^2 the mean squared gradient of a single sample and v the variance
that one replica adds, C replicas make a sample's own gradient known with a signal-to-noise ratio
of `C s^2 / v`. Where that is well above 1 the samples themselves are what limits the batch, and
further replicas are wasted; where it is well below, the noise is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .saved_state import Entries, count, number

_MEMORY = 0.9


class ReplicaController:
    """Chooses C for the next batch from the signal-to-noise ratio of those before.

    C depends on earlier batches only, so it takes nothing from the estimate's unbiasedness.

    Args:
        bounds: (fewest, most) replicas, powers of two; the most is what there is to spend.
        target: The signal-to-noise ratio to aim at.

    Example:
        >>> controller = ReplicaController((4, 64), target=1.0)
        >>> controller.current, controller.next(signal=1.0, noise=25.0)
        (64, 32)
    """

    def __init__(self, bounds: tuple[int, int], target: float) -> None:
        self.bounds = bounds
        self.target = target
        self.current = bounds[1]
        self._signal = self._noise = 0.0

    def update(self, shares: Iterable[Tensor]) -> None:
        """Takes in one batch.

        Args:
            shares: For each layer what each row adds to the gradient of its currents,
                (C, B, *); the layer with the lowest ratio decides.
        """
        found = [signal_and_noise(share) for share in shares if share.numel()]
        if found:
            worst = min(found, key=lambda pair: pair[0] / pair[1] if pair[1] > 0 else math.inf)
            self.current = self.next(*worst)

    def next(self, signal: float, noise: float) -> int:
        """C for the next batch, after one with these measurements; both are averaged over time."""
        self._signal = _MEMORY * self._signal + (1 - _MEMORY) * signal
        self._noise = _MEMORY * self._noise + (1 - _MEMORY) * noise
        fewest, most = self.bounds
        if self._noise <= 0:
            return fewest
        if self._signal <= 0:
            return most
        wanted = self.target * self._noise / self._signal
        return int(min(most, max(fewest, 2 ** round(math.log2(wanted)))))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to choose the same."""
        return {
            "current": self.current,
            "signal": self._signal,
            "noise": self._noise,
        }

    @property
    def entries(self) -> Entries:
        """What must be true of a state."""
        fewest, most = self.bounds
        return {
            "current": lambda n: count(n) and fewest <= n <= most and n.bit_count() == 1,
            "signal": number,
            "noise": number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the controller that gave `state` stopped; it must have the `entries`."""
        self.current = state["current"]
        self._signal, self._noise = state["signal"], state["noise"]


def snr(shares: Iterable[Tensor], replicas: int) -> float | None:
    """How well one layer's gradient of a single sample is known: `C s^2 / v`.

    The replicas are taken to be independent, which antithetic ones, Sobol points and replicas with
    noise in one layer at a time are not.

    Args:
        shares: What each row adds to the gradient of the layer's currents, (C, B, *), for each
            size that they have.
        replicas: C.

    Returns:
        The ratio, which scatters around 0, and below, where there is only noise; infinity without
        any noise, and None where nothing can be said: no sample, or a single replica.

    Example:
        >>> import torch
        >>> from nit_snn.training.replicas import snr
        >>> snr([torch.tensor([1.0, 3.0]).reshape(2, 1, 1)], replicas=2)
        3.0
    """
    found = [signal_and_noise(share) for share in shares if share.numel() and share.shape[0] > 1]
    if not found:
        return None
    signal, noise = (sum(values) for values in zip(*found, strict=True))
    return replicas * signal / noise if noise > 0 else math.inf


def signal_and_noise(share: Tensor) -> tuple[float, float]:
    """The mean squared gradient of a sample, and the variance that one replica adds to it.

    Args:
        share: (C, B, *), C at least 2.

    Returns:
        Both summed over (*), averaged over samples, and unbiased; the first may be negative.
    """
    flat = share.detach().flatten(2)
    variance = flat.var(0).sum(1)
    signal = flat.mean(0).square().sum(1) - variance / flat.shape[0]
    return float(signal.mean()), float(variance.mean())
