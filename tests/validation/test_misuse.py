"""Bad input and misuse is answered, never taken in silence; the cases are in `misuse_cases`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from misuse_cases import CASES, Case, answer_to

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.topic}: {case.what}")
def test_answered(case: Case) -> None:
    answer_to(case)


def test_each_case_is_there_once() -> None:
    assert len({(case.topic, case.what) for case in CASES}) == len(CASES)


def test_the_tables_in_the_documents_are_those_of_the_cases_and_files() -> None:
    spec = importlib.util.spec_from_file_location(
        "reliability_table", ROOT / "scripts" / "reliability_table.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert script.replaced(page, script.table(CASES)) == page
    assert script.replaced(page, script.counts(CASES), "counts") == page
    page = (ROOT / "docs" / "reliability_versions.md").read_text()
    assert script.replaced(page, script.versions(), "versions") == page
    assert script.replaced(page, script.mutants(), "mutants") == page
