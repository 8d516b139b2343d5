"""Makes nit_snn importable from a source tree that nobody has installed.

Importing this module is enough; `python -m pytest -p source_tree` with this folder on PYTHONPATH
does it for tests. `neurons/` is found as `nit_snn.neurons`, and the version is that of
pyproject.toml. Where nit_snn is installed, nothing is changed.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class SourceTree(DistributionFinder):
    """Finds `nit_snn.neurons`, and says which version this is."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "nit_snn.neurons":
            return None
        folder = ROOT / "neurons"
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )

    def find_distributions(self, context: Any = None) -> Iterator[Distribution]:
        if context is None or context.name in (None, "nit-snn"):
            yield _Own()


class _Own(Distribution):
    def read_text(self, filename: str) -> str | None:
        if filename not in ("METADATA", "PKG-INFO"):
            return None
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        return f"Metadata-Version: 2.1\nName: nit-snn\nVersion: {project['version']}\n"

    def locate_file(self, path: Any) -> Path:
        return ROOT / path


def is_installed() -> bool:
    """Whether `nit_snn.neurons` is found without this module's help."""
    found = find_spec("nit_snn")
    where = None if found is None else found.submodule_search_locations
    if where is None:
        return False
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return any(finder.find_spec("nit_snn.neurons", list(where)) for finder in finders)


if not is_installed():
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, SourceTree())
