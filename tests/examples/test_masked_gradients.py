"""examples/masked_gradients.py, from end to end, on few of the embedded images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_narrow_rectangle_has_no_gradient(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torchattacks")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    import masked_gradients

    full = masked_gradients.load
    monkeypatch.setattr(masked_gradients, "load", lambda *a: [part[:700] for part in full(*a)])
    masked_gradients.main(
        [
            *("--epochs", "1", "--steps", "3", "--images", "12", "--draws", "2"),
            *("--widths", "4", "0.000001"),
            *("--work", str(tmp_path / "work"), "--output", str(tmp_path)),
        ]
    )
    results = json.loads((tmp_path / "masking_mnist.json").read_text())
    assert {"dataset", "command", "seed", "versions", "machine"} <= set(results)
    wide, narrow = results["rows"]
    assert narrow["zero_gradient"] == 100 > wide["zero_gradient"]
    assert set(results["eot_pgd"]) == {"density 1", "LR"}
    assert set(wide["attacks"]) == {"FGSM", "BIM", "PGD", "MIM", "DIM", "TIM"}
    assert (tmp_path / "masking_mnist.png").read_bytes().startswith(b"\x89PNG")
