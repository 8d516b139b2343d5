"""Intervals and tables in words."""

from __future__ import annotations

import math

from .statistics import Interval


def cosine(interval: Interval | None) -> str:
    """`0.912 [0.893, 0.931]`"""
    return "" if interval is None else _with_digits(interval, 3)


def ratio(interval: Interval | None) -> str:
    """As `cosine`, with three significant digits of what is small."""
    if interval is None:
        return ""
    if not interval.high:
        return "0"
    exponent = math.floor(math.log10(interval.high))
    scientific = exponent < -2
    return _with_digits(interval, 2 if scientific else max(2 - exponent, 0), scientific)


def aligned(cells: list[list[str]]) -> list[str]:
    """Lines of a table, from its cells."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return ["   ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def _with_digits(interval: Interval, digits: int, scientific: bool = False) -> str:
    form = f".{digits}{'e' if scientific else 'f'}"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
