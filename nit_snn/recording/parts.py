"""Losses of two parts, one of which has no derivative: `wrong + price`.

A derivative of such a sum is that of the price alone, and nothing in the graph says so. So in the
passes that are probed, what is computed from the network's outputs is followed, function by
function. A *step* is what a comparison, an argmax or a rounding makes of something that has a
derivative. Where a step is added to such a thing, the sum is *mixed*, and so is all that is made of
it. A step that multiplies or chooses is none of these: `(margin > 0) * margin` has the derivative
that autograd says. Nor is what was detached, or computed under `torch.no_grad()`, a sampled action
for instance: that is meant to be without a derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .provenance import find, mark

_STEP, _MIXED = 1, 2
#: Functions with a derivative of zero.
_ROUNDING = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside"}
_SUMS = {"add", "sub", "rsub", "radd", "iadd", "isub", "stack", "cat", "concat", "vstack", "hstack"}
#: Of the methods of these names nothing is followed; "get" is that of a property.
_CUT = {"detach", "get"}


@dataclass(frozen=True)
class _Part:
    """What is left on a tensor that was computed from the network's outputs.

    Attributes:
        kind: Whether it is a step, or the sum of one and of something with a derivative; else 0.
        step: The name of the function that made the step.
    """

    kind: int = 0
    step: str = ""


def step_in(losses: Any) -> str | None:
    """The function without a derivative that has made a part of some losses; None if none has."""
    part = find(losses, _Part) if isinstance(losses, Tensor) else None
    return part.step if part is not None and part.kind == _MIXED else None


class Parts(TorchFunctionMode):
    """Inside, what is computed from a network's outputs is marked.

    Args:
        net: The network. What happens inside of it is its own affair.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._net, self._behind = net, False

    def __enter__(self) -> Parts:
        self._handles = [
            self._net.register_forward_pre_hook(self._begin),
            self._net.register_forward_hook(self._end),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._behind = False

    def _end(self, _net: nn.Module, _inputs: Any, outputs: Any) -> None:
        self._behind = True
        for output in _tensors(outputs):
            mark(output, _Part())

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "").strip("_")
        held: list[tuple[bool, _Part]] = []
        if self._behind and name not in _CUT and torch.is_grad_enabled():
            for x in _tensors([args, kwargs or {}]):
                part = find(x, _Part)
                if part is not None:
                    held.append((x.requires_grad, part))
        found = function(*args, **(kwargs or {}))
        for x in _tensors(found) if held else ():
            mark(x, _made(name, held, x))
        return found


def _made(name: str, held: Sequence[tuple[bool, _Part]], found: Tensor) -> _Part:
    """What comes of a function of some marked tensors, of which some have a graph."""
    smooth = any(graph for graph, part in held if not part.kind)
    known = max((part for _, part in held), key=lambda part: part.kind)
    if not found.is_floating_point() or name in _ROUNDING:
        return known if known.kind else _Part(_STEP, name) if smooth else known
    if known.kind != _STEP or not smooth:
        return known
    return _Part(_MIXED, known.step) if name in _SUMS else _Part()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
