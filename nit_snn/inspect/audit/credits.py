"""Bias, variance and mean squared error of every credit and residual: what was found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .statistics import WHOLE, Interval
from .text import aligned, ratio


@dataclass(frozen=True)
class CreditRow:
    """The error of one estimate of one layer's gradient.

    With g the unbiased gradient and d an estimate, all are relative to `|g|^2`. They are unbiased,
    so one that is zero, or next to it, may come out negative; tables show that as 0.

    Attributes:
        layer: The module that holds the parameters, or "whole network".
        credit: As the learner's option has it.
        residual: 0, 1 or "auto".
        squared_bias: `|E d - g|^2`; None if g cannot be separated from zero.
        variance: `E |d - E d|^2`, summed over parameters; None as above.
        mean_squared_error: `E |d - g|^2`, their sum; None as above.
    """

    layer: str
    credit: str
    residual: float | str
    squared_bias: Interval | None
    variance: Interval | None
    mean_squared_error: Interval | None

    @property
    def name(self) -> str:
        """`layers, residual 0`"""
        return name_of(self.credit, self.residual)


@dataclass(frozen=True)
class Least:
    """The estimate with the least mean squared error over the whole network.

    Attributes:
        credit: As the learner's option has it.
        residual: Likewise.
        mean_squared_error: Relative to `|g|^2`.
        leads: By how much that of each other is larger, by name; all intervals hold at once.
    """

    credit: str
    residual: float | str
    mean_squared_error: Interval
    leads: dict[str, Interval]

    @property
    def tied(self) -> tuple[str, ...]:
        """The others that it cannot be separated from."""
        return tuple(name for name, lead in self.leads.items() if lead.low <= 0)

    def __str__(self) -> str:
        found = f"{name_of(self.credit, self.residual)}, {ratio(shown(self.mean_squared_error))}"
        return f"{found}; not distinguishable from {'; '.join(self.tied)}" if self.tied else found


@dataclass(frozen=True)
class Credits:
    """What one pass of a learner is worth, by its credit and its residual. `print` it for a table.

    An estimate is what one pass of `replicas` noisy copies of the batch writes. All have the same
    number of forward rows. What a backward pass costs is not counted, nor are passes of warm-up.
    The batch is given: only the noise is random.

    Attributes:
        rows: For each credit and residual, the least error first: the whole network, then layer
            by layer.
        best: The one with the least mean squared error; None if the unbiased gradient cannot be
            separated from zero.
        left_out: Why there is no such estimate here, by name.
        replicas: Noisy copies of the batch in one pass.
        estimates: Independent estimates of each.
        warm_up: Passes before, for those that learn from pass to pass: a credit "feedback", which
            knows nothing at first, and a residual "auto". What they have learned is then held.
    """

    rows: tuple[CreditRow, ...]
    best: Least | None
    left_out: dict[str, str]
    replicas: int
    estimates: int
    warm_up: int

    def row(self, credit: str, residual: float | str, layer: str = WHOLE) -> CreditRow:
        """One of the rows.

        Raises:
            KeyError: There is none like it.
        """
        for row in self.rows:
            if (row.credit, row.residual, row.layer) == (credit, residual, layer):
                return row
        names = dict.fromkeys(row.name for row in self.rows)
        layers = dict.fromkeys(row.layer for row in self.rows)
        raise KeyError(
            f"No row {(credit, residual, layer)}; there are: {'; '.join(names)}; "
            f"layers: {', '.join(layers)}."
        )

    def table(self, layer: str = WHOLE) -> str:
        """The rows of one layer."""
        cells = [["credit", "residual", "squared bias", "variance", "mean squared error"]]
        for row in self.rows:
            if row.layer != layer:
                continue
            parts = (row.squared_bias, row.variance, row.mean_squared_error)
            known = [ratio(shown(part)) if part else "unresolved" for part in parts]
            cells.append([row.credit, _number(row.residual), *known])
        return "\n".join(aligned(cells))

    def __str__(self) -> str:
        lines = [
            "Error of one estimate by the learner, relative to the squared norm of the unbiased "
            "gradient",
            f"{self.estimates} estimates of {self.replicas} replicas each; {self.warm_up} passes "
            'of warm-up for credit "feedback" and residual "auto"',
            "",
            self.table(),
            "",
        ]
        if self.best is not None:
            lines.append(f"least mean squared error: {self.best}")
        elif self.rows:
            lines.append("unresolved: the unbiased gradient cannot be separated from zero")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"left out: {'; '.join(names)}. {why}" for why, names in reasons.items()]
        return "\n".join(lines).rstrip()


def name_of(credit: str, residual: float | str) -> str:
    """`layers, residual 0`"""
    return f"{credit}, residual {_number(residual)}"


def shown(interval: Interval) -> Interval:
    """What is negative is shown as zero."""
    return interval.clipped(0.0, math.inf)


def _number(residual: float | str) -> str:
    return residual if isinstance(residual, str) else f"{residual:g}"
