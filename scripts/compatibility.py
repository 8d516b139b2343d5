"""Runs tests in the environment that it is started in, and keeps what came of them.

    python scripts/compatibility.py NAME tests/docs/test_smoke.py --output docs/benchmarks/x.json

`noxfile.py` calls it in every environment that it makes. The row of that NAME is added to the
output, or replaced: versions of what is installed, how many tests passed, failed and were
skipped, and the last line of each failure. Options that it does not know are pytest's.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("nit-snn", "torch", "numpy", "snntorch", "spikingjelly", "torchvision", "scipy")


class Outcomes:
    """Counts what pytest reports; a test that fails in its setup or teardown has failed."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self._keep(report)
        elif report.skipped:
            self.counts["skipped"] += 1
        elif report.when == "call":
            self.counts["passed"] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self._keep(report)
        elif report.skipped:
            self.counts["skipped"] += 1

    def _keep(self, report: Any) -> None:
        reason = str(report.longrepr).strip().splitlines()[-1]
        self.failures.append(f"{report.nodeid}: {reason}"[:200])


def installed() -> dict[str, str]:
    """Versions of what is there of `PACKAGES`."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def keep(row: dict[str, Any], path: Path) -> None:
    """Puts the row into the file, in the place of one of the same name."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([r for r in rows if r["name"] != row["name"]] + [row], key=lambda r: r["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": "nox", "rows": rows}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/compatibility.json"))
    args, options = parser.parse_known_args()
    outcomes = Outcomes()
    status = pytest.main(["-q", "-W", "ignore", *options, *args.tests], plugins=[outcomes])
    row = {
        "name": args.name,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": installed(),
        "tests": args.tests,
        **outcomes.counts,
        "failures": outcomes.failures,
    }
    keep(row, args.output)
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
