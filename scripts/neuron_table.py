"""What `swap_neurons` makes of every class of neurons of both frameworks, as a table of the docs.

    python scripts/neuron_table.py

Each class of the installed packages is made, swapped if it can be, and asked what it allows. The
table is put between the marks in `docs/neurons.md`.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import snntorch._neurons as snntorch_neurons
from spikingjelly.activation_based import neuron as nodes
from torch import nn

from nit_snn.errors import SwapError
from nit_snn.neurons.base import NoisyNeuron
from nit_snn.neurons.registry import noisy_classes
from nit_snn.swap import spiking_modules, swap_neurons
from nit_snn.swap.refusals import why_refused

PAGE = Path(__file__).resolve().parents[1] / "docs" / "neurons.md"
#: Arguments without a default, by name.
GIVEN: dict[str, Any] = {
    "beta": 0.9,
    "alpha": 0.95,
    "tau": 2.0,
    "decay_input": True,
    "linear_features": 3,
    "channels": 3,
    "input_size": 3,
    "hidden_size": 3,
    "in_channels": 3,
    "out_channels": 3,
    "kernel_size": 3,
    "T": 4,
    "num_node": 3,
    "act_dim": 3,
    "dec_pop_dim": 2,
    "k": 2,
    "in_dim": 4,
    "d_value": 2,
    "d_key": 2,
    "num_spiking_neurons": 4,
    "threshold_related": False,
}
#: Of some classes arguments that have a default, but not one that will do.
ALSO: dict[str, dict[str, Any]] = {
    "Lapicque": {"beta": 0.9},
    "RLeaky": {"linear_features": 3},
    "RSynaptic": {"linear_features": 3},
}
START, END = "<!-- neurons: begin -->", "<!-- neurons: end -->"


def classes() -> list[tuple[str, type[nn.Module]]]:
    """All classes of neurons, with their framework."""
    found: list[tuple[str, type[nn.Module]]] = []
    for framework, module in (("snnTorch", snntorch_neurons), ("SpikingJelly", nodes)):
        for _, kind in sorted(inspect.getmembers(module, inspect.isclass)):
            package = kind.__module__.startswith(("snntorch._neurons", "spikingjelly"))
            abstract = "Base" in kind.__name__ or kind.__name__ in ("SpikingNeuron", "LIF")
            if package and issubclass(kind, nn.Module) and not abstract:
                found.append((framework, kind))
    return found


def answer(kind: type[nn.Module]) -> tuple[str, str]:
    """What a swap makes of a class, and what to know."""
    parameters = inspect.signature(kind).parameters.items()
    needed = [n for n, p in parameters if p.default is p.empty and p.kind in (1, 3)]
    reason = why_refused(kind)
    if kind.__name__.startswith("_"):
        return "-", "private"
    try:
        given = {name: GIVEN[name] for name in needed}
        made = kind(**given, **ALSO.get(kind.__name__, {}))
    except (KeyError, TypeError, ValueError, AssertionError, ImportError) as error:
        if kind in noisy_classes():
            raise RuntimeError(f"{kind.__name__} could not be made: {error}") from error
        return "refused", reason
    net = nn.ModuleList([made])
    if not spiking_modules(net):
        return "left as it is", "it never fires"
    try:
        swap_neurons(net)
    except SwapError:
        return "refused", reason
    assert isinstance(made, NoisyNeuron)
    why = made.why_not_pathwise()
    return f"`{type(made).__name__}`", "" if why is None else f"not for `conditional=True`: {why}"


def table() -> str:
    """The table, as Markdown."""
    lines = ["| framework | class | swapped to | remark |", "|---|---|---|---|"]
    for framework, kind in classes():
        what, remark = answer(kind)
        lines.append(f"| {framework} | `{kind.__name__}` | {what} | {remark} |")
    return "\n".join(lines)


def replaced(page: str, rows: str) -> str:
    """The page with another table."""
    parts = re.split(f"({START}|{END})", page)
    return "".join([*parts[:2], "\n\n", rows, "\n\n", *parts[3:]])


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(), table()))
