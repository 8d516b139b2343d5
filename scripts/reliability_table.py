"""Write the table of bad inputs in docs/reliability.md from the cases that the tests run.

Each case in tests/misuse_cases.py is run, and what it was answered with becomes a row.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from misuse_cases import CASES, Case, answer_to  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- cases: begin -->\n", "<!-- cases: end -->\n"


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


def replaced(page: str, tables: str) -> str:
    """The page with new tables between its two marks.

    Args:
        page: Markdown.
        tables: What `table` made.

    Raises:
        ValueError: The marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"The page lacks the marks {BEGIN.strip()} and {END.strip()}.")
    return f"{before}{begin}\n{tables}\n{end}{after}"


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
    options.page.write_text(replaced(options.page.read_text(), table(CASES)))
    print(f"{options.page.name}: {len(CASES)} cases")


if __name__ == "__main__":
    main()
