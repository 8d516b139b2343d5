"""What docs/in_the_loop.md says was measured is what the files say."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "in_the_loop.md").read_text()


def results(name: str) -> Any:
    return json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text())


def test_cartpole() -> None:
    rows = results("cartpole")["rows"]
    for method in ("NIT", "REINFORCE"):
        own = [row for row in rows if row["method"] == method]
        episodes = [row["episodes"] for row in own]
        steps = statistics.median(row["environment_steps"] for row in own)
        solved = f"{sum(row['solved'] for row in own)} of {len(own)}"
        cells = (statistics.median(episodes), min(episodes), max(episodes), f"{steps:,}")
        assert f"| {method} | {solved} | {' | '.join(map(str, cells))} |" in PAGE


def test_brian2_and_its_twin() -> None:
    found = results("brian2_in_the_loop")
    brian, twin = found["rows"]
    assert f"| chance | {found['chance']:.1f} |" in PAGE
    assert f"| Brian2, trained in the loop | {brian['test']:.1f} |" in PAGE
    assert f"| torch, trained with `NITLearner` | {twin['test']:.1f} |" in PAGE
    assert found["options"]["recordings"] == 2700 and found["options"]["epochs"] == 6
    assert brian["of"] == twin["of"] == 300


def test_nest() -> None:
    found = results("nest_in_the_loop")
    passes, last, rows = (found["options"][name] for name in ("passes", "last", "batch_size"))
    said = f"After {passes} passes it classifies {found['test']:.1f}% of {last * rows} patterns"
    assert f"{said}; chance is {found['chance']:.0f}%." in PAGE


def test_chips_with_mismatch() -> None:
    found = results("mismatched_chip")
    for row in found["rows"]:
        ways = (row[way] for way in ("software", "copied", "rounded", "loop"))
        assert f"| {row['chip']} | {' | '.join(f'{way:.1f}' for way in ways)} |" in PAGE
    assert found["recovered"] >= 0.9
    assert f"recovers {100 * found['recovered']:.0f}% of what the copies lose" in PAGE
    shorter = results("mismatched_chip_6")
    assert shorter["options"]["more_epochs"] == 6
    assert f"With 6 more epochs in the place of 10 it was {100 * shorter['recovered']:.0f}%" in PAGE
    assert (found["options"]["epochs"], found["options"]["more_epochs"]) == (8, 10)
