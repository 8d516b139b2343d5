"""The command that proves the rest on a GPU: its stages' limits, its report, and a dry run."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STAGE = """
import json, pathlib, sys, time
own = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, result = own["--stage"], pathlib.Path(own["--result"])
report = result.parent / "gpu_check.json"
before = list(json.loads(report.read_text())["stages"]) if report.exists() else []
if name == "slow":
    time.sleep(60)
if name == "partly":
    (result.parent / name).mkdir()
    (result.parent / name / "gpu.json").write_text('{"points": 1}')
    time.sleep(60)
result.write_text(json.dumps({"before": before, "seconds": own["--seconds"]}))
sys.exit("it went wrong" if name == "bad" and not (result.parent / "mended").exists() else 0)
"""


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {n: importlib.import_module(n) for n in ("gpu_check", "gpu_stages", "source_tree")}


def test_each_stage_has_a_limit_and_the_report_grows(
    modules: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = modules["gpu_check"]
    args = argparse.Namespace(output=tmp_path / "out", minutes=1.0)
    command = [sys.executable, "-c", STAGE]
    stages = {"good": 30.0, "slow": 0.3, "bad": 30.0, "partly": 3.0, "last": 30.0}
    found = check.run(args, stages, command)["stages"]
    states = [(name, stage["state"]) for name, stage in found.items()]
    assert states == [
        ("good", "done"),
        ("slow", "too long"),
        ("bad", "failed"),
        ("partly", "too long"),
        ("last", "done"),
    ]
    assert found["last"]["result"]["before"] == ["good", "slow", "bad", "partly"]
    assert "it went wrong" in found["bad"]["output"] and found["bad"]["result"]["before"]
    assert found["partly"]["result"] == {"points": 1}
    assert json.loads((args.output / "gpu_check.json").read_text())["stages"] == found
    # Again: what is done is left, what has failed is repeated.
    (args.output / "mended").touch()
    again = check.run(args, {"good": 30.0, "bad": 30.0}, command)["stages"]
    assert again["bad"]["state"] == "done" and again["good"] == found["good"]
    assert again["last"] == found["last"] and "good: done before" in capsys.readouterr().out


def test_nothing_begins_when_time_is_over(modules: dict[str, Any], tmp_path: Path) -> None:
    args = argparse.Namespace(output=tmp_path, minutes=0.0)
    found = modules["gpu_check"].run(args, {"good": 30.0}, [sys.executable, "-c", STAGE])
    assert found["stages"] == {"good": {"state": "no time left"}}


def test_limits_belong_to_stages(modules: dict[str, Any]) -> None:
    assert list(modules["gpu_check"].LIMITS) == list(modules["gpu_stages"].STAGES)


@pytest.mark.parametrize("stage", ["versions", "graph", "profile", "accuracy"])
def test_a_stage_without_a_gpu(stage: str, modules: dict[str, Any], tmp_path: Path) -> None:
    args = argparse.Namespace(
        device="cpu", quick=True, seconds=60.0, stage=stage, result=tmp_path / f"{stage}.json"
    )
    with torch.random.fork_rng():
        found = modules["gpu_stages"].STAGES[stage](args)
    json.dumps(found)
    assert "failed" not in found
    if stage == "versions":
        assert found["backends"]["cpu"].startswith("torch")
    if stage == "profile":
        assert found["NIT, kernels"]["operators"] > 0
    if stage == "accuracy":
        assert len(found["accuracy"]) == 4


@pytest.mark.full
def test_the_whole_of_it_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu", "--quick"]
    subprocess.run([*command, "--output", str(tmp_path)], check=True)
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {stage["state"] for stage in report["stages"].values()} == {"done"}
    assert len(report["stages"]["headline"]["result"]["points"]) == 2


@pytest.mark.full
def test_it_starts_from_a_source_tree_that_is_not_installed() -> None:
    """Without site's .pth files, through which an editable install is found."""
    folders = [p for p in sys.path if p.endswith("site-packages")]
    code = (
        f"import sys; sys.path += {folders!r}; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import source_tree, nit_snn.neurons\n"
        "print(nit_snn.__version__, nit_snn.neurons.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True, cwd="/"
    )
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]
    here = str(BENCHMARKS.parent / "neurons" / "__init__.py")
    assert done.stdout.split() == [project["version"], here]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_without_a_gpu_fails_and_says_so(modules: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "only --device cpu --quick" in done.stderr
