"""Every experiment of examples/architectures.py reaches all its parameters and learns."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from nit_snn.datasets import Splits, load, split
from nit_snn.errors import UnreachedParameterWarning
from nit_snn.inspect.probe import probe

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("deep", "conv", "recurrent", "polystep", "zero-one", "first-spike")


@pytest.fixture
def architectures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    return importlib.import_module("architectures")


def short_run(architectures: Any, name: str, output: Path, *options: str) -> tuple[Any, Any]:
    """An experiment with few replicas, on a part of the embedded images."""
    options = ("--replicas", "4", "--batch-size", "100", "--output", str(output), *options)
    args = architectures.parse_arguments([name, *options])
    splits = split(*load("mnist", None, False), seed=0)
    few = [TensorDataset(*part[:800]) for part in splits]
    first = few[0].tensors[0][:200]
    return architectures.Run("nit", architectures.EXPERIMENTS[name], first, args), Splits(*few)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.full) if n == "conv" else n for n in NAMES]
)
def test_loss_falls_and_every_parameter_moves(
    architectures: Any, name: str, tmp_path: Path
) -> None:
    run, splits = short_run(architectures, name, tmp_path, "--lr", "0.005", "--epochs", "2")
    before = {key: value.clone() for key, value in run.net.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreachedParameterWarning)
        run.train(splits)
    assert run.history[1]["train_loss"] < run.history[0]["train_loss"]
    for key, value in run.net.named_parameters():
        assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_is_silent_at_the_start(architectures: Any, name: str, tmp_path: Path) -> None:
    run, splits = short_run(architectures, name, tmp_path)
    with probe(run.net) as layers:
        run.net(splits.train.tensors[0][:100])
    for activity in layers.values():
        assert 0.05 < torch.stack(activity.spikes).mean() < 0.7


def test_losses_without_a_gradient_count_as_they_say(architectures: Any) -> None:
    outputs = torch.zeros(4, 3, 10)  # three images
    outputs[1, 0, 2] = outputs[2:, 0, 5] = 1  # 2 is first, 5 fires more
    outputs[0, 1, 3] = outputs[0, 1, 4] = 1  # equals
    scores = architectures.earliest_then_most(outputs)
    labels = torch.tensor([2, 3, 0])  # the third image stays dark: chance decides
    torch.testing.assert_close(architectures.mistakes(scores, labels), torch.tensor([0, 0.5, 0.9]))
    assert architectures.mistakes(outputs.sum(0), labels)[0] == 1
    assert architectures.first_spikes(outputs)[0, [2, 5, 0]].tolist() == [3, 2, 0]


def test_neurons_without_memory_know_the_last_row_only(architectures: Any, tmp_path: Path) -> None:
    options = ("--memoryless", "--window", "1")
    run, splits = short_run(architectures, "recurrent", tmp_path, *options)
    images = splits.test.tensors[0][:5]
    other = images.clone()
    other[:, :, :-1] = torch.rand_like(other[:, :, :-1])
    with architectures.training.noise_off(run.net):
        torch.testing.assert_close(run.net(images), run.net(other))


@pytest.mark.full
def test_results_are_written_with_their_references(
    architectures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = architectures.split

    def cut(*args: Any, **options: Any) -> Any:
        return Splits(*(TensorDataset(*part[:1500]) for part in whole(*args, **options)))

    monkeypatch.setattr(architectures, "split", cut)
    short = ["--epochs", "1", "--replicas", "2", "--batch-size", "500", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["architectures.py", "recurrent", *short])
    architectures.main()
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["nit"]["history"][0]["cpu_seconds"] > 0
    assert rows["linear, all pixels"]["test"] > rows["linear, mean row"]["test"] > 10
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
