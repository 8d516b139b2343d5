"""The noise in the membrane of every snnTorch neuron, over the framework's own state functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..dynamics.lif import Current, Dynamics, Lif, MembraneRule, MembraneUpdate, number
from .base import NoisyNeuron
from .checks import check_grad_mode, rows_of
from .guard import GuardedMembrane, guarded, unguarded


class NoisySnnTorch(NoisyNeuron):
    """Noise in the membrane of any of snnTorch's neurons, over one state function.

    Args:
        *args: As in the framework's own neuron.
        sigma: Noise level, scalar or (\\*) as the current without its batch dimension. By default a
            quarter of the way from the rest to the threshold.
        **options: As in the framework's own neuron.
    """

    mem: Tensor
    reset: Tensor
    reset_mechanism: str
    beta: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    spike_grad: Callable[[Tensor], Tensor]
    state_quant: Any
    inhibition: bool
    reset_delay: bool
    _states: tuple[str, ...] = ("mem",)
    _decided: Tensor | None = None
    _factor_seen: tuple[object, bool] = None, False

    def __init__(self, *args: Any, sigma: float | Tensor | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._init_noise(sigma, like=self.beta)

    @property
    def state_function(self) -> Callable[[Tensor], Any]:
        """What snnTorch calls for the new state; it keeps its own for `restore_neurons`."""
        return self._noisy_state

    @state_function.setter
    def state_function(self, own: Callable[[Tensor], Any]) -> None:
        vars(self)["state_function"] = own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if type(self.mem) is GuardedMembrane:
            self.mem = unguarded(self.mem, self)
        # The current comes first; what follows are states.
        if GuardedMembrane in map(type, args[1:]) or kwargs:
            args = (*args[:1], *(unguarded(x, self) for x in args[1:]))
            kwargs = {k: x if k == "input_" else unguarded(x, self) for k, x in kwargs.items()}
        recorder = self._recorder
        if recorder is None or not recorder.learns:
            return super().forward(*args, **kwargs)
        check_grad_mode()
        with torch.no_grad():
            output = super().forward(*args, **kwargs)
        if not getattr(self, "reset_delay", True):
            recorder.leave(self, self.mem)
        if not recorder.guards:
            return output
        self.mem = guarded(self.mem, recorder, self)
        return (*output[:-1], self.mem) if isinstance(output, tuple) else output

    def _noisy_state(self, input_: Tensor) -> Any:
        """The framework's new state, with one sample of noise in its membrane."""
        raise NotImplementedError

    def _charged(self, drift: Callable[..., Tensor], *currents: Tensor) -> Tensor:
        """The noisy membrane whose drift before the reset is `drift(*currents, membrane)`."""
        gain = self._gain
        moved = self._step(
            MembraneUpdate(
                tuple(Current(current, gain) for current in currents),
                self.mem,
                lambda *values: self._after_reset(drift(*values)),
                self._rule_now,
            )
        )
        self._decided = moved.spikes
        assert moved.membrane is not None
        return moved.membrane

    @property
    def _rule(self) -> MembraneRule:
        """What it does at every step."""
        return MembraneRule(
            number(self.threshold),
            lif=self._lif,
            carry=number(self._carry),
            wiped=self.reset_mechanism == "zero",
            jump=self._jump,
            delayed=self.reset_mechanism != "none",
        )

    @property
    def _usual_sigma(self) -> float | Tensor:
        return self._rule.height / 4

    @cached_property
    def _grades(self) -> bool:
        """Whether spikes have a factor other than 1; the same for a whole pass."""
        factor = self.graded_spikes_factor
        if factor.requires_grad or factor.device.type == "cpu":
            return bool(factor.requires_grad or (factor != 1).any())
        key = id(factor), factor._version  # a GPU is waited for once, and after a change
        if self._factor_seen[0] != key:
            self._factor_seen = key, bool((factor != 1).any())
        return self._factor_seen[1]

    def _graded(self, spike: Tensor) -> Tensor:
        """Spikes times their factor, which belongs to the block behind the neuron if it learns."""
        if not self._grades:
            return spike
        factor = self.graded_spikes_factor
        with torch.set_grad_enabled(factor.requires_grad or spike.requires_grad):
            return spike * factor

    @property
    def _lif(self) -> Lif | None:
        """The drift in closed form, where it has one."""
        return None

    def _delayed(self, zero: str) -> Dynamics:
        """The resets, decided one step later; `zero` is what "zero" does."""
        reset = {"subtract": "soft", "zero": zero, "none": "none"}[self.reset_mechanism]
        return Dynamics(reset=reset, delayed=True)

    @property
    def _gain(self) -> float | Tensor:
        return 1.0

    @property
    def _carry(self) -> float | Tensor:
        """The derivative of the drift in the old membrane, but for what a spike wipes out."""
        return self.beta.detach().clamp(0, 1)

    def _jump(self, membrane: Tensor | float) -> float | Tensor:
        """What a spike adds to the next drift, but for a reset of the current with it.

        Args:
            membrane: What it would be without the spike.
        """
        if self.reset_mechanism == "subtract":
            return -self.threshold.detach()
        return -self._carry * membrane if self.reset_mechanism == "zero" else 0.0

    @property
    def _kept(self) -> float | Tensor:
        """What a reset of the whole drift leaves of it."""
        return 1 - self.reset if self.reset_mechanism == "zero" else 1.0

    @property
    def learned_threshold(self) -> Tensor | None:
        learned = self.threshold.requires_grad and self._why_no_threshold() is None
        return self.threshold if learned else None

    def _why_no_threshold(self) -> str | None:
        """Why the noise does not reach a learnable threshold; None if it does."""
        return self.why_no_firing_probability() or self._again()

    @cached_property
    def _taught(self) -> Tensor:
        """The threshold in a recorded pass: without a graph, if the noise does not reach it."""
        return self.threshold.detach() if self.learned_threshold is None else self.threshold

    @property
    def _taken_off(self) -> Tensor:
        """The threshold as a soft reset takes it off."""
        return self._taught if self._learning else self.threshold

    def _after_reset(self, charged: Tensor) -> Tensor:
        if self.reset_mechanism == "subtract":
            return charged - self.reset * self._taken_off
        if self.reset_mechanism == "zero":  # the whole of it: the new current, too
            return charged - self.reset * charged
        return charged

    def mem_reset(self, mem: Tensor) -> Tensor:
        fired = None if self._recorder is None else self._recorder.fired(self, mem)
        if fired is not None:
            return fired
        # Surrogates return float32 whatever the membrane is.
        return super().mem_reset(mem).to(mem.dtype)  # type: ignore[misc, no-any-return]

    def reset_state(self) -> None:
        for name in self._states:
            # Empty, as snnTorch makes them: the first current gives them their shape.
            setattr(self, name, unguarded(getattr(self, name)).detach().new_zeros(0))

    def reset_rows(self, rows: Tensor) -> None:
        for name in self._states:
            held = unguarded(getattr(self, name), self)
            if not held.numel():
                continue  # nothing has run yet
            if name != "mem":
                setattr(self, name, held.masked_fill(rows_of(rows, held), 0.0))
                continue
            recorder, found = self._recorder, self._shared_rows(held, rows, 0.0)
            shielded = recorder is not None and recorder.guards
            self.mem = guarded(found, recorder, self) if recorder and shielded else found

    def detach_state(self) -> None:
        for name in self._states:
            held = getattr(self, name)
            plain = unguarded(held)
            if plain.requires_grad or plain is not held:
                setattr(self, name, plain.detach())

    @property
    def membrane(self) -> Tensor:
        return unguarded(self.mem)

    def unreachable(self) -> dict[str, str]:
        why = self._why_no_threshold() if self.threshold.requires_grad else None
        return {} if why is None else {"threshold": why}

    def why_not_pathwise(self) -> str | None:
        return self._again() or self.why_no_firing_probability()

    def _again(self) -> str | None:
        if getattr(self, "reset_delay", True):
            return None
        return "it resets without delay, and then once more if the membrane is still high"

    def why_no_firing_probability(self) -> str | None:
        if self.inhibition:
            return "inhibition couples it to its neighbours"
        if self.state_quant:
            return "its membrane is quantised"
        if not spikes_at_threshold(self.spike_grad):
            return "its spike_grad does not fire at the threshold"
        return None

    def fire(self, mem: Tensor) -> Tensor:
        if self._recorder is None:
            # The next layer wants the membrane's dtype.
            return super().fire(mem).to(mem.dtype)  # type: ignore[misc, no-any-return]
        spike, self._decided = self._decided, None
        if spike is None:
            if self.state_quant:
                mem = self.state_quant(mem)
            spike = self._emit(self.spike_grad(mem - self.threshold).to(mem.dtype))
        return self._graded(spike)


def spikes_at_threshold(spike: Callable[[Tensor], Tensor]) -> bool:
    """Whether a surrogate's forward pass is the step function that snnTorch's equations have."""
    distances = torch.tensor([-100.0, -0.01, 0.01, 100.0])
    fired = [spike(distances) for _ in range(8)]  # a stochastic one gives itself away
    return all(torch.equal(f.float(), (distances > 0).float()) for f in fired)
