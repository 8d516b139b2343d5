"""How the package is built: small modules, and none that imports itself in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import nit_snn
import nit_snn.neurons

#: Where the modules of each package lie; `neurons` is installed inside of `nit_snn`.
ROOTS = {
    "nit_snn": Path(nit_snn.__file__).parent,
    "nit_snn.neurons": Path(nit_snn.neurons.__file__).parent,
}


def modules() -> dict[str, Path]:
    """All modules by name; a package has that of its folder."""
    found = {}
    for root, folder in ROOTS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join([root, *parts])] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules of this package that one imports: at once, late, or for its types alone."""
    found = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return found & known


def test_imports_form_no_circle() -> None:
    paths = modules()
    assert {"nit_snn", "nit_snn.learner", "nit_snn.neurons.base"} <= paths.keys()
    graph = {name: imported(name, path, set(paths)) for name, path in paths.items()}
    assert {"nit_snn.dynamics.lif"} <= graph["nit_snn.neurons.base"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_modules_are_small() -> None:
    """One idea a module; the learner is a facade."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
    assert lengths["nit_snn.learner"] <= 300


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names))
