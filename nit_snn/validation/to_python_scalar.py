"""Numbers of any library, NumPy's among them, and what Python and JSON have in their place."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether it is an integer, whoever made it; truth values are none.

    Example:
        >>> import numpy
        >>> is_whole(numpy.int64(3)), is_whole(True), is_whole(3.0)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number, whoever made it; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def to_python_scalar(value: Any) -> Any:
    """The same with Python's own numbers in it, also within tuples, lists and dicts.

    A saved state and a JSON file hold these; and NumPy's, on the left of a tensor, would take over
    what is computed.

    Example:
        >>> import numpy
        >>> to_python_scalar({"eps": numpy.float64(0.5), "radii": (numpy.int32(1), "auto", True)})
        {'eps': 0.5, 'radii': (1, 'auto', True)}
    """
    if is_whole(value):
        return int(value)
    if is_number(value):
        return float(value)
    if type(value) in (tuple, list):
        return type(value)(to_python_scalar(each) for each in value)
    if type(value) is dict:
        return {name: to_python_scalar(each) for name, each in value.items()}
    return value
