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
