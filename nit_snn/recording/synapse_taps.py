"""How a noisy neuron finds out which registered synapse its current came from.

While a pass is recorded, a `SynapseTap` stands in for the forward of each registered synapse and
marks its output with a `SynapseCall`; a noisy neuron that gets a marked current knows its synapse,
so that no autograd graph need be kept. Whatever could make the graph say something else than the
synapse's own gradient function (hooks, patches, in-place writes, parameters that are not the
layer's own) leaves the output unmarked, and the general route does its work.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import RecordingError
from ..gradients.synapses import SynapseGradient, gradient_function
from ..gradients.synapses.few_outputs import few, few_outputs, suits
from ..gradients.synapses.linear import linear_gradient
from ..gradients.synapses.registry import batch_rank
from ..validation.capture import being_captured
from .bits import pack as pack_steps
from .expansion import Expansion
from .memory_budget import MemoryBudget
from .packed_spikes import BinarySpikes, PackedSpikes, SpikeTrain, pack, saved_as_bits
from .provenance import find, mark, repeats_over_time
from .spike_node import leads_to_spikes_alone
from .synapse_call import SynapseCall

#: How many values of an input, and of a parameter, are looked at for writes behind autograd's back.
_OF_INPUT, _OF_PARAMETER = 4096, 256
_LEAF, _VERSION = operator.attrgetter("is_leaf"), operator.attrgetter("_version")
_SHAPE = operator.attrgetter("shape")


@dataclass(eq=False)
class _LastCall:
    """The last call of a tap with an input from outside, in case the same one comes again.

    Attributes:
        key: Which tensors the layer had, in which versions.
        held: These tensors: while they are held, no others have their numbers.
        views: Some values of each, as they are now.
        samples: As they were.
        output: What came out.
        call: What is known of it.
    """

    key: tuple[Any, ...]
    held: list[Tensor]
    views: list[Tensor]
    samples: list[Tensor]
    output: Tensor
    call: SynapseCall


@dataclass(eq=False)
class SynapseTap:
    """Stands in for the forward of a registered synapse while a pass is recorded.

    An input that comes again, as under direct encoding, is not computed again. An input that
    repeats over time goes through the layer once, one made by `expand` once per sample. Each
    call returns a tensor of its own, which the caller may write to.
    """

    name: str
    module: nn.Module
    _gradient: SynapseGradient | None = None
    _last: _LastCall | None = None
    _made: list[SynapseCall] = field(default_factory=list)
    _direct: bool = False
    _few: bool = False
    _budget: MemoryBudget = field(default_factory=MemoryBudget)
    _train: SpikeTrain | None = None
    _parameters: dict[str, Tensor | None] = field(default_factory=dict)
    _tensors: list[Tensor] = field(default_factory=list)
    _followed: bool = True

    def install(self, budget: MemoryBudget, followed: bool = True) -> None:
        """Stands in, unless the layer was patched, pruned or reparametrised since.

        Args:
            budget: What the pass may keep. If nothing, inputs that no neuron emitted are looked
                at, whether they are spikes, too.
            followed: Whether a graph that leads to spikes is of use after the pass.
        """
        self._budget, self._followed = budget, followed
        self._train = SpikeTrain() if budget.frugal else None
        self._gradient = gradient_function(self.module)
        self._few = self._gradient is linear_gradient and few(self.module)
        if self._gradient is not None and "forward" not in vars(self.module):
            self.module.forward = self  # type: ignore[assignment]

    def remove(self) -> None:
        """Puts the layer's own forward back."""
        self._last = None
        self._direct = bool(self._made) and all(s.readers >= s.calls for s in self._made)
        self._made = []
        if vars(self.module).get("forward") is self:
            del self.module.forward

    def __reduce__(self) -> NoReturn:
        refuse_copy()

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not self._fast(args[0]):
            return type(self.module).forward(self.module, *args, **kwargs)  # type: ignore[no-any-return]
        x = args[0]
        output, call = self._of_input(x) if find(x, BinarySpikes) is None else self._of_spikes(x)
        call.calls += 1
        mark(output, call)
        return output

    def _fast(self, x: Tensor) -> bool:
        """Whether the layer's own gradient function says all that the graph would."""
        module = self.module
        now, held = module._parameters, self._parameters
        if held.keys() != now.keys() or not all(map(operator.is_, held.values(), now.values())):
            self._parameters = dict(now)
            self._tensors = [p for p in now.values() if p is not None]
        return (
            torch.is_grad_enabled()
            # Else more parameters lie before this layer.
            and (not x.requires_grad or leads_to_spikes_alone(x))
            and not module._backward_hooks
            and not module._backward_pre_hooks
            and all(map(_LEAF, self._tensors))
        )

    def _of_spikes(self, x: Tensor) -> tuple[Tensor, SynapseCall]:
        """What a noisy neuron emitted goes in: at each step another, that does not come again."""
        size, packed = x.nbytes, None
        if not self._budget.take_spikes(size):
            size, packed = 0, pack(x)
        output = self._output(x, packed)
        assert self._gradient is not None
        return output, SynapseCall(
            self.name,
            self.module,
            self._gradient,
            self._parameters,
            packed or x,
            x._version,
            output.shape,
            self._budget,
            kept=size,
            followed=x.requires_grad and self._followed,
        )

    def _of_input(self, x: Tensor) -> tuple[Tensor, SynapseCall]:
        """An input from outside goes in, which may come again."""
        held = [x, *self._tensors]
        # Built-in functions alone: this is asked at every step.
        key = (
            torch.is_autocast_enabled(x.device.type),
            *map(id, held),
            *map(_VERSION, held),
            *map(_SHAPE, held),
            *map(Tensor.stride, held),
            *map(Tensor.data_ptr, held),
        )
        last = self._last
        if last is None or last.key != key or not all(map(torch.equal, last.views, last.samples)):
            output, call = self._compute(x)
            views = [_sample(x, _OF_INPUT), *(_sample(p, _OF_PARAMETER) for p in self._tensors)]
            samples = [view.clone() for view in views]
            self._last = last = _LastCall(key, held, views, samples, output, call)
            if call.static:
                self._made.append(call)
        if last.call.static and self._direct:
            # Nothing but a neuron has read it so far: one slice of memory will do.
            return last.output[:1].clone().expand_as(last.output), last.call
        return last.output.clone(), last.call

    def _compute(self, x: Tensor) -> tuple[Tensor, SynapseCall]:
        """The same slice at all time steps once, and the same row in all replicas once."""
        static = repeats_over_time(x)
        activity = x[0] if static else x
        expansion, packed = Expansion.of(activity), None
        inner = activity if expansion is None else expansion.once(activity)
        if self._train is not None and expansion is None and not static:
            packed = self._as_bits(activity, self._train)
        output = self._output(inner.unsqueeze(0))[0] if static else self._output(inner, packed)
        if expansion is not None:
            output = expansion.repeat(output)
        assert self._gradient is not None
        call = SynapseCall(
            self.name,
            self.module,
            self._gradient,
            self._parameters,
            packed or activity,
            activity._version,
            output.shape,
            self._budget,
            static=static,
            followed=activity.requires_grad and self._followed,
            expansion=expansion,
        )
        return output.unsqueeze(0).expand(len(x), *output.shape) if static else output, call

    def _as_bits(self, activity: Tensor, train: SpikeTrain) -> PackedSpikes | None:
        """An input from outside, as bits, if it is nothing but zeros and ones.

        A GPU is waited for at each until one is something else, and none is packed in a graph.
        """
        if activity.requires_grad or being_captured():
            return None
        spikes = activity.detach() == 1
        if not torch.equal(activity, spikes.to(activity.dtype)):
            self._train = None if activity.device.type != "cpu" else train
            return None
        rank = batch_rank(self.module)
        if rank is None or activity.dim() <= rank:
            return train.add(spikes)
        return PackedSpikes(pack_steps(spikes), range(len(spikes)), spikes.shape)

    def _output(self, x: Tensor, packed: PackedSpikes | None = None) -> Tensor:
        """The layer's output, in the fastest way that there is.

        Behind the last noisy neuron the graph stays, and with it what it saves: bits, if there are.
        """
        if packed is not None:
            with saved_as_bits(x, packed):
                return self._output(x)
        if self._few and suits(self.module, x):
            return few_outputs(x, self.module.weight, self.module.bias)  # type: ignore[arg-type]
        return type(self.module).forward(self.module, x)  # type: ignore[no-any-return]


def make_taps(net: nn.Module) -> list[SynapseTap]:
    """A tap for each registered synapse of a network."""
    return [
        SynapseTap(name, module)
        for name, module in net.named_modules()
        if gradient_function(module) is not None
    ]


def refuse_copy() -> NoReturn:
    """What stands in a network while it is recorded is no part of it."""
    raise RecordingError(
        "The network was copied or saved while a NITLearner records it. Do so before or after "
        "the record() block."
    )


def _sample(tensor: Tensor, count: int) -> Tensor:
    """Some values, `count` at least, to notice writes that autograd does not: `.data`, NumPy.

    On a GPU it would have to be waited for, so none.
    """
    if tensor.device.type != "cpu":
        return torch.empty(0)
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()[:1].flatten()
    return flat[:: max(1, flat.numel() // count)]
