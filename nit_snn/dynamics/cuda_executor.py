"""A layer's noisy steps by the kernels, which make its noise and weigh it without keeping it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import RecordingError
from ..noise.layer_noise import LayerNoise
from ..noise.philox_noise import PhiloxNoise
from ..recording.bits import empty
from ..recording.packed_spikes import PackedSpikes, SpikeTrain
from ..validation.capture import being_captured
from .executor import Moved, Steps
from .kernels.launch import REALS
from .kernels.linear_gradient.op import linear_gradient
from .kernels.linear_sign_gradient.op import linear_sign_gradient
from .kernels.noisy_lif.op import noisy_lif
from .kernels.sigma_gradient.op import sigma_gradient
from .kernels.weighted_score.op import weighted_score
from .lif import Dynamics, Lif
from .needs import Needs

#: A drift that is made elsewhere, and only gets its noise here.
GIVEN = Lif(Dynamics(), decay=0.0, gain=1.0)
TYPES = frozenset(REALS)
#: How many numbers are drawn again at once; 128 MiB of float32.
_AT_ONCE = 2**25
#: Weights of a dense layer up to which its gradient comes straight from bits; a guess so far.
_SMALL = 2**16


class CudaExecutor:
    """See `nit_snn.dynamics.executor.Executor`.

    Args:
        layer: The layer's noise.
        noise: That of the pass.
        sigma: Its noise level; a scalar, or broadcasting to (*).
        needs: What the pass has to keep.
        binary: Whether the layer's spikes are its membrane above the threshold, and nothing else.
    """

    def __init__(
        self, layer: LayerNoise, noise: PhiloxNoise, sigma: Tensor, needs: Needs, binary: bool
    ) -> None:
        self.layer, self.noise = layer, noise
        self.sigma = sigma.detach()
        self.signs, self.binary = needs.signs, binary
        self.train = SpikeTrain()

    def advance(
        self, steps: Steps, current: Tensor, state: Tensor | None, fired: Tensor | None
    ) -> Moved:
        rule = steps.rule
        lif = GIVEN if state is None or rule.lif is None else rule.lif
        if not steps.several:
            return self._one(steps, current, state, lif)
        planes = empty(len(steps.calls), steps.shape, current.device)
        spikes, last = self._run(steps, current, state, lif, planes, 0)
        packed = PackedSpikes(planes, range(len(steps.calls)), spikes.shape)
        return Moved(None, spikes, last, packed)

    def _one(self, steps: Steps, current: Tensor, state: Tensor | None, lif: Lif) -> Moved:
        # What a step leaves is the membrane before its reset: SpikingJelly's is made of it here.
        dynamics = lif.dynamics
        if not dynamics.delayed:
            dynamics = replace(dynamics, reset="none", or_equal=steps.rule.or_equal)
        lif = replace(lif, dynamics=dynamics)
        planes, slot, packed = None, 0, None
        if self.binary:
            planes, slot = self.train.slot(steps.shape, current.device)
            packed = PackedSpikes(planes, range(slot, slot + 1), steps.shape)
        spikes, membrane = self._run(steps, current[None], state, lif, planes, slot)
        if not self.binary:
            return Moved(membrane, None, membrane)
        leave = steps.rule.leave
        left = membrane if leave is None else leave(membrane, spikes[0])
        return Moved(membrane, spikes[0], left, packed)

    def _run(
        self,
        steps: Steps,
        current: Tensor,
        state: Tensor | None,
        lif: Lif,
        planes: Tensor | None,
        slot: int,
    ) -> tuple[Tensor, Tensor]:
        """Spikes, (T, N, *), and the membrane that is left behind, (N, *)."""
        inner = steps.shape[1:]
        flat = (steps.shape[0], math.prod(inner))
        values = (lif.decay, lif.gain, steps.rule.threshold, self.sigma)
        spikes, _, last = noisy_lif(
            current.reshape(len(current), *flat),
            None if state is None else state.reshape(flat),
            None if planes is None else planes.view(len(planes), *flat),
            *(levels(value, inner, self.sigma.device) for value in values),
            **self._stream(),
            **vars(lif.dynamics),
            steps=len(steps.calls),
            first_step=steps.calls[0],
            slot=slot,
            wants_membranes=False,
        )
        return spikes.view(len(steps.calls), *steps.shape), last.view(steps.shape)

    def absorb(self, last: Steps, steps: Steps) -> None:
        """Nothing is kept of either."""

    def samples(self, steps: Steps) -> Iterator[Tensor]:
        for call in steps.calls:
            yield self.layer.draw(steps.shape, steps.dtype, call=call)

    def weighted_scores(
        self, steps: Steps, weight: Tensor, gain: float | Tensor, total: bool
    ) -> Iterator[tuple[range, Tensor]]:
        if weight.dim() > 1:
            weight = weight[steps.calls[0] : steps.calls[-1] + 1]
        count, inner = len(steps.calls), steps.shape[1:]
        scale = levels(self._scale(gain), inner, self.sigma.device)
        dtype = steps.dtype if steps.several else torch.float32
        if total or not steps.several:
            found = [
                self._weighted(_of_run(weight, run, steps.calls[0]), scale, run, inner, dtype)
                for run in runs(steps.calls)
            ]
            whole = found[0] if len(found) == 1 else torch.stack(found).sum(0)
            yield range(count), whole.view(1, *steps.shape)
            return
        length = max(1, _AT_ONCE // max(1, steps.shape.numel()))
        for start in range(0, count, length):
            chunk = range(start, min(start + length, count))
            own = weight if weight.dim() == 1 else weight[chunk.start : chunk.stop]
            run = range(steps.calls[chunk.start], steps.calls[chunk.start] + len(chunk))
            each = self._weighted(own, scale, run, inner, dtype, summed=False)
            yield chunk, each.view(len(chunk), *steps.shape)

    def _weighted(
        self,
        weight: Tensor,
        scale: Tensor,
        run: range,
        inner: torch.Size,
        dtype: torch.dtype,
        summed: bool = True,
    ) -> Tensor:
        return weighted_score(
            weight,
            scale,
            **self._stream(),
            inner=math.prod(inner),
            steps=len(run),
            first_step=run.start,
            signs=self.signs,
            summed=summed,
            # What is divided by the number of rows may be too small for float16.
            dtype=torch.bfloat16 if dtype == torch.float16 else dtype,
        )

    def sigma_scores(self, steps: Steps, weight: Tensor) -> Tensor:
        found = [
            sigma_gradient(
                weight if weight.dim() == 1 else weight[run.start : run.stop],
                **self._stream(),
                inner=math.prod(steps.shape[1:]),
                steps=len(run),
                first_step=run.start,
            )
            for run in runs(steps.calls)
        ]
        return torch.stack(found).sum(0).view(steps.shape[1:])

    def linear_gradient(
        self, steps: Steps, weight: Tensor, spikes: PackedSpikes, outputs: int, gain: float | Tensor
    ) -> Tensor | None:
        """A dense layer's gradient straight from bits, (out, in + 1), the bias last; float32.

        Under NIT-S bits are counted. Otherwise it is for small layers, where the noise is drawn
        once more for each few hundred inputs; None says that a matrix product is better.

        Args:
            steps: The steps of the noise.
            weight: A, (N,).
            spikes: What went in, (T, N, in).
            outputs: How many neurons it has.
            gain: The factor of its output in the drift.
        """
        rows, inputs = spikes.shape[1], spikes.shape[2:].numel()
        if not self.signs and outputs * inputs > _SMALL:
            return None
        what = {
            "bits": spikes.bits.view(len(spikes.bits), rows, inputs),
            "weight": weight,
            **self._stream(),
            "outputs": outputs,
            "steps": len(steps.calls),
            "first_step": steps.calls[0],
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

    def _stream(self) -> dict[str, Any]:
        return vars(self.noise.stream(self.sigma.device, self.layer.layer))


def _of_run(weight: Tensor, run: range, first: int) -> Tensor:
    """The weights of some calls, from those of all calls since the first."""
    return weight if weight.dim() == 1 else weight[run.start - first : run.stop - first]


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
    if value.numel() == 1 and value.device.type == "cpu":
        return _constant(float(value), device)  # torch takes it beside a GPU's tensors, too
    value = value.detach().to(device, torch.float32)
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


def runs(calls: list[int]) -> Iterator[range]:
    """Ascending numbers as ranges without gaps."""
    start = 0
    for i in range(1, len(calls) + 1):
        if i == len(calls) or calls[i] != calls[i - 1] + 1:
            yield range(calls[start], calls[i - 1] + 1)
            start = i


def _constant(value: float, device: torch.device) -> Tensor:
    """A number on a device, made once on each stream: none waits for what another one does."""
    if device.type != "cuda":
        return _held(value, device, 0)
    if being_captured():
        return torch.full((1,), value, device=device)  # its memory is the graph's
    return _held(value, device, torch.cuda.current_stream(device).cuda_stream)


@lru_cache(maxsize=256)
def _held(value: float, device: torch.device, _stream: int) -> Tensor:
    return torch.full((1,), value, device=device)
