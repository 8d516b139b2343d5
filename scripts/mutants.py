"""Breaks the estimators one operator at a time, and asks whether a test notices.

    python scripts/mutants.py --sample 60

A mutant is one module with one change: + for -, * for /, a comparison turned round, a number off
by one, a `not` left out, min for max. A sample of them, by a fixed seed, is tried: each in a
process of its own, which imports the changed module in place of the true one and runs the tests
that are named for it until the first that fails. Writes how many were killed, and which were not,
to --output. Needs a system that can fork; frameworks are imported once.
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
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Each module, and the tests that are run for its mutants, the fastest first.
TESTS = {
    "nit_snn.rules": "properties rules schedule",
    "nit_snn.baselines": "baselines",
    "nit_snn.credit": "properties",
    "nit_snn.firing": "properties conditioned",
    "nit_snn.pathwise": "properties conditioned",
    "nit_snn.synapses.linear": "properties synapses",
    "nit_snn.neurons.functional": "properties neurons",
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


def mutated(source: str, number: int) -> tuple[str, str]:
    """The source with its change of that number, and what it is: line, before, after."""
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
    return ast.unparse(tree), f"line {getattr(node, 'lineno', 0)}: {before} -> {after}"


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed module to whoever imports it."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        package = path_of(name).name == "__init__.py"
        return importlib.util.spec_from_loader(name, self, is_package=package)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(path_of(self.name)), "exec"), vars(module))


def path_of(name: str) -> Path:
    parts = name.split(".")
    if parts[1] == "neurons":
        parts = parts[1:]
    return ROOT.joinpath(*parts).with_suffix(".py")


def tests_of(name: str) -> list[str]:
    return [str(ROOT / "tests" / f"test_{test}.py") for test in TESTS[name].split()]


def survives(name: str, source: str, tests: list[str], limit: int) -> bool:
    """Whether all tests pass with the changed module, within `limit` seconds of a CPU."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        sys.meta_path.insert(0, Changed(name, source))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
        with contextlib.suppress(BaseException):
            os._exit(int(pytest.main([*options, *tests])))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return status == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sample", type=int, default=120)
    add("--seed", type=int, default=0)
    add("--limit", type=int, default=300, help="CPU seconds; a mutant that takes longer is dead")
    add("--modules", nargs="+", choices=TESTS, default=list(TESTS), metavar="MODULE")
    add("--minutes", type=float, help="begin no other mutant after so long")
    add("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "mutants.json")
    args = parser.parse_args()
    import snntorch  # noqa: F401  (once, not once for each mutant)
    from spikingjelly.activation_based import functional, layer, neuron  # noqa: F401

    sources = {name: path_of(name).read_text() for name in args.modules}
    places = [(n, i) for n, s in sources.items() for i in range(len(list(sites(ast.parse(s)))))]
    random.Random(args.seed).shuffle(places)
    for name in sorted({name for name, _ in places[: args.sample]}):
        if not survives(name, sources[name], tests_of(name), args.limit):
            sys.exit(f"The tests of {name} fail without any change, or take too long.")
    rows, survivors, started = {name: [0, 0] for name in sources}, [], time.monotonic()
    for name, number in places[: args.sample]:
        if args.minutes is not None and time.monotonic() - started > 60 * args.minutes:
            break
        source, what = mutated(sources[name], number)
        lives = survives(name, source, tests_of(name), args.limit)
        rows[name][0] += 1
        rows[name][1] += not lives
        if lives:
            survivors.append({"module": name, "change": what})
        print(f"{'SURVIVED' if lives else 'killed'} {name} {what}", flush=True)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "places": len(places),
        "tried": sum(tried for tried, _ in rows.values()),
        "killed": sum(killed for _, killed in rows.values()),
        "modules": {n: {"tried": t, "killed": k} for n, (t, k) in rows.items()},
        "survivors": survivors,
        "versions": {p: version(p) for p in ("nit-snn", "torch", "hypothesis")},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
