"""More noisy nodes for SpikingJelly: simple ones, and those whose drift has no closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..compat import has_more_nodes
from ..dynamics.lif import MembraneUpdate, if_charge
from .guard import unguarded
from .spikingjelly import REPLACED as REPLACED
from .spikingjelly import _LifEquation, _NoisyNode, sj
from .spikingjelly import is_spiking as is_spiking

if not has_more_nodes():
    raise ImportError("These nodes need SpikingJelly 2.0 or newer: pip install -U spikingjelly.")

_CURVED = "its drift is not linear in the membrane"


class _SimpleNode(_NoisyNode):
    """A node that has no functional form: its one memory is the membrane."""

    store_v_seq = False

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma)

    def materialize_states(  # type: ignore[override]
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        x, v = inputs[0][0] if step_mode == "m" else inputs[0], states[0]
        if not isinstance(v, Tensor):
            v = torch.full_like(x, float(v), requires_grad=False)
        return (v,)

    def single_step_forward(self, x: Tensor) -> Tensor:
        states = self.materialize_states((x,), (self.v,), "s")
        (spike,), (self.v,) = self.single_step_functional_forward((x,), states)
        return spike


class NoisyHalfThresholdIFNode(_NoisyNode, sj.HalfThresholdIFNode):
    """SpikingJelly's `HalfThresholdIFNode` with noise: a `NoisyIFNode` that starts half way up."""

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma)

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        return if_charge(current, membrane)


class NoisySimpleIFNode(_SimpleNode, sj.SimpleIFNode):
    """SpikingJelly's `SimpleIFNode` with Gaussian noise in its membrane, as `NoisyIFNode`."""

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        return if_charge(current, membrane)


class NoisySimpleLIFNode(_SimpleNode, _LifEquation, sj.SimpleLIFNode):
    """SpikingJelly's `SimpleLIFNode` with Gaussian noise in its membrane, as `NoisyLIFNode`."""


class _CurvedNode(_NoisyNode):
    """A node whose drift is no linear function of its membrane.

    `_carry` is the derivative at rest. It shapes the credit alone: with a residual of 1 the
    estimate is unbiased all the same.
    """

    tau: float
    v_rest: float

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma)

    @property
    def _lif(self) -> None:
        return None

    @property
    def _gain(self) -> float | Tensor:
        return 1.0 / self.tau

    def why_not_pathwise(self) -> str | None:
        return _CURVED


class NoisyQIFNode(_CurvedNode, sj.QIFNode):
    """SpikingJelly's `QIFNode` with Gaussian noise in its membrane.

    `h_t = v_{t-1} + (x_t + a0 (v_{t-1} - v_rest) (v_{t-1} - v_c)) / tau + sigma * eps_t`.
    Not for `conditional=True`.
    """

    a0: float
    v_c: float

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        bent = self.a0 * (membrane - self.v_rest) * (membrane - self.v_c)
        return membrane + (current + bent) / self.tau

    @property
    def _carry(self) -> float | Tensor:
        return 1.0 + self.a0 * (self.v_rest - self.v_c) / self.tau


class NoisyEIFNode(_CurvedNode, sj.EIFNode):
    """SpikingJelly's `EIFNode` with Gaussian noise in its membrane.

    `h_t = v_{t-1} + (x_t + v_rest - v_{t-1} + delta_T exp((v_{t-1} - theta_rh) / delta_T)) / tau
    + sigma * eps_t`. Not for `conditional=True`.
    """

    delta_T: float
    theta_rh: float

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        bent = self.delta_T * torch.exp((membrane - self.theta_rh) / self.delta_T)
        return membrane + (current + self.v_rest - membrane + bent) / self.tau

    @property
    def _carry(self) -> float | Tensor:
        slope = math.exp((self.v_rest - self.theta_rh) / self.delta_T)
        return 1.0 + (slope - 1.0) / self.tau


class NoisyCUBALIFNode(_NoisyNode, sj.CUBALIFNode):
    """SpikingJelly's `CUBALIFNode` with Gaussian noise in its membrane.

    `c_t = c_decay c_{t-1} + x_t`, `h_t = v_decay v_{t-1} + c_t + sigma * eps_t`. The current has no
    noise of its own.
    """

    c_decay: float
    v_decay: float

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma)

    @property
    def _lif(self) -> None:
        return None

    @property
    def _carry(self) -> float | Tensor:
        return self.v_decay

    def _stepped(self, x: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes, membrane and current after one step, (N, *)."""
        with self._memory():
            current = c * self.c_decay + self._hold(x)
        with self._cut():
            drift = MembraneUpdate((), v, lambda mem: mem * self.v_decay + current, self._rule)
            moved = self._step(drift)
            spike, left = moved.spikes, moved.state
            if spike is None:
                h = moved.membrane
                assert h is not None
                spike = self.surrogate_function(h - self.v_threshold).to(x.dtype)
                left = self._after_reset(h, spike.detach() if self.detach_reset else spike)
                if self._recorder is not None:
                    spike = self._emit(spike)
                    self._recorder.leave(self, left)
        return spike, left, current

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        v, c = unguarded(states[0], self), states[1]
        spike, v, c = self._stepped(inputs[0], v, c)
        return (spike,), (self._shielded(v), c)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        spikes, (v, c) = [], states
        for x in inputs[0]:
            (spike,), (v, c) = self.single_step_functional_forward((x,), (v, c))
            spikes.append(spike)
        return (torch.stack(spikes),), (v, c)

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        states = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
        (spikes,), (self.v, self.c) = self.multi_step_functional_forward((x_seq,), states)
        return spikes


#: What `swap_neurons` puts in the place of each of these nodes.
NOISY = {
    sj.HalfThresholdIFNode: NoisyHalfThresholdIFNode,
    sj.SimpleIFNode: NoisySimpleIFNode,
    sj.SimpleLIFNode: NoisySimpleLIFNode,
    sj.QIFNode: NoisyQIFNode,
    sj.EIFNode: NoisyEIFNode,
    sj.CUBALIFNode: NoisyCUBALIFNode,
}
