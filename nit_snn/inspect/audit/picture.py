"""The picture of an audit: the whole network on the left, layer by layer on the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...compat import require
from .statistics import WHOLE, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which most colour-blind people can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_DODGE = 0.09


class Report(Protocol):
    """What a picture is drawn of: a `nit_snn.AuditReport`."""

    @property
    def rows(self) -> tuple[Any, ...]: ...

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def shown_layers(self) -> tuple[str, ...]: ...

    @property
    def surrogates(self) -> tuple[str, ...]: ...

    def row(self, surrogate: str, layer: str = WHOLE, noise: bool = True) -> Any: ...

    def label(self, surrogate: str) -> str: ...


def draw(report: Report, target: str | Path | Axes | None) -> Figure:
    """See `AuditReport.plot`."""
    figures = require("matplotlib.figure", extra="train")
    if target is not None and not isinstance(target, str | Path):
        overview(report, target)
        return target.get_figure(root=True)  # type: ignore[return-value]
    layers = len(report.shown_layers) > 1
    height = max(1.2 + 0.5 * len(report.surrogates), 4.6 if layers else 2.6)
    figure = figures.Figure(figsize=(12.0 if layers else 6.5, height), layout="constrained")
    if layers:
        left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.25))
        overview(report, left.subplots())
        by_layer(report, right.subplots(2, 2, sharex=True, sharey="row"))
    else:
        overview(report, figure.subplots())
    if target is not None:
        figure.savefig(target, dpi=150)
    return figure


def overview(report: Report, axes: Axes) -> None:
    """The cosine of the whole network: a line per surrogate, a filled dot with noise."""
    for y, name in enumerate(report.surrogates):
        found = {noise: report.row(name, noise=noise) for noise in (True, False)}
        values = [row.cosine.value for row in found.values() if row.cosine is not None]
        axes.plot(values, [y] * len(values), color=_colour(report, name), alpha=0.35, lw=3)
        for noise, row in found.items():
            if row.cosine is not None:
                _point(axes, report, name, noise, y, row.cosine, along="x")
        missing = dict.fromkeys(row.obstacle for row in found.values() if row.obstacle)
        if missing:
            axes.text(0.01, y, ", ".join(missing), va="center", style="italic", color="0.4")
    labels = [report.label(name) for name in report.surrogates]
    axes.set_yticks(range(len(labels)), labels)
    for text, name in zip(axes.get_yticklabels(), report.surrogates, strict=True):
        text.set_color(_colour(report, name))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    low = min((row.cosine.low for row in _whole(report) if row.cosine is not None), default=0.0)
    axes.set_xlim(min(low, 0.0) - 0.04, 1.04)
    axes.axvline(1.0, color="0.3", lw=1)
    axes.axvline(0.0, color="0.7", lw=1, ls=":")
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel("cosine to the unbiased gradient")
    axes.set_title(WHOLE, fontsize="medium")
    _legend(axes)


def by_layer(report: Report, panels: Any) -> None:
    """Cosine and norm ratio of each layer in the network's order; with noise, and without.

    Args:
        report: The report.
        panels: Axes, (2, 2).
    """
    layers = report.layers[1:]
    for column, noise in enumerate((True, False)):
        for axes in panels[:, column]:
            axes.axhline(1.0, color="0.3", lw=1, zorder=0)
            axes.grid(axis="y", alpha=0.25)
        for number, name in enumerate(report.surrogates):
            shift = _DODGE * (number - (len(report.surrogates) - 1) / 2)
            rows = [report.row(name, layer, noise) for layer in layers]
            _line(panels[0, column], report, name, noise, shift, [r.cosine for r in rows])
            _line(panels[1, column], report, name, noise, shift, [r.norm_ratio for r in rows])
        panels[0, column].set_title("with noise" if noise else "without noise", fontsize="medium")
        panels[1, column].set_xticks(range(len(layers)), layers)
        panels[1, column].set_xlim(-0.5, len(layers) - 0.5)
        panels[1, column].tick_params(axis="x", rotation=90 if len(layers) > 6 else 0)
    panels[0, 0].set_ylabel("cosine")
    panels[1, 0].set_ylabel("norm ratio")
    panels[1, 0].set_yscale("log")


def _line(
    axes: Axes,
    report: Report,
    name: str,
    noise: bool,
    shift: float,
    intervals: list[Interval | None],
) -> None:
    places = [i + shift for i in range(len(intervals))]
    known = [(p, i) for p, i in zip(places, intervals, strict=True) if i is not None and i.value]
    axes.plot(
        [place for place, _ in known],
        [interval.value for _, interval in known],
        color=_colour(report, name),
        alpha=0.35,
        lw=1.5,
    )
    for place, interval in known:
        _point(axes, report, name, noise, place, interval, along="y")


def _point(
    axes: Axes,
    report: Report,
    name: str,
    noise: bool,
    place: float,
    interval: Interval,
    along: str,
) -> None:
    """A dot with its interval, filled if it is with noise."""
    error = [[interval.value - interval.low], [interval.high - interval.value]]
    colour = _colour(report, name)
    across = along == "x"
    axes.errorbar(
        interval.value if across else place,
        place if across else interval.value,
        xerr=error if across else None,
        yerr=None if across else error,
        fmt="o",
        ms=7 if across else 4.5,
        color=colour,
        mfc=colour if noise else "white",
        capsize=2.5,
        lw=1.3,
        zorder=3,
    )


def _legend(axes: Axes) -> None:
    for filled, label in ((True, "with noise"), (False, "without noise")):
        axes.plot([], [], "o", color="0.3", mfc="0.3" if filled else "white", label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def _colour(report: Report, name: str) -> str:
    """The same in every audit of the same surrogates."""
    names = list(dict.fromkeys(row.surrogate for row in report.rows))
    return _COLOURS[names.index(name) % len(_COLOURS)]


def _whole(report: Report) -> list[Any]:
    return [row for row in report.rows if row.layer == WHOLE]
