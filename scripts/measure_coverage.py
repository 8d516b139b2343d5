"""How much of the package the whole suite runs: statements and branches, file by file.

    python scripts/measure_coverage.py -n 2

Runs pytest (options that it does not know are pytest's) under coverage, subprocesses and xdist's
workers included, and writes the counts to --output. Which lines are missing is in the report of
coverage itself, which stays at --report and belongs to nobody's repository. With --stopped it runs
nothing, but counts what a run that was stopped has left, and keeps what is said of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {
    "statements": "num_statements",
    "statements_missing": "missing_lines",
    "branches": "num_branches",
    "branches_missing": "missing_branches",
}


def counted(summary: dict[str, Any]) -> dict[str, float]:
    """Coverage's summary of a file, or of all, with the percentages of what was run."""
    counts = {name: summary[theirs] for name, theirs in COUNTS.items()}
    for what in ("statements", "branches"):
        there, missing = counts[what], counts[f"{what}_missing"]
        counts[f"{what}_percent"] = round(100 * (there - missing) / there, 2) if there else 100.0
    return counts


def run(*command: str) -> int:
    """A module of this Python, from the repository's root; its exit status."""
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode


def main(arguments: list[str] | None = None) -> int:
    """Runs the tests and writes the counts; returns pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "coverage.json")
    add("--report", type=Path, default=ROOT / "build" / "coverage.json")
    add("--stopped", metavar="WORDS", help="count what an earlier run has left; how far it came")
    args, options = parser.parse_known_args(arguments)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    status = 0
    if args.stopped is None:
        status = run(
            "pytest", "-q", "--cov", "--cov-config=pyproject.toml", "--cov-report=", *options
        )
    else:
        run("coverage", "combine", "-q", "--rcfile=pyproject.toml")
    if run("coverage", "json", "-q", "--rcfile=pyproject.toml", "-o", str(args.report.resolve())):
        raise SystemExit("There is nothing to count.")
    found = json.loads(args.report.read_text())
    results = {
        "command": " ".join(
            ["python", "scripts/measure_coverage.py", *(arguments or sys.argv[1:])]
        ),
        "all_tests_passed": status == 0 if args.stopped is None else None,
        **({} if args.stopped is None else {"stopped": args.stopped}),
        "total": counted(found["totals"]),
        "files": {name: counted(f["summary"]) for name, f in sorted(found["files"].items())},
        "versions": {p: version(p) for p in ("nit-snn", "torch", "pytest", "coverage")},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    total = results["total"]
    print(f"statements {total['statements_percent']}%, branches {total['branches_percent']}%")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
