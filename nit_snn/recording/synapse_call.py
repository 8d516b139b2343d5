"""What is known of one call of a registered synapse, and how a current leads to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import RecordingError
from ..gradients.synapses import SynapseGradient
from ..gradients.synapses.linear import linear_gradient
from .expansion import Expansion
from .memory_budget import MemoryBudget
from .packed_spikes import PackedSpikes, pack
from .provenance import find, repeats_over_time


@dataclass(eq=False, slots=True)
class SynapseCall:
    """One call of a registered synapse.

    Attributes:
        name: Qualified name of the layer.
        module: The layer.
        gradient: Its gradient function.
        parameters: What its parameters were in the call.
        activity: What went in: one time slice of it if it is the same at all steps; as bits if a
            noisy neuron emitted it.
        version: autograd's version counter of `activity` then.
        output_shape: What came out for it, one time slice likewise.
        budget: That of the pass.
        static: Whether input and output are the same at all steps of their first dimension.
        kept: Bytes of the input as numbers, if they were taken from the budget.
        calls: How often the layer was called with this input.
        readers: How often a neuron was given what came out, untouched.
        followed: Whether the input has a graph of its own, which leads to spikes.
        expansion: How the input repeats each sample, if it does.
        binary: Whether it is nothing but zeros and ones, once somebody has asked.
    """

    name: str
    module: nn.Module
    gradient: SynapseGradient
    parameters: Mapping[str, Tensor | None]
    activity: Tensor | PackedSpikes
    version: int
    output_shape: torch.Size
    budget: MemoryBudget
    static: bool = False
    kept: int = 0
    calls: int = 0
    readers: int = 0
    followed: bool = False
    expansion: Expansion | None = None
    binary: bool | Tensor | None = None

    @staticmethod
    def of(current: Tensor, again: bool = False) -> tuple[SynapseCall | None, bool]:
        """The call that made `current`, and whether it made one slice for all its time steps.

        `current` may be the output itself, a reshape of it, or a repetition of it over time. An
        in-place operation on any of them, or a hook on it, disqualifies it.

        Args:
            current: What a neuron was given.
            again: Whether it was asked for before, for another step of it.
        """
        call, repeated = find(current, SynapseCall), False
        if call is None:
            repeated = repeats_over_time(current)
            call = find(current[0], SynapseCall) if repeated else None
        base = current._base
        hooked = current._backward_hooks or (base is not None and base._backward_hooks)
        if call is None or hooked or not current.requires_grad:
            return None, False
        call.readers += not (again or repeated)
        if call.kept and not call.followed:
            call._keep_bits()
        return call, repeated or call.static

    def _keep_bits(self) -> None:
        """A noisy neuron reads it: the spikes that went in are kept here, as bits."""
        self.budget.give_back_spikes(self.kept)
        self.kept = 0
        assert isinstance(self.activity, Tensor)
        self.activity = pack(self.activity) or self.activity

    def parameter_gradients(
        self, cotangent: Tensor, signed: bool = False, steps: range | None = None
    ) -> dict[Tensor, Tensor]:
        """Gradients of the layer's trainable parameters.

        Args:
            cotangent: That of the output; of a static one, for each step or summed over them.
            signed: Take the sign of the presynaptic activity (NIT-S).
            steps: The cotangent is that of these slices of the output alone.

        Raises:
            RecordingError: The input was changed in place since.
        """
        shape = self.output_shape
        if steps is not None:
            shape = torch.Size([len(steps), *shape[1:]])
        elif cotangent.numel() != shape.numel():
            cotangent = cotangent.reshape(-1, *shape).sum(0)
        activity, cotangent = self.presynaptic(cotangent.reshape(shape), steps)
        spikes = self.carries_spikes if signed else False
        return self.gradients_of(activity, cotangent, signed, spikes)

    def gradients_of(
        self, activity: Tensor, cotangent: Tensor, signed: bool, spikes: bool | Tensor
    ) -> dict[Tensor, Tensor]:
        """Those for an activity and a cotangent of its output, in the call's own parameters.

        Args:
            activity: What went in.
            cotangent: That of what came out.
            signed: Take the sign of the activity (NIT-S).
            spikes: Whether it is nothing but spikes.
        """
        if signed:
            activity = 2 * activity - 1 if spikes is True else _signs(activity, spikes)
        found = self.gradient(self.module, activity, cotangent)
        pairs = ((self.parameters[name], gradient) for name, gradient in found.items())
        return {p: gradient for p, gradient in pairs if p is not None and p.requires_grad}

    @property
    def carries_spikes(self) -> bool | Tensor:
        """Whether what went in is nothing but zeros and ones: NIT-S counts these as -1 and +1.

        Real values count by their sign (section 3.3). Where it would have to be waited for, the
        answer is a tensor.
        """
        if isinstance(self.activity, PackedSpikes):
            return True
        if self.binary is None:
            values = self.activity.detach()
            answer = ((values == 0) | (values == 1)).all()
            self.binary = bool(answer) if answer.device.type == "cpu" else answer
        return self.binary

    def presynaptic(self, cotangent: Tensor, steps: range | None = None) -> tuple[Tensor, Tensor]:
        """The activity as numbers, and the cotangent for it; repeated replicas once.

        Args:
            cotangent: In the output's shape.
            steps: The cotangent is that of these slices alone.
        """
        if isinstance(self.activity, PackedSpikes):
            packed = self.activity if steps is None else self.activity.part(steps)
            return packed.unpack(cotangent.dtype), cotangent
        activity = self.activity
        if activity._version != self.version:
            raise RecordingError(
                f"The input of {self.name} was changed in place after {self.name} had used it. "
                "Clone it before writing to it."
            )
        if steps is not None:
            activity = activity[steps.start : steps.stop]
        if self.expansion is not None:
            activity, cotangent = self.expansion.once(activity), self.expansion.fold(cotangent)
        return activity.detach(), cotangent

    def from_bits(
        self, gradient: Callable[[PackedSpikes, int], Tensor | None]
    ) -> dict[Tensor, Tensor] | None:
        """Gradients of a dense layer's parameters from a function of its spikes as bits.

        Args:
            gradient: From the spikes of a sequence, (T, N, in), and the number of outputs to
                (out, in + 1), with the bias last; or None.

        Returns:
            None if the layer is another, or its input was not such spikes, or there is no gradient.
        """
        if self.gradient is not linear_gradient or not isinstance(self.activity, PackedSpikes):
            return None
        if len(self.activity.shape) != 3 or not self.activity.in_steps:
            return None
        found = gradient(self.activity, self.output_shape[-1])
        if found is None:
            return None
        pairs = {"weight": found[:, :-1], "bias": found[:, -1]}
        trained = ((self.parameters[name], g) for name, g in pairs.items())
        return {p: g for p, g in trained if p is not None and p.requires_grad}


def _signs(activity: Tensor, spikes: bool | Tensor) -> Tensor:
    """-1 and +1; zero counts as +1, and as -1 if nothing but spikes went in."""
    positive = activity >= 0 if spikes is False else (activity > 0) | ~spikes & (activity == 0)
    return positive.to(activity.dtype) * 2 - 1
