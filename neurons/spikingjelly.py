"""Noisy neurons for SpikingJelly: subclasses of its own nodes, in both step modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import give_functional_states, require
from ..dynamics.executor import Moved
from ..dynamics.lif import (
    Current,
    Dynamics,
    Lif,
    MembraneRule,
    MembraneUpdate,
    hard_reset,
    if_charge,
    lif_charge,
    number,
    plif_charge,
    soft_reset,
)
from ..gradients.synapses import register_synapse
from ..gradients.synapses.conv import conv_gradient
from ..gradients.synapses.linear import linear_gradient
from .base import NoisyNeuron
from .checks import rows_of
from .guard import guarded, unguarded

require("spikingjelly", extra="spikingjelly")

from spikingjelly.activation_based import layer  # noqa: E402
from spikingjelly.activation_based import neuron as sj  # noqa: E402

for _layer in (layer.Conv1d, layer.Conv2d, layer.Conv3d):
    register_synapse(_layer)(conv_gradient)
register_synapse(layer.Linear)(linear_gradient)


class _NoisyNode(NoisyNeuron):
    """Both step modes of a node, over one noisy step.

    The multi-step path is replaced as well: the framework's own runs a fused operator in which
    there is no place for noise.
    """

    v: Any
    v_threshold: float | Tensor
    v_reset: float | None
    store_v_seq: bool
    surrogate_function: Callable[[Tensor], Tensor]
    materialize_states: Callable[..., tuple[Any, ...]]
    _memories: dict[str, Any]
    _memories_rv: dict[str, Any]
    reset: Callable[[], None]

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def _gain(self) -> float | Tensor:
        return 1.0

    @property
    def _carry(self) -> float | Tensor:
        """The derivative of the drift in the old membrane."""
        return 1.0

    @property
    def _lif(self) -> Lif | None:
        """The drift in closed form, where it has one."""
        level = self.v_reset or 0.0
        reset = "soft" if self.v_reset is None else "hard"
        dynamics = Dynamics(rest=level, v_reset=level, reset=reset, or_equal=True)
        learns = self.learned_threshold is not None
        return Lif(dynamics, number(self._carry), number(self._gain), learns)

    @property
    def learned_threshold(self) -> Tensor | None:
        level = self.v_threshold
        if not (isinstance(level, Tensor) and level.requires_grad):
            return None
        return level if self.why_no_firing_probability() is None else None

    def unreachable(self) -> dict[str, str]:
        level, why = self.v_threshold, self.why_no_firing_probability()
        learned = isinstance(level, Tensor) and level.requires_grad
        return {"v_threshold": why} if learned and why else {}

    def _jump(self, membrane: Tensor | float) -> float | Tensor:
        """What a spike adds to the next drift, from the membrane without it."""
        if self.v_reset is None:
            return -self._carry * number(self.v_threshold)
        return self._carry * (self.v_reset - membrane)

    @property
    def _rule(self) -> MembraneRule:
        """What it does at every step."""
        return MembraneRule(
            number(self.v_threshold),
            or_equal=True,
            rest=self.v_reset or 0.0,
            lif=self._lif,
            carry=number(self._carry),
            wiped=self.v_reset is not None,
            jump=self._jump,
            leave=self._after_reset,
        )

    @property
    def _usual_sigma(self) -> float | Tensor:
        return self._rule.height / 4

    def _after_reset(self, membrane: Tensor, spike: Tensor) -> Tensor:
        if self.v_reset is None:
            return soft_reset(membrane, spike, self.v_threshold)
        return hard_reset(membrane, spike, self.v_reset)

    def _taken(self, current: Current, v: Tensor, several: bool) -> Moved:
        """One step from `v`, or several: what is left behind has been reset."""
        x = current.value
        update = MembraneUpdate((current,), v, self._charge, self._rule_now, several)
        moved = self._step(update)
        if moved.spikes is not None:
            return moved
        h = moved.membrane
        assert h is not None
        spike = self.surrogate_function(h - self.v_threshold).to(x.dtype)
        left = self._after_reset(h, spike.detach() if self.detach_reset else spike)
        if self._recorder is not None:
            spike = self._emit(spike)
            self._recorder.leave(self, left)
        return Moved(h, spike, left)

    def _shielded(self, v: Tensor) -> Tensor:
        """The state after a call, which nothing else may read while its past is conditioned on."""
        if self._recorder is None or not self._recorder.guards:
            return v
        return guarded(v, self._recorder, self)

    def reset_state(self) -> None:
        self.reset()

    def reset_rows(self, rows: Tensor) -> None:
        for name, value in list(self._memories.items()):
            if isinstance(value, Tensor):
                held = unguarded(value, self)
                rest = float(self._memories_rv[name] or 0.0)
                if name == "v":
                    setattr(self, name, self._shielded(self._shared_rows(held, rows, rest)))
                else:
                    setattr(self, name, held.masked_fill(rows_of(rows, held), rest))

    def detach_state(self) -> None:
        for name, value in list(self._memories.items()):
            if isinstance(value, Tensor):
                plain = unguarded(value)
                if plain.requires_grad or plain is not value:
                    setattr(self, name, plain.detach())

    @property
    def membrane(self) -> Tensor | None:
        return unguarded(self.v) if isinstance(self.v, Tensor) else None

    def why_no_firing_probability(self) -> str | None:
        if not getattr(self.surrogate_function, "spiking", True):
            return "its surrogate function is not in spiking mode"
        return None

    def _sequence(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Spikes, (T, N, *), and the membranes that are left behind, or the last of them alone."""
        recorder = self._recorder
        known = recorder is not None and recorder.learns and self in recorder.binary
        currents = () if known and not self.store_v_seq else x_seq.unbind(0)
        with self._cut():
            if known and not self.store_v_seq:
                moved = self._taken(Current(x_seq, self._gain), v, several=True)
                assert moved.spikes is not None
                return moved.spikes, [moved.state]
            spikes, membranes = [], []
            for t, x in enumerate(currents):
                moved = self._taken(Current(x, self._gain, x_seq, t), v, several=False)
                v = moved.state
                spikes.append(moved.spikes)
                membranes.append(v)
        return torch.stack([s for s in spikes if s is not None]), membranes

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        with self._cut():
            current = Current(inputs[0], self._gain)
            moved = self._taken(current, unguarded(states[0], self), several=False)
        assert moved.spikes is not None
        return (moved.spikes,), (self._shielded(moved.state), *states[1:])

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        spikes, membranes = self._sequence(inputs[0], unguarded(states[0], self))
        return (spikes,), (self._shielded(membranes[-1]), *states[1:])

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        states = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
        spikes, membranes = self._sequence(x_seq, unguarded(states[0], self))
        self.v = self._shielded(membranes[-1])
        self.v_seq = self._shielded(torch.stack(membranes)) if self.store_v_seq else None
        return spikes


class NoisyIFNode(_NoisyNode, sj.IFNode):
    """SpikingJelly's `IFNode` with Gaussian noise in its membrane.

    `h_t = v_{t-1} + x_t + sigma * eps_t`; it fires when `h_t >= v_threshold`, and that same `h_t`
    is reset and carried over. Outside of a learner's `record()` the surrogate gradient works as
    usual.

    Args:
        sigma: Noise level, scalar or (\\*) as the current without its batch dimension. By default a
            quarter of the way from the rest to the threshold.
        **options: Every option of `spikingjelly.activation_based.neuron.IFNode`.

    Shape:
        (N, \\*) in step mode "s", (T, N, \\*) in step mode "m".

    Raises:
        SwapError: sigma is negative or not finite.
    """

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma)

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        return if_charge(current, membrane)


class _LifEquation(_NoisyNode):
    """The charge of a LIF node, see `nit_snn.dynamics.lif.lif_charge`."""

    tau: float
    decay_input: bool

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        return lif_charge(current, membrane, self.tau, self.decay_input, self.v_reset)

    @property
    def _gain(self) -> float | Tensor:
        return 1.0 / self.tau if self.decay_input else 1.0

    @property
    def _carry(self) -> float | Tensor:
        return 1.0 - 1.0 / self.tau


class NoisyLIFNode(_LifEquation, sj.LIFNode):
    """SpikingJelly's `LIFNode` with Gaussian noise in its membrane.

    `h_t = m_t + sigma * eps_t`, where `m_t` is SpikingJelly's charge with or without `decay_input`
    (see `nit_snn.dynamics.lif.lif_charge`); it fires when `h_t >= v_threshold`, and that
    same `h_t` is reset and carried over. Outside of a learner's `record()` the surrogate gradient
    works as usual.

    Args:
        sigma: Noise level, scalar or (\\*) as the current without its batch dimension. By default a
            quarter of the way from the rest to the threshold.
        **options: Every option of `spikingjelly.activation_based.neuron.LIFNode`.

    Shape:
        (N, \\*) in step mode "s", (T, N, \\*) in step mode "m".

    Raises:
        SwapError: sigma is negative or not finite.
    """

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma)


class NoisyParametricLIFNode(_NoisyNode, sj.ParametricLIFNode):
    """SpikingJelly's `ParametricLIFNode` with Gaussian noise in its membrane.

    As `NoisyLIFNode`, with `1 / tau = sigmoid(w)` and a learnable `w`, which gets its gradient
    through the local graph of each step.

    Args:
        sigma: Noise level, scalar or (\\*) as the current without its batch dimension. By default a
            quarter of the way from the rest to the threshold.
        **options: Every option of `spikingjelly.activation_based.neuron.ParametricLIFNode`.

    Shape:
        (N, \\*) in step mode "s", (T, N, \\*) in step mode "m".

    Raises:
        SwapError: sigma is negative or not finite.
    """

    w: Tensor
    decay_input: bool

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma)

    def _charge(self, current: Tensor, membrane: Tensor) -> Tensor:
        rate = self.w.sigmoid()
        return plif_charge(current, membrane, rate, self.decay_input, self.v_reset)

    @property
    def _gain(self) -> float | Tensor:
        return self.w.detach().sigmoid() if self.decay_input else 1.0

    @property
    def _carry(self) -> float | Tensor:
        return 1.0 - self.w.detach().sigmoid()

    @property
    def _lif(self) -> Lif | None:
        lif = super()._lif
        return lif and replace(lif, learns=lif.learns or self.w.requires_grad)


#: What `swap_neurons` puts in the place of each node of the framework.
NOISY = {
    sj.IFNode: NoisyIFNode,
    sj.LIFNode: NoisyLIFNode,
    sj.ParametricLIFNode: NoisyParametricLIFNode,
}
for _node in NOISY.values():
    give_functional_states(_node)

#: Methods of the framework's nodes that a noisy one never calls, and where it does their work.
REPLACED = ("single_step_functional_forward", "multi_step_functional_forward"), "_charge"


def is_spiking(kind: type[nn.Module]) -> bool:
    """Whether this is a class of neurons of this framework that fire, noisy or not.

    Recurrent cells and surrogate functions used as layers fire too.
    """
    packages = tuple(f"spikingjelly.activation_based.{n}" for n in ("neuron", "rnn", "surrogate"))
    return any(
        base.__module__.startswith(packages) and "NonSpiking" not in base.__name__
        for base in kind.__mro__
    )
