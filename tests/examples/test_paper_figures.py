"""The figures of the paper: a tiny run of the whole script, and what it must find."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = (
    "--images 600 --epochs 3 --width 20 --replicas 4 --runs 3 --fig2-steps 60 --activations tanh "
    "--copies 1 2 16 --estimates 8 --table-steps 5 --depths 1 4 --step-epochs 6 --deep 3 "
    "--draws 400"
)


@pytest.mark.full
def test_a_tiny_run_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["paper_figures", *SHORT.split(), "--output", str(tmp_path)])
    importlib.import_module("paper_figures").main()
    results = json.loads((tmp_path / "benchmarks" / "paper_figures.json").read_text())
    assert {"command", "seed", "versions", "machine", "dataset"} <= set(results)
    ten_copies_wander_less_than_one_and_signs_rest_elsewhere(results["fig2"])
    nit_s_plus_is_nit_s_until_it_switches(results["fig3"])
    the_table_measures_what_it_says(results["table1"])
    for name in ("paper_fig2.png", "paper_fig3.png", "paper_table1.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")


def ten_copies_wander_less_than_one_and_signs_rest_elsewhere(found: Any) -> None:
    rows = {(row["method"], row["copies"]): row for row in found["rows"]}
    assert len(rows["bp", 1]["path"]) == 61
    for method, point in (("nit", "minimum"), ("nit-s", "rest_of_signs")):
        one, ten = (rows[method, copies][f"rms_distance_to_{point}"] for copies in (1, 10))
        assert ten < one
    signs = rows["nit-s", 10]
    assert signs["rms_distance_to_rest_of_signs"] < signs["rms_distance_to_minimum"]


def nit_s_plus_is_nit_s_until_it_switches(found: Any) -> None:
    histories = {row["method"]: row["history"] for row in found["rows"]}
    assert set(histories) == {"bp", "nit", "nit-s", "nit-s+", "nit-s+ slow"}
    assert all(len(history) == 3 for history in histories.values())
    assert found["switch_after"] == 2
    assert histories["nit-s"][:2] == histories["nit-s+"][:2]
    third = [histories[name][2]["train_loss"] for name in ("nit-s", "nit-s+", "nit-s+ slow")]
    assert len(set(third)) == 3
    for history in histories.values():
        assert history[-1]["train_loss"] < history[0]["train_loss"]


def the_table_measures_what_it_says(table: Any) -> None:
    spread = {
        (row["estimator"], row["copies"]): row["variance_per_coordinate"]
        for row in table["variance"]
    }
    plain, left_out = "LR, baseline none", "LR, baseline leave-one-out"
    assert spread[plain, 16] < spread[plain, 1] and spread[left_out, 16] < spread[plain, 16]
    assert spread["BP through the noise", 1] < spread[plain, 1]
    assert all(row["same_gradient_alone"] for row in table["depth"])
    assert all(row["milliseconds"] > 0 for row in table["cost"])
    step = table["hard_step"]
    assert step["bp_gradient_of_the_first_layer"] == 0
    assert not step["bp_can_differentiate_the_0_1_loss"]
    assert step["history"][-1]["train_error"] < step["history"][0]["train_error"]
    deep = table["deep_sigmoid"]["rows"]
    assert [row["layer"] for row in deep] == [1, 2, 3, 4]
    assert deep[0]["signal"] < deep[-1]["signal"] / 10
    assert deep[0]["lr_norm"] > deep[-1]["lr_norm"] / 10
