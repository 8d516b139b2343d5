"""Noisy neurons for snnTorch: subclasses of its own, with noise in the state function."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import require
from ..dynamics.lif import (
    Current,
    Lif,
    MembraneUpdate,
    alpha_charge,
    lapicque_charge,
    leaky_charge,
    number,
    synaptic_current,
)
from .guard import GuardedMembrane, guarded, unguarded
from .snntorch_base import NoisySnnTorch
from .snntorch_base import spikes_at_threshold as spikes_at_threshold

require("snntorch", extra="snntorch")

import snntorch as snn  # noqa: E402


class NoisyLeaky(NoisySnnTorch, snn.Leaky):
    """`snntorch.Leaky` with Gaussian noise in its membrane.

    `u_t = beta * u_{t-1} + I_t - reset + sigma * eps_t`; it fires when `u_t > threshold`. The same
    `u_t` decides the spike, the next reset, and is returned as the membrane. Outside of
    a learner's `record()`, autograd and the surrogate gradient work as in `snntorch.Leaky`.

    Args:
        beta: Decay of the membrane per step, as in `snntorch.Leaky`.
        sigma: Noise level, scalar or (\\*) as the current without its batch dimension. By default a
            quarter of the way from the rest to the threshold.
        **options: Every other option of `snntorch.Leaky`.

    Shape:
        Current and membrane (N, \\*), spikes (N, \\*).

    Raises:
        SwapError: sigma is negative or not finite.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        recorder = self._recorder
        learns = recorder is not None and recorder.learns and torch.is_grad_enabled()
        mem = args[1] if len(args) == 2 else kwargs.get("mem")
        known = len(args) + len(kwargs) == (1 if mem is None else 2) and len(args) > 0
        if not (learns and known and self._direct) or (self.init_hidden and mem is not None):
            return super().forward(*args, **kwargs)
        # What `snntorch.Leaky.forward` does, in one step of the recorder.
        current, state = args[0], self._buffers["mem"] if mem is None else mem
        assert recorder is not None and state is not None
        if type(state) is GuardedMembrane:
            state = unguarded(state, self)
        if state.shape != current.shape:
            state = torch.zeros_like(current, device=state.device)
        update = MembraneUpdate((Current(current),), state, self._drift_of, self._known_rule)
        moved = recorder.step(self, update)
        assert moved.spikes is not None and moved.membrane is not None
        left = guarded(moved.membrane, recorder, self) if recorder.guards else moved.membrane
        self._buffers["mem"] = left
        return moved.spikes if self.init_hidden and not self.output else (moved.spikes, left)

    @cached_property
    def _direct(self) -> bool:
        """Whether a step is its closed form, and the framework's forward adds nothing to it.

        The same for a whole recorded pass.
        """
        kind, recorder = type(self), self._recorder
        own = kind._noisy_state is NoisyLeaky._noisy_state and kind.fire is NoisySnnTorch.fire
        bound: Any = super(NoisySnnTorch, self).forward
        theirs = bound.__func__ is snn.Leaky.forward
        closed = not (self.beta.requires_grad or self.threshold.requires_grad or self._grades)
        closed = closed and self.reset_delay
        return own and theirs and closed and recorder is not None and self in recorder.binary

    def _drift_of(self, current: Tensor, mem: Tensor) -> Tensor:
        """Of a membrane that has a graph of its own, which the closed form leaves out."""
        with torch.no_grad():
            self.reset = self.mem_reset(mem)
        carried = (1 - self.reset) * mem if self.reset_mechanism == "zero" else mem
        return self._after_reset(leaky_charge(current, carried, self.beta))

    def _noisy_state(self, input_: Tensor) -> Tensor:
        zeroes = self.reset_mechanism == "zero"

        def drift(current: Tensor, mem: Tensor) -> Tensor:
            carried = (1 - self.reset) * mem if zeroes else mem
            return leaky_charge(current, carried, self.beta)

        return self._charged(drift, input_)

    @property
    def _lif(self) -> Lif:
        decay = number(self.beta.clamp(0, 1))
        learns = self.beta.requires_grad or self.threshold.requires_grad
        return Lif(self._delayed(zero="hard"), decay, learns=learns)

    def _after_reset(self, charged: Tensor) -> Tensor:
        # Unlike the other neurons, Leaky resets the old membrane alone to zero.
        return charged if self.reset_mechanism == "zero" else super()._after_reset(charged)


class NoisyLapicque(NoisySnnTorch, snn.Lapicque):
    """`snntorch.Lapicque` with Gaussian noise in its membrane.

    `u_t = (1 - dt / (R C)) u_{t-1} + dt / C * I_t - reset + sigma * eps_t`; "zero" resets all but
    the noise to zero. Arguments, shapes and errors as in `NoisyLeaky`, with the options of
    `snntorch.Lapicque`.
    """

    R: Tensor
    C: Tensor
    time_step: Tensor

    def _noisy_state(self, input_: Tensor) -> Tensor:
        return self._charged(
            lambda current, mem: lapicque_charge(current, mem, self.R, self.C, self.time_step),
            input_,
        )

    @property
    def _lif(self) -> Lif:
        decay = number(1 - self.time_step / (self.R * self.C))
        own = (self.R, self.C, self.time_step, self.threshold)
        learns = any(p.requires_grad for p in own)
        return Lif(self._delayed(zero="whole"), decay, number(self.time_step / self.C), learns)

    @property
    def _gain(self) -> float | Tensor:
        return (self.time_step / self.C).detach() * self._kept

    @property
    def _carry(self) -> float | Tensor:
        return (1 - self.time_step / (self.R * self.C)).detach()

    def unreachable(self) -> dict[str, str]:
        found = super().unreachable()
        if self.beta.requires_grad:
            found["beta"] = "snnTorch computes R and C from it once, and uses only these"
        return found


class NoisySynaptic(NoisySnnTorch, snn.Synaptic):
    """`snntorch.Synaptic` with Gaussian noise in its membrane.

    `syn_t = alpha * syn_{t-1} + I_t`, `u_t = beta * u_{t-1} + syn_t - reset + sigma * eps_t`. The
    synaptic current has no noise of its own; "zero" resets all of `u_t` but the noise to
    zero. Arguments, shapes and errors as in `NoisyLeaky`, with the options of
    `snntorch.Synaptic`.
    """

    syn: Tensor
    alpha: Tensor
    _states = ("syn", "mem")

    def _noisy_state(self, input_: Tensor) -> tuple[Tensor, Tensor]:
        with self._memory():
            syn = synaptic_current(self._hold(input_), self.syn, self.alpha)
        return syn, self._charged(lambda mem: leaky_charge(syn, mem, self.beta))

    def why_biased(self) -> str | None:
        return "its synaptic current is quantised" if self.state_quant else None


class NoisyAlpha(NoisySnnTorch, snn.Alpha):
    """`snntorch.Alpha` with Gaussian noise in its membrane.

    `exc_t = alpha * exc_{t-1} + I_t`, `inh_t = beta * inh_{t-1} - I_t`,
    `u_t = tau_alpha (exc_t + inh_t) + sigma * eps_t`, with the framework's resets of the
    two currents and the membrane. The membrane is not carried over: only the spike is.
    Arguments, shapes and errors as in `NoisyLeaky`, with the options of `snntorch.Alpha`.
    """

    syn_exc: Tensor
    syn_inh: Tensor
    alpha: Tensor
    _states = ("syn_exc", "syn_inh", "mem")

    def _noisy_state(self, input_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        old = self.syn_inh
        with self._memory():
            current = self._hold(input_)
            charged_exc = self.alpha.clamp(0, 1) * self.syn_exc + current
            charged_inh = self.beta.clamp(0, 1) * self.syn_inh - current
            exc, inh = charged_exc, charged_inh
            if self.reset_mechanism != "none":
                inh = inh - inh * self.reset
                lost = exc if self.reset_mechanism == "zero" else self._taken_off
                exc = exc - lost * self.reset

        def drift(_: Tensor) -> Tensor:
            charged = alpha_charge(charged_exc, charged_inh, self.alpha, self.beta)
            if self.reset_mechanism == "none":
                return charged
            lost = charged if self.reset_mechanism == "zero" else -old
            return charged - lost * self.reset

        return exc, inh, self._charged(drift)

    def _after_reset(self, charged: Tensor) -> Tensor:
        return charged

    @property
    def _carry(self) -> float | Tensor:
        return 0.0

    def why_biased(self) -> str | None:
        return "its synaptic currents are quantised" if self.state_quant else None


class NoisyRLeaky(NoisySnnTorch, snn.RLeaky):
    """`snntorch.RLeaky` with Gaussian noise in its membrane.

    `u_t = beta * u_{t-1} + I_t + V(s_{t-1}) - reset + sigma * eps_t`, with the layer's own last
    spikes through its recurrent weights; "zero" resets all but the noise to zero.
    Arguments, shapes and errors as in `NoisyLeaky`, with the options of `snntorch.RLeaky`.
    """

    spk: Tensor
    recurrent: nn.Module
    _states = ("spk", "mem")

    def _noisy_state(self, input_: Tensor) -> Tensor:
        with self._memory():
            feedback = self.recurrent(self.spk)
        return self._charged(
            lambda current, own, mem: leaky_charge(current, mem, self.beta) + own,
            input_,
            feedback,
        )

    @property
    def _lif(self) -> Lif:
        decay = number(self.beta.clamp(0, 1))
        learns = self.beta.requires_grad or self.threshold.requires_grad
        return Lif(self._delayed(zero="whole"), decay, learns=learns)

    @property
    def _gain(self) -> float | Tensor:
        return self._kept


class NoisyRSynaptic(NoisySnnTorch, snn.RSynaptic):
    """`snntorch.RSynaptic` with Gaussian noise in its membrane.

    `syn_t = alpha * syn_{t-1} + I_t + V(s_{t-1})`,
    `u_t = beta * u_{t-1} + syn_t - reset + sigma * eps_t`; as `NoisySynaptic`, with the layer's own
    last spikes. Arguments, shapes and errors as in `NoisyLeaky`, with the options of
    `snntorch.RSynaptic`.
    """

    spk: Tensor
    syn: Tensor
    alpha: Tensor
    recurrent: nn.Module
    _states = ("spk", "syn", "mem")

    def _noisy_state(self, input_: Tensor) -> tuple[Tensor, Tensor]:
        with self._memory():
            syn = synaptic_current(self._hold(input_), self.syn, self.alpha)
            syn = syn + self._hold(self.recurrent(self.spk))
        return syn, self._charged(lambda mem: leaky_charge(syn, mem, self.beta))

    def why_biased(self) -> str | None:
        return "its synaptic current is quantised" if self.state_quant else None


class NoisySLSTM(NoisySnnTorch, snn.SLSTM):
    """`snntorch.SLSTM` with Gaussian noise in the membrane that fires.

    `h_t, c_t = LSTMCell(x_t, (u_{t-1}, c_{t-1}))`, `u_t = h_t - reset + sigma * eps_t`; the cell
    state has no noise of its own, and is followed back through time. Not for `conditional=True`. A
    credit alone leaves out what the gates owe to the membrane before. Shapes: current (N, inputs),
    membrane (N, hidden).
    """

    syn: Tensor
    spk: Tensor
    lstm_cell: nn.LSTMCell
    _states = ("syn", "mem")

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super(NoisySnnTorch, self).__init__(*args, **options)
        self._init_noise(sigma, like=self.lstm_cell.weight_hh)

    def _noisy_state(self, input_: Tensor) -> tuple[Tensor, Tensor]:
        with self._memory():
            current = self._hold(input_)
        cells: list[Tensor] = []

        def drift(mem: Tensor) -> Tensor:
            hidden, cell = self.lstm_cell(current, (mem, self.syn))
            cells.append(cell)
            return hidden

        membrane = self._charged(drift)
        return cells[0], membrane

    @property
    def _carry(self) -> float | Tensor:
        return 0.0

    def why_not_pathwise(self) -> str | None:
        return "an LSTM reads its membrane"

    def why_biased(self) -> str | None:
        return "its cell state is quantised" if self.state_quant else None

    def detach_state(self) -> None:
        super().detach_state()
        if "spk" in vars(self):
            self.spk = self.spk.detach()


#: What `swap_neurons` puts in the place of each neuron of the framework.
NOISY = {
    snn.Leaky: NoisyLeaky,
    snn.Lapicque: NoisyLapicque,
    snn.Synaptic: NoisySynaptic,
    snn.Alpha: NoisyAlpha,
    snn.RLeaky: NoisyRLeaky,
    snn.RSynaptic: NoisyRSynaptic,
    snn.SLSTM: NoisySLSTM,
}

#: Methods of the framework's neurons that a noisy one never calls, and where it does their work.
REPLACED = ("_base_state_function", "_base_sub", "_base_zero", "_base_int"), "_noisy_state"


def is_spiking(kind: type[nn.Module]) -> bool:
    """Whether this is a class of neurons of this framework that fire, noisy or not."""
    return any(base.__module__.startswith("snntorch._neurons") for base in kind.__mro__)
