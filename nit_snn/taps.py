"""How a noisy neuron finds out which registered synapse its current came from.

While a pass is recorded, a `Tap` stands in for the forward of each registered synapse and marks its
output with a `Source`; a noisy neuron that gets a marked current knows its synapse, so that
no autograd graph need be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import RecordingError
from .expansion import Expansion, repeats_over_time, reshaped_from
from .rules import presynaptic_sign
from .synapses import SynapseGradient

_MARK = "_nit_source"


@dataclass(eq=False)
class Source:
    """One call of a registered synapse.

    Attributes:
        name: Qualified name of the layer.
        module: The layer.
        gradient: Its gradient function.
        activity: What went in: one time slice of it if it is the same at all steps.
        version: autograd's version counter of `activity` then.
        output_shape: What came out for it, one time slice likewise.
        output_version: autograd's version counter of the output.
        static: Whether input and output are the same at all steps of their first dimension.
    """

    name: str
    module: nn.Module
    gradient: SynapseGradient
    activity: Tensor
    version: int
    output_shape: torch.Size
    output_version: int
    static: bool

    @staticmethod
    def of(current: Tensor) -> tuple[Source | None, bool]:
        """The call that made `current`, and whether it made one slice for all its time steps.

        `current` may be the output itself, a reshape of it, or a repetition of it over time. An
        in-place operation on any of them, which would add to the graph, disqualifies it.
        """
        source = _marked(current)
        if source is not None:
            return source, source.static
        if repeats_over_time(current):
            source = _marked(current[0])
        return source, source is not None

    def parameter_gradients(
        self, cotangent: Tensor, signed: bool = False
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Gradients of the layer's trainable parameters.

        Args:
            cotangent: That of the output; of a static one, for each step or summed over them.
            signed: Take the sign of the presynaptic activity (NIT-S).

        Raises:
            RecordingError: The input was changed in place since.
        """
        if self.activity._version != self.version:
            raise RecordingError(
                f"The input of {self.name} was changed in place after {self.name} had used it. "
                "Clone it before writing to it."
            )
        if cotangent.numel() != self.output_shape.numel():
            cotangent = cotangent.reshape(-1, *self.output_shape).sum(0)
        cotangent = cotangent.reshape(self.output_shape)
        activity, expansion = self.activity, Expansion.of(self.activity)
        if expansion is not None:
            activity, cotangent = expansion.original, expansion.fold(cotangent)
        activity = activity.detach()
        if signed:
            activity = presynaptic_sign(activity)
        for name, gradient in self.gradient(self.module, activity, cotangent).items():
            parameter = self.module._parameters[name]
            if parameter is not None and parameter.requires_grad:
                yield parameter, gradient


class Tap:
    """Stands in for the forward of a registered synapse while a pass is recorded.

    An input that comes again, as under direct encoding, gives the same output again. An input that
    repeats over time goes through the layer once, one made by `expand` once per sample.
    """

    def __init__(self, name: str, module: nn.Module, gradient: SynapseGradient) -> None:
        self.name = name
        self.module = module
        self.gradient = gradient
        self._forward: Callable[..., Tensor] = module.forward
        self._shadowed = vars(module).get("forward")
        self._last: tuple[tuple[object, ...], Tensor, Tensor] | None = None

    def install(self) -> None:
        self.module.forward = self

    def remove(self) -> None:
        self._last = None
        if vars(self.module).get("forward") is self:
            del self.module.forward
            if self._shadowed is not None:
                self.module.forward = self._shadowed

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return self._forward(*args, **kwargs)
        x = args[0]
        if x.requires_grad:  # more parameters lie before this layer: the graph must see it
            return self._forward(x)
        conditions = (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(x.device.type),
            x._version,
            *(p._version for p in self.module.parameters()),
        )
        if self._last is not None:
            seen, last, output = self._last
            if last is x and seen == conditions and _marked(output) is not None:
                return output
        output = self._compute(x)
        self._last = (conditions, x, output)
        return output

    def _compute(self, x: Tensor) -> Tensor:
        static = repeats_over_time(x)
        activity = x[0] if static else x
        expansion = Expansion.of(activity)
        inner = activity if expansion is None else expansion.original
        output = self._forward(inner.unsqueeze(0))[0] if static else self._forward(inner)
        if expansion is not None:
            output = expansion.repeat(output)
        shape = output.shape
        if static:
            output = output.unsqueeze(0).expand(x.shape[0], *shape)
        source = Source(
            self.name,
            self.module,
            self.gradient,
            activity,
            activity._version,
            shape,
            output._version,
            static,
        )
        setattr(output, _MARK, source)
        return output


def _marked(tensor: Tensor) -> Source | None:
    """The mark of `tensor`, or of what it is a mere reshape of, if neither was written to."""
    source = getattr(tensor, _MARK, None)
    if source is None:
        source = getattr(reshaped_from(tensor), _MARK, None)
    return source if source is not None and source.output_version == tensor._version else None
