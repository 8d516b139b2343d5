"""What a recording asks of the kernels: noisy steps, and later their scores, once more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import RecordingError
from ..neurons.base import Lif
from ..noise.philox_noise import PhiloxNoise
from ..recording.packed_spikes import Packed
from .kernels.launch import REALS
from .kernels.linear_gradient.op import linear_gradient
from .kernels.linear_sign_gradient.op import linear_sign_gradient
from .kernels.noisy_lif.op import noisy_lif
from .kernels.noisy_lif.reference import Dynamics
from .kernels.sigma_gradient.op import sigma_gradient
from .kernels.weighted_score.op import weighted_score

#: A drift that is made elsewhere, and only gets its noise here.
GIVEN = Lif(Dynamics(), decay=0.0, gain=1.0)
TYPES = frozenset(REALS)
#: How many numbers are drawn again at once; 128 MiB of float32.
_AT_ONCE = 2**25
#: Weights of a dense layer up to which its gradient comes straight from bits; a guess so far.
_SMALL = 2**16


@dataclass(frozen=True, eq=False)
class Past:
    """What a layer has to be run from once more, for scores that depend on its spikes.

    Attributes:
        current: (T, N, *), float32, or (1, N, *) for all steps.
        state: (N, *).
        lif: What the membrane does.
        threshold: Where it fires.
    """

    current: Tensor
    state: Tensor
    lif: Lif
    threshold: Tensor | float


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's noise in one pass.

    Attributes:
        noise: The noise of the pass.
        number: Number of the layer.
        layers: Number of all layers.
        sigma: Its noise level, a scalar or broadcasting to (*).
        signs: Whether the scores are the noise's signs (NIT-S).
    """

    noise: PhiloxNoise
    number: int
    layers: int
    sigma: Tensor
    signs: bool

    def run(
        self,
        current: Tensor,
        state: Tensor | None,
        lif: Lif,
        threshold: Tensor | float,
        *,
        steps: int,
        first_step: int,
        bits: Tensor | None = None,
        slot: int = 0,
        summed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Spikes, (T, N, *), and the state that is left behind, (N, *).

        Args:
            current: (T, N, *), or (1, N, *) for all steps.
            state: (N, *), or None for zero.
            lif: What the membrane does.
            threshold: Where the neurons fire.
            steps: T.
            first_step: How often the layer was called before in this pass.
            bits: Takes the spikes as bits, (planes, N, *), if given.
            slot: From which bit on.
            summed: Whether the sum of the scores over the steps will do; nothing is kept here.
        """
        rows, inner = current.shape[1], current.shape[2:]
        flat = (rows, math.prod(inner))
        spikes, _, last = noisy_lif(
            current.reshape(len(current), *flat),
            None if state is None else state.reshape(flat),
            None if bits is None else bits.view(len(bits), *flat),
            *self._parameters(lif, threshold, inner),
            **self._whose(),
            **vars(lif.dynamics),
            steps=steps,
            first_step=first_step,
            slot=slot,
            wants_membranes=False,
        )
        return spikes.view(steps, *current.shape[1:]), last.view(current.shape[1:])

    def cotangents(
        self,
        weight: Tensor,
        shape: torch.Size,
        steps: range,
        *,
        gain: float | Tensor = 1.0,
        summed: bool = False,
        whole: bool = False,
        dtype: torch.dtype = torch.float32,
        past: Past | None = None,
    ) -> Iterator[tuple[range, Tensor]]:
        """`A * score * gain / sigma` of some steps, under NIT-S without a scale.

        Chunk by chunk in time, so that what is drawn again at once stays small.

        Args:
            weight: A, (N,) or (T, N).
            shape: (N, *).
            steps: Their numbers, counted from the layer's first call in the pass.
            gain: A factor, a scalar or broadcasting to (*).
            summed: Whether their sum, (N, *), is wanted.
            whole: Whether all steps are wanted at once.
            dtype: Of the result. float16 comes as bfloat16: what is divided by the number of rows
                may be too small for it.
            past: Condition the scores on the spikes, as `estimators.scores.conditional_scores`
            does.

        Yields:
            Which of the steps, counted from the first; and (t, N, *), or their sum.
        """
        inner, device = shape[1:], self.sigma.device
        scale = levels(self._scale(gain), inner, device)
        length = len(steps) if summed or whole else max(1, _AT_ONCE // max(1, shape.numel()))
        state = None if past is None else past.state.reshape(shape[0], math.prod(inner)).float()
        for start in range(0, len(steps), length):
            chunk = range(start, min(start + length, len(steps)))
            part = weight if weight.dim() == 1 else weight[chunk.start : chunk.stop]
            found, state = weighted_score(
                part,
                scale,
                **self._whose(),
                inner=math.prod(inner),
                steps=len(chunk),
                first_step=steps[start],
                signs=self.signs,
                summed=summed,
                dtype=torch.bfloat16 if dtype == torch.float16 else dtype,
                **self._replayed(past, chunk, state, inner),
            )
            yield chunk, found.view(shape if summed else (len(chunk), *shape))

    def cotangent(self, weight: Tensor, shape: torch.Size, calls: list[int]) -> Tensor:
        """`A * score / sigma` summed over some calls, (N, *), in float32.

        Args:
            weight: A, (N,).
            shape: (N, *).
            calls: Their numbers, ascending.
        """
        found = [t for r in _runs(calls) for _, t in self.cotangents(weight, shape, r, summed=True)]
        return found[0] if len(found) == 1 else torch.stack(found).sum(0)

    def sigma_total(
        self, weight: Tensor, shape: torch.Size, calls: list[int], past: Past | None = None
    ) -> Tensor:
        """`sum A * (eps^2 - 1)` over rows and calls, (*); see `cotangents`."""
        inner = shape[1:]
        state = None if past is None else past.state.reshape(shape[0], math.prod(inner)).float()
        found = [
            sigma_gradient(
                weight,
                **self._whose(),
                inner=math.prod(inner),
                steps=len(run),
                first_step=run.start,
                **self._replayed(past, range(len(run)), state, inner),
            )
            for run in _runs(calls)
        ]
        return torch.stack(found).sum(0).view(inner)

    def of_linear(
        self, weight: Tensor, spikes: Packed, steps: range, outputs: int, gain: float | Tensor
    ) -> Tensor | None:
        """A dense layer's gradient straight from bits, (out, in + 1), the bias last; float32.

        Under NIT-S bits are counted. Otherwise it is for small layers, where the noise is drawn
        once more for each few hundred inputs; None says that a matrix product is better.

        Args:
            weight: A, (N,).
            spikes: What went in, (T, N, in).
            steps: Numbers of the noise's steps, counted from the layer's first call.
            outputs: How many neurons it has.
            gain: The factor of its output in the drift.
        """
        rows, inputs = spikes.shape[1], spikes.shape[2:].numel()
        if not self.signs and outputs * inputs > _SMALL:
            return None
        what = {
            "bits": spikes.bits.view(len(spikes.bits), rows, inputs),
            "weight": weight,
            **self._whose(),
            "outputs": outputs,
            "steps": len(steps),
            "first_step": steps.start,
            "slot": spikes.slots.start,
        }
        scale = levels(self._scale(gain), torch.Size([outputs]), self.sigma.device)
        if self.signs:
            found = linear_sign_gradient(**what)
            return found * scale.unsqueeze(1) if isinstance(gain, Tensor) else found
        return linear_gradient(scale=scale, **what)

    def _scale(self, gain: float | Tensor) -> float | Tensor:
        """A direction keeps its scale."""
        if not self.signs:
            return gain / self.sigma
        return (gain != 0).float() if isinstance(gain, Tensor) else 1.0

    def _replayed(
        self, past: Past | None, chunk: range, state: Tensor | None, inner: torch.Size
    ) -> dict[str, Any]:
        if past is None:
            return {}
        current = past.current if len(past.current) == 1 else past.current[chunk.start : chunk.stop]
        names = ("decay", "gain", "threshold", "sigma")
        parameters = self._parameters(past.lif, past.threshold, inner)
        return {
            "current": current.reshape(len(current), current.shape[1], math.prod(inner)),
            "state": state,
            **dict(zip(names, parameters, strict=True)),
            **vars(past.lif.dynamics),
        }

    def _parameters(
        self, lif: Lif, threshold: Tensor | float, inner: torch.Size
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = self.sigma.device
        values = (lif.decay, lif.gain, threshold, self.sigma)
        a, b, c, d = (levels(value, inner, device) for value in values)
        return a, b, c, d

    def _whose(self) -> dict[str, Any]:
        stream = self.noise.stream(self.sigma.device, self.number, self.layers)
        return vars(stream)


def levels(value: float | Tensor, inner: torch.Size, device: torch.device) -> Tensor:
    """A parameter of the neurons as the kernels have it: 1-D, one number or one for n neighbours.

    Args:
        value: A scalar, or broadcasting to `inner`.
        inner: (*), the neurons of a row.
        device: Where they are.

    Raises:
        RecordingError: Rows have parameters of their own.
    """
    if not isinstance(value, Tensor):
        return _constant(float(value), device)
    value = value.detach().float()
    if value.numel() == 1:
        return value.reshape(1)
    if value.dim() > len(inner) and value.shape[0] == 1:
        value = value.squeeze(0)
    if value.dim() > len(inner):
        raise RecordingError(
            f"The kernels take parameters of neurons, {tuple(inner)}, not of each row, got "
            f"{tuple(value.shape)}. Set NIT_SNN_BACKEND=torch for such a network."
        )
    shape = (1,) * (len(inner) - value.dim()) + tuple(value.shape)
    last = max(i for i, n in enumerate(shape) if n > 1) + 1
    return value.expand(*inner[:last], *shape[last:]).reshape(-1)


def _runs(calls: list[int]) -> Iterator[range]:
    """Ascending numbers as ranges without gaps."""
    start = 0
    for i in range(1, len(calls) + 1):
        if i == len(calls) or calls[i] != calls[i - 1] + 1:
            yield range(calls[start], calls[i - 1] + 1)
            start = i


@lru_cache(maxsize=256)
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.full((1,), value, device=device)
