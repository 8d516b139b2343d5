"""`.grad` gets all of what an update adds to it, or stays as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def all_or_nothing(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, `.grad` is empty at first; it is added to what was there, unless anything raises."""
    before = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    except BaseException:
        for parameter, held in zip(parameters, before, strict=True):
            parameter.grad = held
        raise
    for parameter, held in zip(parameters, before, strict=True):
        if held is not None:
            parameter.grad = held if parameter.grad is None else held.add_(parameter.grad)
