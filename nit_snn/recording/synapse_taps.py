"""How a noisy neuron finds out which registered synapse its current came from.

While a pass is recorded, a `Tap` stands in for the forward of each registered synapse and marks its
output with a `Source`; a noisy neuron that gets a marked current knows its synapse, so that
no autograd graph need be kept. Whatever could make the graph say something else than the
synapse's own gradient function (hooks, patches, in-place writes, parameters that are not the
layer's own) leaves the output unmarked, and the general route does its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from ..errors import RecordingError
from ..estimators.control import leads_to_spikes_alone
from ..estimators.scores import presynaptic_sign
from ..gradients.synapses import SynapseGradient, gradient_function
from ..gradients.synapses.few_outputs import few_outputs, suits
from ..gradients.synapses.linear import linear_gradient
from .expansion import Expansion, Mark, repeats_over_time, reshaped_from
from .memory import Room
from .packed_spikes import Emitted, Packed, SpikeTrain, saved_as_bits

_MARK = "_nit_source"
_SAMPLE = 4096


@dataclass(eq=False, slots=True)
class Source:
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
        static: Whether input and output are the same at all steps of their first dimension.
        room: That of the pass.
        emitted: Bytes of the input as numbers, if a noisy neuron emitted it.
        calls: How often the layer was called with this input.
        readers: How often a neuron was given what came out, untouched.
        used: Whether a neuron was given it at all.
    """

    name: str
    module: nn.Module
    gradient: SynapseGradient
    parameters: Mapping[str, Tensor | None]
    activity: Tensor | Packed
    version: int
    output_shape: torch.Size
    static: bool
    room: Room
    emitted: int = 0
    calls: int = 0
    readers: int = 0
    used: bool = False

    @property
    def followed(self) -> bool:
        """Whether the activity has a graph of its own: a control variate's."""
        return isinstance(self.activity, Tensor) and self.activity.requires_grad

    @staticmethod
    def of(current: Tensor) -> tuple[Source | None, bool]:
        """The call that made `current`, and whether it made one slice for all its time steps.

        `current` may be the output itself, a reshape of it, or a repetition of it over time. An
        in-place operation on any of them, or a hook on it, disqualifies it.
        """
        source = _marked(current)
        if source is not None:
            source.readers += 1
            source._use()
            return source, source.static
        if repeats_over_time(current):
            source = _marked(current[0])
        if source is not None:
            source._use()
        return source, source is not None

    def _use(self) -> None:
        """A noisy neuron reads it: its spikes are in no graph, and are kept here, as bits."""
        if self.used:
            return
        self.used = True
        self.room.unread -= self.emitted
        if self.emitted and isinstance(self.activity, Tensor):
            self.room.left += self.emitted
            self.activity = Emitted.pack(self.activity) or self.activity

    def parameter_gradients(
        self, cotangent: Tensor, signed: bool = False, steps: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
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
        cotangent = cotangent.reshape(shape)
        if isinstance(self.activity, Packed):
            packed = self.activity if steps is None else self.activity.part(steps)
            activity = packed.unpack(cotangent.dtype)
            if signed:
                activity = activity.mul_(2).sub_(1)
        else:
            activity, cotangent = self._kept(self.activity, cotangent, steps)
            if signed:
                activity = presynaptic_sign(activity)
        for name, gradient in self.gradient(self.module, activity, cotangent).items():
            parameter = self.parameters[name]
            if parameter is not None and parameter.requires_grad:
                yield parameter, gradient

    def from_bits(
        self, gradient: Callable[[Packed, int], Tensor | None]
    ) -> list[tuple[Tensor, Tensor]] | None:
        """Gradients of a dense layer's parameters from a function of its spikes as bits.

        Args:
            gradient: From the spikes of a sequence, (T, N, in), and the number of outputs to
                (out, in + 1), with the bias last; or None.

        Returns:
            None if the layer is another, or its input was not such spikes, or there is no gradient.
        """
        if self.gradient is not linear_gradient or not isinstance(self.activity, Packed):
            return None
        if len(self.activity.shape) != 3:
            return None
        found = gradient(self.activity, self.output_shape[-1])
        if found is None:
            return None
        pairs = {"weight": found[:, :-1], "bias": found[:, -1]}
        trained = ((self.parameters[name], g) for name, g in pairs.items())
        return [(p, g) for p, g in trained if p is not None and p.requires_grad]

    def _kept(
        self, activity: Tensor, cotangent: Tensor, steps: range | None
    ) -> tuple[Tensor, Tensor]:
        """An activity that was kept as it was, and the cotangent for it; replicas once."""
        if activity._version != self.version:
            raise RecordingError(
                f"The input of {self.name} was changed in place after {self.name} had used it. "
                "Clone it before writing to it."
            )
        expansion = Expansion.of(activity)
        if steps is not None:
            activity = activity[steps.start : steps.stop]
        if expansion is not None:
            activity, cotangent = expansion.once(activity), expansion.fold(cotangent)
        return activity.detach(), cotangent


@dataclass(eq=False)
class _Output(Mark):
    """The mark on an output: where it came from, and its version counter when it did."""

    source: Source
    version: int


@dataclass(eq=False)
class _Last:
    """The last call of a tap, in case the same one comes again."""

    conditions: tuple[object, ...]
    samples: list[Tensor]
    x: Tensor
    output: Tensor
    source: Source


class Tap:
    """Stands in for the forward of a registered synapse while a pass is recorded.

    An input that comes again, as under direct encoding, is not computed again. An input that
    repeats over time goes through the layer once, one made by `expand` once per sample. Each
    call returns a tensor of its own, which the caller may write to.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self._gradient: SynapseGradient | None = None
        self._last: _Last | None = None
        self._made: list[Source] = []
        self._direct = False
        self._rehearsal = False
        self._room = Room()
        self._train: SpikeTrain | None = None
        self._parameters: dict[str, Tensor | None] = {}

    def install(self, room: Room, rehearsal: bool = False) -> None:
        """Stands in, unless the layer was patched, pruned or reparametrised since.

        Args:
            room: What the pass may keep. If nothing, inputs that no neuron emitted are looked at,
                whether they are spikes, too.
            rehearsal: Whether nothing that is made can be differentiated.
        """
        self._room, self._rehearsal = room, rehearsal
        self._train = SpikeTrain() if room.left == 0 else None
        self._gradient = gradient_function(self.module)
        if self._gradient is not None and "forward" not in vars(self.module):
            self.module.forward = self

    def remove(self) -> None:
        self._last = None
        self._direct = bool(self._made) and all(s.readers >= s.calls for s in self._made)
        self._made = []
        if vars(self.module).get("forward") is self:
            del self.module.forward

    def __reduce__(self) -> NoReturn:
        refuse_copy()

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not self._fast(args[0]):
            return self._forward(*args, **kwargs)
        x, held = args[0], self.module._parameters
        tensors = [x, *(p for p in held.values() if p is not None)]
        conditions = (
            torch.is_autocast_enabled(x.device.type),
            *((id(t), t.data_ptr(), t._version) for t in tensors),
        )
        last = self._last
        if last is None or last.conditions != conditions or not _same(last.samples, tensors):
            self._last = last = self._compute(x, conditions, tensors)
            if last.source.static:
                self._made.append(last.source)
        last.source.calls += 1
        if last.source.static and self._direct:
            # Nothing but a neuron has read it so far: one slice of memory will do.
            output = last.output[:1].clone().expand_as(last.output)
        else:
            output = last.output.clone()
        setattr(output, _MARK, _Output(last.source, output._version))
        return output

    def _forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return type(self.module).forward(self.module, *args, **kwargs)  # type: ignore[no-any-return]

    def _of(self, x: Tensor) -> Tensor:
        """The layer's output, in the fastest way that there is."""
        if self._gradient is linear_gradient and suits(self.module, x):
            return few_outputs(x, self.module.weight, self.module.bias)  # type: ignore[arg-type]
        return self._forward(x)

    def _fast(self, x: Tensor) -> bool:
        """Whether the layer's own gradient function says all that the graph would."""
        return (
            torch.is_grad_enabled()
            # Else more parameters lie before this layer.
            and (not x.requires_grad or leads_to_spikes_alone(x))
            and not self.module._backward_hooks
            and not self.module._backward_pre_hooks
            and all(p is None or p.is_leaf for p in self.module._parameters.values())
        )

    def _compute(self, x: Tensor, conditions: tuple[object, ...], tensors: list[Tensor]) -> _Last:
        static = repeats_over_time(x)
        activity = x[0] if static else x
        expansion = Expansion.of(activity)
        inner = activity if expansion is None else expansion.once(activity)
        emitted = activity.nbytes if Emitted.marks(activity) else 0
        packed = None
        if emitted and (self._room.frugal or self._rehearsal or not self._room.take(emitted)):
            packed = Emitted.pack(activity)
        self._room.unread += emitted
        if not emitted and self._train is not None and expansion is None and not static:
            packed = self._train.add(activity)
        # Behind the last noisy neuron the graph stays, and with it what it saves.
        with nullcontext() if packed is None or self._rehearsal else saved_as_bits(inner, packed):
            output = self._of(inner.unsqueeze(0))[0] if static else self._of(inner)
        if expansion is not None:
            output = expansion.repeat(output)
        assert self._gradient is not None
        source = Source(
            self.name,
            self.module,
            self._gradient,
            self._current_parameters(),
            packed or activity,
            activity._version,
            output.shape,
            static,
            self._room,
            emitted,
        )
        if static:
            output = output.unsqueeze(0).expand(x.shape[0], *output.shape)
        return _Last(conditions, [_sample(t) for t in tensors], x, output, source)

    def _current_parameters(self) -> dict[str, Tensor | None]:
        """The layer's parameters as they are now; one and the same mapping while they stay."""
        now = self.module._parameters
        held = self._parameters
        if held.keys() != now.keys() or any(held[name] is not now[name] for name in now):
            self._parameters = dict(now)
        return self._parameters


def refuse_copy() -> NoReturn:
    """What stands in a network while it is recorded is no part of it."""
    raise RecordingError(
        "The network was copied or saved while a NITLearner records it. Do so before or after "
        "the record() block."
    )


def _marked(tensor: Tensor) -> Source | None:
    """The source of `tensor`, or of what it is a mere reshape of, if nothing has changed it."""
    mark = getattr(tensor, _MARK, None)
    base: Tensor | None = tensor
    if not isinstance(mark, _Output):
        base = reshaped_from(tensor)
        mark = getattr(base, _MARK, None)
    if base is None or not isinstance(mark, _Output) or mark.version != tensor._version:
        return None
    hooked = bool(tensor._backward_hooks or base._backward_hooks)
    return mark.source if tensor.requires_grad and not hooked else None


def _sample(tensor: Tensor) -> Tensor:
    """Some values, to notice writes that autograd does not: through `.data` or NumPy.

    On a GPU it would have to be waited for, so none.
    """
    if tensor.device.type != "cpu":
        return torch.empty(0)
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()[:1].flatten()
    return flat[:: max(1, flat.numel() // _SAMPLE)].clone()


def _same(samples: list[Tensor], tensors: list[Tensor]) -> bool:
    return all(torch.equal(s, _sample(t)) for s, t in zip(samples, tensors, strict=True))
