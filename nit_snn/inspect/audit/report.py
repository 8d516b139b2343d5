"""What an audit found: numbers, a table, and a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import text
from .credits import Credits
from .statistics import NOT_FINITE, UNRESOLVED, WHOLE, ZERO, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EXPLAINED = {
    UNRESOLVED: "the unbiased gradient cannot be separated from zero; take more replicas or passes",
    ZERO: "the surrogate's gradient cannot be separated from zero",
    NOT_FINITE: "the surrogate's derivative is NaN or infinite at membranes that occur here",
}


@dataclass(frozen=True)
class Row:
    """One surrogate's gradient of one layer, beside the unbiased one.

    Attributes:
        layer: The module that holds the parameters, or "whole network".
        surrogate: Its name.
        noise: Whether it is the gradient of the network with noise (averaged over draws), or of
            the network without.
        cosine: Of the two expected gradients; None if there is an obstacle.
        norm_ratio: Norm of the surrogate gradient over that of the unbiased one; None if the
            latter cannot be separated from zero, or the former is not finite.
        obstacle: Why there is no cosine: "unresolved" (the unbiased gradient cannot be separated
            from zero), "surrogate ~ 0" (the surrogate's cannot) or "not finite" (the surrogate's).
    """

    layer: str
    surrogate: str
    noise: bool
    cosine: Interval | None
    norm_ratio: Interval | None
    obstacle: str | None = None


@dataclass(frozen=True)
class Closest:
    """The surrogate whose gradient of the whole network has the highest cosine.

    Attributes:
        surrogate: Its name.
        noise: Among the gradients of the network with noise, or without.
        cosine: Its cosine.
        leads: By how much its cosine is above each other's: differences between gradients from
            the same noise, so narrower than the cosines' own intervals; all hold at once.
    """

    surrogate: str
    noise: bool
    cosine: Interval
    leads: dict[str, Interval]

    @property
    def tied(self) -> tuple[str, ...]:
        """The others that it cannot be separated from."""
        return tuple(name for name, lead in self.leads.items() if lead.low <= 0)

    def __str__(self) -> str:
        found = f"{self.surrogate}, {text.cosine(self.cosine)}"
        return f"{found}; not distinguishable from {', '.join(self.tied)}" if self.tied else found


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found. `print` it for a table; `plot` it for a picture.

    Attributes:
        rows: For each surrogate with and without noise: the whole network, then layer by layer.
        norms: Norm of the unbiased gradient of each layer; None if it cannot be separated from
            zero.
        closest_with_noise: The surrogate that comes closest in the network with noise; None if
            there is no cosine at all.
        closest_without_noise: The one that comes closest in the network without noise.
        own: Which of the surrogates is the network's own; None if its own has no derivative.
        left_out: Parameters that the noise does not reach: behind the last noisy neuron, where
            autograd is exact.
        precise: Whether `precision` was reached.
        samples: Rows of the batch.
        replicas: Noisy copies of each in one pass.
        estimates: Independent estimates.
        passes: Passes in each of them.
        credit: The credit that the yardstick could use, or "none".
        confidence: Of all intervals.
        precision: What was asked for.
        seed: Of all that was random.
        seconds: What it took.
        credits: Bias and variance of the learner's own estimates; None if they were not asked for.
    """

    rows: tuple[Row, ...]
    norms: dict[str, Interval | None]
    closest_with_noise: Closest | None
    closest_without_noise: Closest | None
    own: str | None
    left_out: tuple[str, ...]
    precise: bool
    samples: int
    replicas: int
    estimates: int
    passes: int
    credit: str
    confidence: float
    precision: float
    seed: int
    seconds: float
    credits: Credits | None = None

    @property
    def best(self) -> Closest | None:
        """The closest of all, with or without noise; None if none could be found."""
        found = [c for c in (self.closest_with_noise, self.closest_without_noise) if c]
        return max(found, key=lambda c: c.cosine.value, default=None)

    @property
    def layers(self) -> tuple[str, ...]:
        """The whole network, then the layers in the network's order."""
        return tuple(self.norms)

    @property
    def surrogates(self) -> tuple[str, ...]:
        """The names of the surrogates, the closest with noise first."""
        names = dict.fromkeys(row.surrogate for row in self.rows)
        return tuple(sorted(names, key=self._rank))

    def row(self, surrogate: str, layer: str = WHOLE, noise: bool = True) -> Row:
        """One of the rows.

        Raises:
            KeyError: There is none like it.
        """
        for row in self.rows:
            if (row.surrogate, row.layer, row.noise) == (surrogate, layer, noise):
                return row
        raise KeyError(
            f"No row {(surrogate, layer, noise)}; surrogates: {', '.join(self.surrogates)}; "
            f"layers: {', '.join(self.layers)}."
        )

    def label(self, surrogate: str) -> str:
        """The surrogate's name, marked if it is the network's own."""
        return f"{surrogate} (own)" if surrogate == self.own != "own" else surrogate

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types; an interval is `{"value": ..., "low": ..., "high": ...}`."""
        found = asdict(self)
        if self.credits is not None:
            found["credits"]["rows"] = list(found["credits"]["rows"])
        return {**found, "rows": list(found["rows"]), "left_out": list(found["left_out"])}

    def plot(self, target: str | Path | Axes | None = None) -> Figure:
        """Draws the cosine of the whole network, and cosine and norm ratio layer by layer.

        Args:
            target: A file to write; matplotlib axes, which get the panel of the whole network
                only; or None.

        Returns:
            The figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .picture import draw

        return draw(self, target)

    def __str__(self) -> str:
        credits = [] if self.credits is None else ["", str(self.credits)]
        table = text.aligned(self._cells())
        return "\n".join([*self._head(), "", *table, "", *self._foot(), *credits])

    def _rank(self, surrogate: str) -> tuple[float, float]:
        cosines = (self.row(surrogate, noise=noise).cosine for noise in (True, False))
        first, second = (2.0 if c is None else -c.value for c in cosines)
        return first, second

    @property
    def shown_layers(self) -> tuple[str, ...]:
        """Those that a table needs: a network of one layer is that layer."""
        return self.layers if len(self.layers) > 2 else self.layers[:1]

    def _head(self) -> list[str]:
        credit = "" if self.credit == "none" else f", credit: {self.credit}"
        return [
            "Surrogate gradients against the unbiased gradient of the expected loss, "
            f"{100 * self.confidence:g}% intervals",
            f"{self.samples} samples; {self.estimates} estimates of {self.passes} x "
            f"{self.replicas} replicas{credit}; seed {self.seed}; {self.seconds:.1f} s",
        ]

    def _cells(self) -> list[list[str]]:
        cells = [
            ["", "", "with noise", "", "without noise", ""],
            ["surrogate", "layer", "cosine", "norm ratio", "cosine", "norm ratio"],
        ]
        for name in self.surrogates:
            for i, layer in enumerate(self.shown_layers):
                line = [self.label(name) if i == 0 else "", layer]
                for noise in (True, False):
                    row = self.row(name, layer, noise)
                    line += [row.obstacle or text.cosine(row.cosine), text.ratio(row.norm_ratio)]
                cells.append(line)
        return cells

    def _foot(self) -> list[str]:
        closest = {
            "with noise": self.closest_with_noise,
            "without noise": self.closest_without_noise,
        }
        lines = [f"closest {name}: {c}" for name, c in closest.items() if c is not None]
        obstacles = {row.obstacle for row in self.rows}
        lines += [f"{name}: {why}" for name, why in _EXPLAINED.items() if name in obstacles]
        if not self.precise:
            lines.append(
                f"stopped before all cosines of the {WHOLE} were known to +-{self.precision:g}; "
                "a larger max_passes goes on"
            )
        if self.left_out:
            lines.append(f"left out, for the noise does not reach it: {', '.join(self.left_out)}")
        return lines
