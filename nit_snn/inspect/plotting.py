"""Pictures of noisy networks: one layer from inside, and what is measured over many runs.

Every function draws on the axes that it is given, or on new ones, and returns them. Membranes are
in units of the threshold, time is in steps. matplotlib is imported when something is first drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..compat import require
from .probe import Activity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Iterable[Mapping[str, Any]]


def activity(
    layer: Activity,
    *,
    sample: int = 0,
    neuron: int | None = None,
    threshold: float = 1.0,
    axes: Sequence[Axes] | None = None,
) -> Any:
    """A layer from inside: its raster, and under it the membrane and the noise of one neuron.

    Args:
        layer: What `nit_snn.inspect.probe.probe` saw of it.
        sample: Which row of the batch.
        neuron: Which neuron, counted over the flattened layer; None takes the one that fires
            nearest to half of the time, of which there is most to see.
        threshold: Where the layer fires, in the units of its membrane.
        axes: Three axes to draw on, from top to bottom.

    Returns:
        The three axes.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
        ValueError: The layer saw no step, or has no such sample or neuron, there are not three
            axes, or the threshold is not positive.

    Example:
        >>> import torch, snntorch
        >>> from nit_snn import swap_neurons
        >>> from nit_snn.inspect import plotting
        >>> from nit_snn.inspect.probe import probe
        >>> lif = swap_neurons(snntorch.Leaky(beta=0.5, init_hidden=True))
        >>> with probe(lif) as layers:
        ...     for _ in range(20):
        ...         spikes = lif(torch.ones(1, 5))
        >>> top, middle, bottom = plotting.activity(layers[""])
        >>> bottom.get_xlabel()
        'time (steps)'
    """
    if axes is None:
        pyplot = require("matplotlib.pyplot", extra="train")
        _, axes = pyplot.subplots(
            3, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 2, 1), layout="constrained"
        )
    if len(axes) != 3:  # type: ignore[arg-type]
        raise ValueError(f"A layer's activity needs three axes, got {len(axes)}.")  # type: ignore[arg-type]
    top, middle, bottom = axes  # type: ignore[misc]
    raster(layer, sample=sample, ax=top)
    membrane(layer, sample=sample, neuron=neuron, threshold=threshold, ax=middle)
    noise(layer, sample=sample, neuron=neuron, threshold=threshold, ax=bottom)
    for ax in (top, middle):
        ax.set_xlabel("")
    return axes


def raster(layer: Activity, *, sample: int = 0, ax: Axes | None = None) -> Axes:
    """A dot for every spike of a layer: time from left to right, neurons from bottom to top.

    Arguments, returns and errors as in `activity`.
    """
    spikes = _of(layer.spikes, sample)
    ax = _axes(ax)
    times, neurons = spikes.nonzero(as_tuple=True)
    ax.scatter(times.numpy(), neurons.numpy(), marker=".", s=14, color="k", lw=0)
    steps, count = spikes.shape
    ax.set(
        xlabel="time (steps)", ylabel="neuron", xlim=(-0.5, steps - 0.5), ylim=(-0.5, count - 0.5)
    )
    return ax


def membrane(
    layer: Activity,
    *,
    sample: int = 0,
    neuron: int | None = None,
    threshold: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """The membrane of one neuron before it fires, its drift, the threshold and the spikes.

    Arguments, returns and errors as in `activity`.
    """
    _check_threshold(threshold)
    spikes, neuron = _one(layer, layer.spikes, sample, neuron)
    drifts, _ = _one(layer, layer.drifts, sample, neuron)
    membranes, _ = _one(layer, layer.membranes, sample, neuron)
    ax = _axes(ax)
    times = torch.arange(len(spikes)).numpy()
    ax.plot(times, drifts.numpy() / threshold, ".--", color="C0", alpha=0.6, label="drift $m_t$")
    ax.plot(
        times, membranes.numpy() / threshold, ".-", color="C0", label=r"$u_t=m_t+\sigma\epsilon_t$"
    )
    ax.axhline(1.0, color="C3", lw=1, label="threshold")
    fired = (spikes != 0).numpy()
    ax.plot(times[fired], membranes.numpy()[fired] / threshold, "*", color="C3", label="spike")
    ax.set(xlabel="time (steps)", ylabel=f"membrane of neuron {neuron}\n(thresholds)")
    ax.legend(ncols=4, fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


def noise(
    layer: Activity,
    *,
    sample: int = 0,
    neuron: int | None = None,
    threshold: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """The noise that was added to the membrane of one neuron, step by step.

    Arguments, returns and errors as in `activity`.
    """
    _check_threshold(threshold)
    added, neuron = _one(layer, layer.noises, sample, neuron)
    ax = _axes(ax)
    ax.bar(torch.arange(len(added)).numpy(), added.numpy() / threshold, color="C2", width=0.5)
    ax.axhline(0.0, color="0.5", lw=0.6)
    ax.set(xlabel="time (steps)", ylabel="noise\n(thresholds)")
    return ax


def gradient_variance(curves: Mapping[str, Rows], *, ax: Axes | None = None) -> Axes:
    """The variance of a gradient against the number of replicas, on logarithmic axes.

    What independent replicas would make of the first point is drawn for comparison: 1 / C.

    Args:
        curves: For each estimator rows with "replicas" and "variance".
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
        ValueError: There is no row.

    Example:
        >>> from nit_snn.inspect import plotting
        >>> rows = [{"replicas": c, "variance": 3 / c} for c in (2, 4, 8)]
        >>> plotting.gradient_variance({"leave-one-out": rows}).get_xlabel()
        'replicas per sample'
    """
    points = _points(curves, "replicas", "variance")
    ax = _axes(ax)
    for name, (replicas, variances) in points.items():
        ax.plot(replicas, variances, "o-", ms=4, label=name)
    counts = sorted({count for replicas, _ in points.values() for count in replicas})
    replicas, variances = next(iter(points.values()))
    ideal = [variances[0] * replicas[0] / count for count in counts]
    ax.plot(counts, ideal, ":", color="0.5", label="as 1 / replicas")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(counts, [f"{count:g}" for count in counts])
    ax.set(xlabel="replicas per sample", ylabel="variance of the gradient")
    return _finished(ax)


def accuracy_against_eps(
    curves: Mapping[str, Rows], *, unit: str = "pixels from 0 to 1", ax: Axes | None = None
) -> Axes:
    """Accuracy under attack against the size of the perturbation.

    Args:
        curves: For each network or attack rows with "eps" and "accuracy", in percent.
        unit: What `eps` is measured in.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
        ValueError: There is no row.

    Example:
        >>> from nit_snn.inspect import plotting
        >>> rows = [{"eps": 0.0, "accuracy": 97.5}, {"eps": 0.1, "accuracy": 60.0}]
        >>> plotting.accuracy_against_eps({"NIT": rows}).get_ylabel()
        'accuracy (%)'
    """
    points = _points(curves, "eps", "accuracy")
    ax = _axes(ax)
    for name, (sizes, accuracies) in points.items():
        ax.plot(sizes, accuracies, "o-", ms=4, label=name, clip_on=False)
    ax.set(xlabel=f"perturbation, eps ({unit})", ylabel="accuracy (%)", ylim=(0, 100))
    return _finished(ax)


def sigma_over_training(
    history: Sequence[Mapping[str, Tensor]],
    *,
    times: Sequence[float] | None = None,
    unit: str = "epoch",
    ax: Axes | None = None,
) -> Axes:
    """Noise levels over training: the mean of each layer, and the range of its neurons.

    Args:
        history: One entry for each time, as `nit_snn.inspect.monitoring.noise_levels` gives it:
            sigma of each layer by name, in units of its membrane.
        times: When each entry was made; None counts from 0.
        unit: What the times are counted in.
        ax: Axes to draw on.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
        ValueError: The history is empty, or its length is not that of the times.

    Example:
        >>> import torch
        >>> from nit_snn.inspect import plotting
        >>> history = [{"lif": torch.tensor([1.0, 1.0])}, {"lif": torch.tensor([0.7, 0.9])}]
        >>> ax = plotting.sigma_over_training(history)
        >>> [float(round(y, 2)) for y in ax.lines[0].get_ydata()]
        [1.0, 0.8]
    """
    if not history:
        raise ValueError("There is nothing to draw: the history is empty.")
    times = range(len(history)) if times is None else times
    if len(times) != len(history):
        raise ValueError(f"{len(history)} entries, but {len(times)} times.")
    ax = _axes(ax)
    for name in dict.fromkeys(name for entry in history for name in entry):
        seen = [
            (t, entry[name].detach().float().cpu())
            for t, entry in zip(times, history, strict=True)
            if name in entry
        ]
        when = [t for t, _ in seen]
        (line,) = ax.plot(when, [float(level.mean()) for _, level in seen], label=name or "(root)")
        low, high = ([float(m(level)) for _, level in seen] for m in (torch.min, torch.max))
        ax.fill_between(when, low, high, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(xlabel=unit, ylabel="noise level sigma (membrane units)")
    return _finished(ax)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    pyplot = require("matplotlib.pyplot", extra="train")
    new: Axes = pyplot.subplots(figsize=(6, 3.8), layout="constrained")[1]
    return new


def _finished(ax: Axes) -> Axes:
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def _of(steps: Sequence[Tensor], sample: int) -> Tensor:
    """What one row of the batch did, (T, neurons)."""
    if not steps:
        raise ValueError("The layer saw no step: run the network inside the probe.")
    rows = steps[0].shape[0]
    if not 0 <= sample < rows:
        raise ValueError(f"There is no sample {sample}; the batch has {rows}.")
    return torch.stack([step[sample].flatten() for step in steps]).detach().float().cpu()


def _one(
    layer: Activity, steps: Sequence[Tensor], sample: int, neuron: int | None
) -> tuple[Tensor, int]:
    """What one neuron did, (T,), and which one it is."""
    values = _of(steps, sample)
    if neuron is None:
        neuron = int((_of(layer.spikes, sample).mean(0) - 0.5).abs().argmin())
    if not 0 <= neuron < values.shape[1]:
        raise ValueError(f"There is no neuron {neuron}; the layer has {values.shape[1]}.")
    return values[:, neuron], neuron


def _check_threshold(threshold: float) -> None:
    if not threshold > 0:
        raise ValueError(f"The threshold is the unit, so it must be positive, got {threshold}.")


def _points(
    curves: Mapping[str, Rows], across: str, up: str
) -> dict[str, tuple[list[float], list[float]]]:
    """The two columns of each curve, in order of the first."""
    found = {}
    for name, rows in curves.items():
        pairs = sorted((float(row[across]), float(row[up])) for row in rows)
        if pairs:
            found[name] = ([x for x, _ in pairs], [y for _, y in pairs])
    if not found:
        raise ValueError(f"There is nothing to draw: no row has {across!r} and {up!r}.")
    return found
