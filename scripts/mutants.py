"""Breaks the estimators one operator at a time, and asks whether a test notices.

    python scripts/mutants.py

A mutant is one module with one change: + for -, * for /, a comparison turned round, a number off
by one, a `not` left out, min for max. Each is tried in a process of its own, which imports the
changed module in place of the true one and runs the tests that are named for it until the first
that fails. After each module, its row in --output is written: how many were killed, which were
not, and why that is no gap in the tests (`equivalent_mutants.py`; looked at one by one). With
--again, those that a test was added for are tried once more, by the tests that -k picks. Needs a
system that can fork; frameworks are imported once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import json
import os
import platform
import random
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from equivalent_mutants import EQUIVALENT
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
_CREDIT = "golden settling control_sequence control"
#: Each module, and the tests that are run for its mutants, the fastest first.
TESTS = {
    "nit_snn.training.projection": "projection",
    "nit_snn.gradients.synapses.linear": "synapses",
    "nit_snn.gradients.synapses.conv": "synapses",
    "nit_snn.gradients.synapses.few_outputs": "synapses taps",
    "nit_snn.gradients.accumulate": "golden time_in_pieces branches rules learner memory "
    "per_step_losses",
    "nit_snn.dynamics.lif": "closed_form membranes",
    "nit_snn.dynamics.firing": "firing",
    "nit_snn.dynamics.torch_executor": "golden memory rules per_step_losses",
    "nit_snn.estimators.baselines": "baselines credit",
    "nit_snn.estimators.scores": "golden firing schedule rules conditioned",
    "nit_snn.estimators.surrogate": "cheap_estimate golden",
    "nit_snn.estimators.residual": "residual defaults",
    "nit_snn.estimators.choose": "defaults residual",
    "nit_snn.estimators.estimator": _CREDIT + " residual cheap_estimate",
    "nit_snn.estimators.control_coefficients": _CREDIT,
    "nit_snn.estimators.credit.derivatives": _CREDIT + " cheap_estimate",
    "nit_snn.estimators.credit.feedback": "feedback defaults",
    "nit_snn.estimators.credit.time": _CREDIT,
    "nit_snn.recording.timeline": "cheap_estimate golden",
    "nit_snn.recording.spike_node": _CREDIT + " cheap_estimate",
}
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "max": "min", "add": "sub", "sub": "add", "mul": "div", "div": "mul"}
NAMES |= {f"{a}_": f"{b}_" for a, b in NAMES.items()}


def sites(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that can be changed."""
    for node in ast.walk(tree):
        if any(
            (
                isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS,
                isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS,
                isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub),
                isinstance(node, ast.Constant) and type(node.value) in (int, float),
                isinstance(node, ast.Attribute) and node.attr in NAMES,
            )
        ):
            yield node


def mutated(source: str, number: int) -> tuple[str, tuple[int, str]]:
    """The source with its change of that number; the line, and what is changed to what in it."""
    tree = ast.parse(source)
    node: Any = list(sites(tree))[number]
    before = ast.unparse(node)
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        else:
            node.op = ast.UAdd()
    elif isinstance(node, ast.Constant):
        node.value += 1
    elif isinstance(node, ast.Attribute):
        node.attr = NAMES[node.attr]
    after = ast.unparse(node)
    place = source.splitlines()[node.lineno - 1].strip()
    return ast.unparse(tree), (node.lineno, f"{before} -> {after} in {place}")


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed module to whoever imports it."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        package = path_of(name).name == "__init__.py"
        spec = importlib.util.spec_from_loader(name, self, is_package=package)
        if spec is not None:
            spec.origin, spec.has_location = str(path_of(name)), True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(path_of(self.name)), "exec"), vars(module))


def path_of(name: str) -> Path:
    parts = name.split(".")
    if parts[1] == "neurons":
        parts = parts[1:]
    return ROOT.joinpath(*parts).with_suffix(".py")


def tests_of(name: str) -> list[str]:
    found = [next((ROOT / "tests").rglob(f"test_{test}.py")) for test in TESTS[name].split()]
    return [str(path) for path in found]


class Unshrunk:
    """Has hypothesis draw the same examples for all mutants, and not look for smaller ones."""

    def pytest_collection(self) -> None:
        phases = (Phase.explicit, Phase.generate)
        draws = settings(settings.get_profile("no deadline"), derandomize=True, database=None)
        settings.register_profile("mutants", draws, phases=phases)
        settings.load_profile("mutants")


def survives(name: str, source: str, limit: int, only: str | None = None) -> bool:
    """Whether all tests pass with the changed module, within `limit` seconds of a CPU.

    Args:
        name: The module.
        source: What is imported in its place.
        limit: How long.
        only: See pytest's `-k`.
    """
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        sys.meta_path.insert(0, Changed(name, source))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests_of(name)]
        options += [] if only is None else ["-k", only]
        with contextlib.suppress(BaseException):
            os._exit(int(pytest.main(options, plugins=[Unshrunk()])))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return status == 0


def tried(
    name: str, numbers: Sequence[int], until: float, only: str | None = None
) -> dict[str, Any]:
    """Tries the changes of a module with these numbers, one by one, as long as there is time."""
    source, before = path_of(name).read_text(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if not survives(name, source, 900, only):
        sys.exit(f"The tests of {name} fail without any change.")
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
    killed, survivors = 0, []
    for number in numbers:
        if time.monotonic() > until:
            break
        changed, (line, what) = mutated(source, number)
        lives = survives(name, changed, round(30 + 2 * took), only)
        print(f"{'SURVIVED' if lives else 'killed'} {name} line {line}: {what}", flush=True)
        killed += not lives
        if lives:
            survivors.append({"line": line, "change": what})
    return {"tried": killed + len(survivors), "killed": killed, "survivors": survivors}


def once_more(name: str, row: dict[str, Any], until: float, only: str | None) -> dict[str, Any]:
    """A module's row, after those that survived and are not explained were tried again.

    They survived all tests that there were, so that `only` those added since need be run.
    """
    explained = [s for s in row["survivors"] if s["change"] in EQUIVALENT.get(name, {})]
    again = {(s["line"], s["change"]) for s in row["survivors"] if s not in explained}
    if not again:
        return row
    source, drawn = path_of(name).read_text(), order(row["places"], row["seed"])[: row["tried"]]
    there = len(list(sites(ast.parse(source))))
    numbers = [n for n in drawn if n < there and mutated(source, n)[1] in again]
    missed = again - {mutated(source, number)[1] for number in numbers}
    if missed:
        places = "; ".join(f"line {line}: {change}" for line, change in sorted(missed))
        sys.exit(f"{name} has changed; try all of it again. No longer there: {places}")
    found = tried(name, numbers, until, only)
    if found["tried"] < len(numbers):
        sys.exit(f"There was not enough time for {name}.")
    survivors = explained + found["survivors"]
    command = f"{row['command']}; {called()}"
    killed = row["tried"] - len(survivors)
    return {**row, "command": command, "killed": killed, "survivors": survivors}


def called() -> str:
    """The command that runs this."""
    return shlex.join(["python", *sys.argv])


def order(places: int, seed: int) -> list[int]:
    """In which order the changes of a module are tried."""
    numbers = list(range(places))
    random.Random(seed).shuffle(numbers)
    return numbers


def keep(name: str, row: dict[str, Any], path: Path) -> None:
    """Puts a module's row into the file, in the place of the one that was there.

    What is known by now of the survivors of all modules is put beside them.
    """
    modules = json.loads(path.read_text())["modules"] if path.exists() else {}
    for module, known in [*modules.items(), (name, row)]:
        for survivor in known["survivors"]:
            survivor["why"] = EQUIVALENT.get(module, {}).get(survivor["change"], "")
    results = {
        "modules": dict(sorted({**modules, name: row}.items())),
        "versions": {p: version(p) for p in ("nit-snn", "torch", "hypothesis")},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sample", type=int, help="so many changes of each module, not all")
    add("--seed", type=int, default=0)
    add("--modules", nargs="+", choices=TESTS, default=list(TESTS), metavar="MODULE")
    add("--again", action="store_true", help="only those that survived and are not explained")
    add("-k", dest="only", metavar="TESTS", help="with --again: of the tests, as pytest has it")
    add("--minutes", type=float, default=float("inf"), help="begin no other mutant after so long")
    add("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "mutants.json")
    args = parser.parse_args()
    if args.only is not None and not args.again:
        parser.error("-k goes with --again")
    import snntorch  # noqa: F401  (once, not once for each mutant)
    from spikingjelly.activation_based import functional, layer, neuron  # noqa: F401

    until = time.monotonic() + 60 * args.minutes
    for name in args.modules:
        if time.monotonic() > until:
            break
        if args.again:
            row = json.loads(args.output.read_text())["modules"][name]
            keep(name, once_more(name, row, until, args.only), args.output)
            continue
        places = len(list(sites(ast.parse(path_of(name).read_text()))))
        row = tried(name, order(places, args.seed)[: args.sample], until)
        keep(name, {"command": called(), "seed": args.seed, "places": places, **row}, args.output)


if __name__ == "__main__":
    main()
