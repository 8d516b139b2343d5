"""Write the tables in docs/reliability.md: what was tried and what came of it, and the bad inputs.

Those of versions and mutants in docs/reliability_versions.md, too.

Each case in tests/misuse_cases.py is run, and what it was answered with becomes a row. The counts
are those of the files in docs/benchmarks, each of which names the command that wrote it.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from misuse_cases import CASES, Case, answer_to  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
VERSIONS = ROOT / "docs" / "reliability_versions.md"
BENCHMARKS = ROOT / "docs" / "benchmarks"


def table(cases: Sequence[Case]) -> str:
    """Run the cases and make a table for each topic, as Markdown.

    Args:
        cases: Those of a topic have to follow each other.

    Raises:
        AssertionError: A case is answered with something else than it says.
    """
    counts = f"{len(cases)} cases, each of which is a test.\n"
    parts = [counts]
    for topic, alike in groupby(cases, lambda case: case.topic):
        rows = [f"| {case.what} | {_kind(case)} | {_cell(answer_to(case))} |" for case in alike]
        parts.append("\n".join([f"### {topic}\n", "| what | answer | in words |", "|---|---|---|"]))
        parts[-1] += "\n" + "\n".join(rows) + "\n"
    return "\n".join(parts)


def counts(cases: Sequence[Case], files: Path = BENCHMARKS) -> str:
    """What was tried, how often, and what came of it, as a table in Markdown.

    Args:
        cases: Those of `table`.
        files: Where the numbers are.
    """

    def read(name: str) -> Any:
        return json.loads((files / f"{name}.json").read_text())

    kinds = Counter(_sort(case) for case in cases)
    faults, rows = read("faults"), read("compatibility")["rows"]
    runs, damaged = faults["runs"], faults["files"]
    modules, total = read("mutants")["modules"].values(), read("coverage")["total"]
    survivors = [survivor for m in modules for survivor in m["survivors"]]
    tried = sum(m["tried"] for m in modules)
    lines = [
        (
            "bad inputs, each a test",
            f"{len(cases)}",
            f"{kinds['error']} answered by an error, {kinds['warning']} by a warning, "
            f"{kinds['none']} set right",
            "[below](#bad-input-case-by-case)",
        ),
        (
            "training runs killed, out of disk, or with a damaged checkpoint",
            f"{len(runs)}",
            f"{sum(run['same'] for run in runs)} went on to the same weights, bit by bit; "
            f"{max(run['updates_lost'] for run in runs)} update lost at most",
            "[faults](benchmarks/faults.json)",
        ),
        (
            "damaged files",
            f"{sum(file['damaged'] for file in damaged):,}",
            f"{sum(file['refused'] for file in damaged):,} refused",
            "[faults](benchmarks/faults.json)",
        ),
        (
            "environments: Python, torch, frameworks, extras",
            f"{len(rows)}",
            f"{sum(row['passed'] for row in rows):,} tests passed, "
            f"{sum(row['failed'] for row in rows)} failed, "
            f"{sum(row['skipped'] for row in rows)} skipped",
            "[versions](benchmarks/compatibility.json)",
        ),
        (
            f"mutants of the estimators, in {len(modules)} modules",
            f"{tried}",
            f"{sum(m['killed'] for m in modules)} noticed by the module's tests, "
            f"{len(survivors)} explained one by one",
            "[mutants](benchmarks/mutants.json)",
        ),
        (
            "statements of the package, on a CPU",
            f"{total['statements']:,}",
            f"{total['statements_percent']}% run by the tests; of {total['branches']:,} branches "
            f"{total['branches_percent']}%",
            "[coverage](benchmarks/coverage.json)",
        ),
    ]
    if (files / "soak.json").exists():
        soak = read("soak")
        lines.append(
            (
                "learning in one process, without a pause",
                f"{soak['minutes']:g} minutes, {soak['steps']:,} steps, "
                f"{soak['networks']:,.0f} networks",
                f"{soak['rise']['mib']:+.1f} MiB and {soak['rise']['tensors']:+g} tensors from the "
                "second quarter to the last",
                "[soak](benchmarks/soak.json)",
            )
        )
    head = ["| tried | how many | what came of it | numbers |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def versions(files: Path = BENCHMARKS) -> str:
    """What was run in each environment, and what came of it, as a table in Markdown."""
    head = [
        "| environment | Python | torch | snnTorch | SpikingJelly | test files | passed | failed "
        "| skipped |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines = []
    for row in json.loads((files / "compatibility.json").read_text())["rows"]:
        kind, _, extra = row["name"].rpartition(": ")
        cells = [f"`{extra}`" if kind else "frameworks", row["python"]]
        cells += [row["versions"].get(name, "-") for name in ("torch", "snntorch", "spikingjelly")]
        cells += [str(len(row["tests"])), *(str(row[k]) for k in ("passed", "failed", "skipped"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*head, *lines]) + "\n"


def mutants(files: Path = BENCHMARKS) -> str:
    """How many mutants of each module were tried and noticed, as a table in Markdown."""
    modules = json.loads((files / "mutants.json").read_text())["modules"]
    head = ["| module | possible | tried | noticed |", "|---|---|---|---|"]
    lines = [
        f"| `{n}` | {m['places']} | {m['tried']} | {m['killed']} |" for n, m in modules.items()
    ]
    return "\n".join([*head, *lines]) + "\n"


def replaced(page: str, tables: str, name: str = "cases") -> str:
    """The page with new tables between the two marks of that name.

    Args:
        page: Markdown.
        tables: What `table`, `counts`, `versions` or `mutants` made.
        name: "cases", "counts", "versions" or "mutants".

    Raises:
        ValueError: The marks are not there.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, there, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (there and closed):
        raise ValueError(f"The page lacks the marks {begin.strip()} and {end.strip()}.")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def _sort(case: Case) -> str:
    if isinstance(case.answer, str):
        return "none"
    return "warning" if issubclass(case.answer, Warning) else "error"


def _kind(case: Case) -> str:
    return "none" if isinstance(case.answer, str) else f"`{case.answer.__name__}`"


def _cell(message: str) -> str:
    """A message in one line of Markdown, without what it would take for markup."""
    return re.sub(r"([|*_<>\[\]~`])", r"\\\1", " ".join(message.split()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the tables in the page.

    Args:
        arguments: The command line without the program's name; None for that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/reliability.md")
    options = parser.parse_args(arguments)
    page = replaced(options.page.read_text(), counts(CASES), "counts")
    options.page.write_text(replaced(page, table(CASES)))
    page = replaced(VERSIONS.read_text(), versions(), "versions")
    VERSIONS.write_text(replaced(page, mutants(), "mutants"))
    print(f"{options.page.name}: {len(CASES)} cases")


if __name__ == "__main__":
    main()
