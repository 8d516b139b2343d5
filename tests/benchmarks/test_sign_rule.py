"""benchmarks/sign_rule.py: it runs, its statistics are right, and the pages say what it found."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sign_rule(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    return importlib.import_module("sign_rule")


def test_it_runs(sign_rule: Any, tmp_path: Path) -> None:
    few = ["--images", "64", "--epochs", "1", "--lrs", "0.001", "--batch-size", "32"]
    small = ["--replicas", "2", "--steps", "2", "--batch", "8", "--many", "4", "--passes", "1"]
    sign_rule.main([*few, *small, "--output", str(tmp_path)])
    results = json.loads((tmp_path / "sign_rule.json").read_text())
    assert {"command", "seed", "versions", "machine", "settings"} <= set(results)
    assert [(row["sends"], row["pixels"]) for row in results["rows"]] == [
        (reading, given) for reading in sign_rule.READINGS for given in sign_rule.INPUTS
    ]
    for row in results["rows"]:
        assert row["accuracy"] == max(row["accuracies"].values())
        assert ("output, silence at 0" in row["end"]) == (row["sends"] == "0 and 1")
    assert (tmp_path / "sign_rule.png").stat().st_size > 1000


def test_the_cosine_is_not_lowered_by_noise(sign_rule: Any) -> None:
    torch.manual_seed(0)
    a = torch.randn(100, 1000)
    b = 0.6 * a + 0.8 * torch.randn_like(a)

    def noisy(x: torch.Tensor) -> list[torch.Tensor]:
        return [x + torch.randn_like(x) for _ in range(2)]

    assert sign_rule.cosine(noisy(a), noisy(b)) == pytest.approx(0.6, abs=0.02)


def test_silence_at_zero_is_what_the_spikes_themselves_would_give(sign_rule: Any) -> None:
    spikes = (torch.rand(20, 5) < 0.3).float()
    score = torch.randn(20, 3)
    counted = torch.cat([2 * spikes - 1, torch.ones(20, 1)], 1)
    direct = torch.cat([spikes, torch.ones(20, 1)], 1)
    torch.testing.assert_close(sign_rule.silence_at_zero(score.T @ counted), score.T @ direct)


def test_the_page_shows_what_was_measured() -> None:
    results = json.loads((ROOT / "docs/benchmarks/sign_rule.json").read_text())
    page = (ROOT / "docs/robustness.md").read_text()
    assert f"`{results['command']}`" in page
    rows = {(row["sends"], row["pixels"]): row for row in results["rows"]}
    for (sends, pixels), row in rows.items():
        zero = [row[when].get("output, silence at 0") for when in ("start", "end")]
        shown = {"less their mean": "mean-subtracted"}.get(pixels, pixels)
        cells = [sends, shown, f"{row['accuracy']:.1f}"]
        cells += [
            f"{row[w][layer]:.2f}" for layer in ("hidden", "output") for w in ("start", "end")
        ]
        cells += ["-" if value is None else f"{value:.2f}" for value in zero]
        assert f"| {' | '.join(cells)} |" in page
    when = ("start", "end")
    plain = [row for row in results["rows"] if row["sends"] == "0 and 1"]
    rates = [100 * row[w]["hidden_rate"] for row in plain for w in when]
    assert f"fire in {span(rates, '.0f')}% of the steps" in page
    output = [row[w]["output"] for row in plain for w in when]
    zero = [row[w]["output, silence at 0"] for row in plain for w in when]
    assert f"cosine is {span(output)}. With silence counted as 0 it is {span(zero)}." in page
    hidden = {
        pixels: [
            row[w]["hidden"] for row in results["rows"] if row["pixels"] == pixels for w in when
        ]
        for pixels in ("less their mean", "from -1 to 1")
    }
    assert f"small number. The cosines are {span(hidden['less their mean'])}." in page
    assert f"near either end. The cosines are {span(hidden['from -1 to 1'])}." in page
    assert max(output) < min(zero) and max(rates) < 50
    signed, sends_0 = (
        {pixels: rows[sends, pixels]["accuracy"] for pixels in hidden}
        for sends in ("-1 and +1", "0 and 1")
    )
    assert signed["less their mean"] > sends_0["less their mean"] + 10
    assert abs(signed["from -1 to 1"] - sends_0["from -1 to 1"]) < 1  # "about as well"


def span(values: list[float], form: str = ".2f") -> str:
    return f"{min(values):{form}} to {max(values):{form}}"
