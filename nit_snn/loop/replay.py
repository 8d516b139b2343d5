"""What a network did elsewhere takes the place of what torch would have computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dynamics.executor import Budget, Moved, Steps
from ..dynamics.lif import Lif, after_reset, noisy_step, number
from ..dynamics.needs import Needs
from ..dynamics.torch_executor import TorchExecutor
from ..errors import LoopError
from ..noise.layer_noise import LayerNoise

if TYPE_CHECKING:
    from collections.abc import Sequence

#: By how much of its height a membrane may miss its threshold, for numbers are rounded elsewhere.
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Replay:
    """What one layer did in a pass, as tensors of one type.

    Attributes:
        inputs: Presynaptic activity of each group, (T, N, inputs).
        noise: eps, (T, N, neurons).
        spikes: Zeros and ones, (T, N, neurons); None if they are not known.
        weighted: Whether the weights are those that the network ran with.
    """

    inputs: Sequence[Tensor]
    noise: Tensor
    spikes: Tensor | None
    weighted: bool


@dataclass(frozen=True, eq=False)
class Told:
    """What a layer's membranes are computed from, beside its currents and what it did.

    Attributes:
        name: The layer's.
        lif: What its membrane does.
        threshold: Where it fires.
        or_equal: Whether it fires at the threshold, too.
        height: How far the threshold lies from the rest.
        exact: Whether the network does what `lif` says.
    """

    name: str
    lif: Lif
    threshold: float | Tensor
    or_equal: bool
    height: float | Tensor
    exact: bool


class ReplayExecutor(TorchExecutor):
    """Hands out what was observed; see `nit_snn.dynamics.executor.Executor`.

    Args:
        noise: The layer's place in the pass.
        sigma: Its noise level.
        needs: What the pass has to keep.
        budget: Bytes that may be kept.
        replay: What the layer did.
        told: What it should do.
    """

    def __init__(
        self,
        noise: LayerNoise,
        sigma: Tensor,
        needs: Needs,
        budget: Budget,
        replay: Replay,
        told: Told,
    ) -> None:
        super().__init__(noise, sigma, needs, budget, binary=True)
        self.replay, self.told = replay, told

    def advance(
        self, steps: Steps, current: Tensor, state: Tensor | None, fired: Tensor | None
    ) -> Moved:
        replay, told = self.replay, self.told
        assert state is not None
        steps.noise = replay.noise
        known = replay.weighted and replay.spikes is not None
        if not known:  # of a membrane that nobody knows nothing can be said
            spikes = None if replay.spikes is None else replay.spikes.clone()
            return Moved(None, spikes, torch.zeros_like(state) + told.threshold)
        assert replay.spikes is not None
        membranes = replayed(current, replay, told, self.sigma, state)
        # The recorder gives spikes and membrane a graph of their own, in place.
        return Moved(membranes, replay.spikes.clone(), membranes[-1].clone())

    def samples(self, steps: Steps) -> Iterator[Tensor]:
        yield from self.replay.noise


def replayed(
    current: Tensor, replay: Replay, told: Told, sigma: float | Tensor, state: Tensor
) -> Tensor:
    """The membranes before they fire, (T, N, neurons), reset by the spikes that were observed.

    Args:
        current: I, (T, N, neurons), or (1, N, neurons) for all steps.
        replay: What the layer did.
        told: What it should do.
        sigma: Its noise level.
        state: The membrane that the first step starts from, (N, neurons).

    Raises:
        LoopError: The spikes do not follow from the noise and the inputs, though they should.
    """
    spikes, lif, threshold = replay.spikes, told.lif, told.threshold
    assert spikes is not None
    membranes = torch.empty_like(spikes)
    fired: Tensor | None = None
    for t, noise in enumerate(replay.noise):
        now = current[t if len(current) > 1 else 0]
        membrane = noisy_step(now, state, fired, lif, threshold, sigma, noise)
        fired = spikes[t]
        membranes[t] = membrane
        if not told.exact:  # what follows starts from what the spike says of the membrane
            membrane = agreeing(membrane, fired, told)
        state = after_reset(membrane, fired, lif, threshold)
    if told.exact:
        check_spikes(membranes, spikes, told)
    return agreeing(membranes, spikes, told)


def agreeing(membrane: Tensor, spikes: Tensor, told: Told) -> Tensor:
    """The nearest membrane that fires where a spike was observed, and nowhere else."""
    at = torch.as_tensor(told.threshold, dtype=membrane.dtype)
    beyond = torch.nextafter(at, torch.full_like(at, float("inf")))
    below = torch.nextafter(at, torch.full_like(at, -float("inf")))
    lowest, highest = (at, below) if told.or_equal else (beyond, at)
    return torch.where(
        spikes > 0, torch.maximum(membrane, lowest), torch.minimum(membrane, highest)
    )


def check_spikes(membranes: Tensor, spikes: Tensor, told: Told) -> None:
    """Spikes lie where membranes are above the threshold, up to rounding.

    Raises:
        LoopError: Some do not.
    """
    threshold = number(told.threshold)
    apart = (membranes - threshold) * (2 * spikes - 1)  # negative where the two disagree
    wrong = apart < -_ROUNDING * torch.as_tensor(number(told.height), dtype=apart.dtype)
    if not bool(wrong.any()):
        return
    step, row, index = wrong.nonzero()[0].tolist()
    what = "a spike" if bool(spikes[step, row, index]) else "no spike"
    at = torch.as_tensor(threshold, dtype=apart.dtype).expand(spikes.shape[-1])[index]
    raise LoopError(
        f"The spikes of {told.name}, shape {tuple(spikes.shape)}, do not follow from its noise, "
        f"weights and inputs: {int(wrong.sum())} disagree, first step {step}, row {row}, neuron "
        f"{index}: {what} with a membrane of {float(membranes[step, row, index]):.4g} and a "
        f"threshold of {float(at):.4g}. Look for a delay of one step, another noise sample, or "
        "another reset. If the network deviates from its description, say Layer(..., exact=False)."
    )
