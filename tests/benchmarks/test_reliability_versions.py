"""The page about versions and mutants says what the files say, and the bounds are what was run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "docs" / "benchmarks"
PAGE = "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("reliability*.md")))


def read(name: str) -> dict[str, Any]:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def test_no_environment_failed() -> None:
    assert all(row["failed"] == 0 and row["passed"] > 0 for row in read("compatibility")["rows"])


def test_lower_bounds_were_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["snntorch"], *extras["spikingjelly"]]
    run = [row["versions"] for row in read("compatibility")["rows"]]
    for package, bound in (line.split(">=") for line in asked if ">=" in line):
        found = {versions.get(package, "") for versions in run}
        assert any(f"{version}.".startswith(f"{bound}.") for version in found), package
    named = {c.rpartition(" ")[2] for c in project["classifiers"] if ":: 3." in c}
    assert named <= {row["python"].rpartition(".")[0] for row in read("compatibility")["rows"]}


def test_mutants_are_counted_and_each_that_survived_is_explained() -> None:
    modules = read("mutants")["modules"]
    assert modules
    for name, module in modules.items():
        assert 0 < module["tried"] <= module["places"], name
        assert module["tried"] - module["killed"] == len(module["survivors"]), name
        assert all(survivor["why"] for survivor in module["survivors"]), name


def test_modules_and_tests_of_mutants_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    mutants = importlib.import_module("mutants")
    assert set(mutants.EQUIVALENT) <= set(mutants.TESTS)
    for name in mutants.TESTS:
        source = mutants.path_of(name).read_text()
        assert mutants.tests_of(name) and mutants.mutated(source, 0)[0] != source
        for change in mutants.EQUIVALENT.get(name, {}):
            assert change.split(" in ", 1)[1] in source, f"{name} has changed: {change}"


@pytest.mark.slow
def test_mutants_of_a_module_are_noticed(tmp_path: Path) -> None:
    output = tmp_path / "mutants.json"
    command = [sys.executable, "scripts/mutants.py", "--modules", "nit_snn.training.projection"]
    subprocess.run([*command, "--output", str(output)], cwd=ROOT, check=True)
    row = json.loads(output.read_text())["modules"]["nit_snn.training.projection"]
    assert row["tried"] == row["places"] == row["killed"] > 0


def test_coverage_is_what_was_asked_for() -> None:
    found = read("coverage")
    assert found["total"]["statements_percent"] >= 95
    summed = Counter[str]()
    for file in found["files"].values():
        summed.update({name: n for name, n in file.items() if "percent" not in name})
    assert summed == {name: n for name, n in found["total"].items() if "percent" not in name}
