"""The tables of docs/sounds_and_events.md are those that the command makes of the files."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("time_table")


def test_the_page_is_up_to_date(script: Any) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.written(page) == page, "run python scripts/time_table.py"
    for name in script.TABLES:
        assert f"% end of {name}" in page


def test_every_file_says_how_it_was_made(script: Any) -> None:
    for name in (*script.FILES, "long_sequences"):
        found = script.read(name)
        if "command" in found:
            assert found["command"].startswith(f"python examples/{name}.py")
            assert found["versions"]["torch"] and found["machine"] and found["python"]


def test_a_table_of_made_up_numbers(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = [
        {"method": method, "epochs": 2, "test": 90.0 + i, "cpu_seconds": 10.0 * i, "spikes": 7.25}
        for i, method in enumerate((*script.METHODS, *script.MORE))
    ]
    runs.append({"method": "STBP", "epochs": 1, "validation": 1.0, "cpu_seconds": 99.0})
    task = {"network": "a-b", "data": "some", "unit": "%", "runs": runs}
    task["peaks"] = {"STBP": {"resident_mib": 24.4, "tensors_mib": 9.0}}
    task["ms_of_a_step"] = dict.fromkeys(script.METHODS, 4.0)
    (tmp_path / "timing_tasks.json").write_text(json.dumps({"tasks": {"one": task}}))
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    row = script.comparison().splitlines()[-1]
    assert row.startswith("| some | a-b | 90.0 | 91.0 | 92.0 | 93.0 | 0 / 10 / 20 / 30 | 9 / - / -")
    assert "| one | spikes | 7.25 | 7.25 |" in script.timing()
    assert script.steps().splitlines()[-1].startswith("| some | 4 / 4 / 4 / 4 | 1.00 | 24 / - ")
    assert script.memory().count("\n") == 1
    page = "% timing: made by x\n\nold\n\n% end of timing\n"
    assert script.written(page) == f"% timing: made by x\n\n{script.timing()}\n\n% end of timing\n"
