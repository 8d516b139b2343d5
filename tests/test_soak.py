"""The soak run: it measures, and nothing stays behind a network that is gone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import soak


@pytest.mark.parametrize("make", soak.NETWORKS)
@pytest.mark.parametrize("options", soak.OPTIONS, ids=str)
def test_nothing_is_left_of_a_network(make: Any, options: dict[str, Any]) -> None:
    x, y = torch.rand(64, 784), torch.randint(0, 10, (64,))
    for _ in range(2):  # what is made once, and kept; what other tests left goes meanwhile
        soak.train_once(make, options, x, y, steps=1)
    before = soak.tensors()
    soak.train_once(make, options, x, y, steps=2)
    assert soak.tensors() == before


def test_a_short_run(tmp_path: Path) -> None:
    soak.main(["--minutes", "0.02", "--every", "0.1", "--steps", "2", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["steps"] == found["points"][-1]["steps"] > 0
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_a_rise_is_told_from_the_second_quarter_to_the_last() -> None:
    points = [{"mib": value} for value in (0.0, 5.0, 6.0, 9.0)]
    assert soak.rise(points, "mib") == 4.0
