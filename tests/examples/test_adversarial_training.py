"""The adversarial example and its search on a few embedded images: they train, judge, resume."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SHORT = ["--hidden", "6", "--epochs", "2", "--images", "4", "--seed", "1"]
SHORT += ["--decision-draws", "2", "--attack-draws", "2", "--attack-steps", "1"]
SHORT += ["--apgd-steps", "2", "--queries", "2", "--stop-images", "20"]


@pytest.fixture(autouse=True)
def _embedded_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)


def few(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few images that an epoch is two batches."""
    whole = module.split

    def cut(*args: Any, **options: Any) -> Any:
        parts = whole(*args, **options)
        for part in parts:
            part.tensors = tuple(t[:300] for t in part.tensors)
        return parts

    monkeypatch.setattr(module, "split", cut)


def run(work: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    module = importlib.import_module("adversarial_training")
    few(module, monkeypatch)
    places = ["--work", str(work), "--output", str(work)]
    monkeypatch.setattr(sys, "argv", ["adversarial_training.py", *SHORT, *places, *arguments])
    module.main()
    return json.loads((work / "adversarial_mnist_6.json").read_text())


@pytest.mark.full
def test_all_methods_are_trained_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = importlib.import_module("adversarial_training")
    made = example.check

    def briefly(*args: Any, **options: Any) -> None:
        made(*args, epsilons=(1.0,), **options)

    monkeypatch.setattr(example, "check", briefly)
    found = run(tmp_path, monkeypatch, "--check-images", "2", "--runs", "2")
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    named = [(row["method"], row["seed"]) for row in found["rows"]]
    assert named == [(method, seed) for seed in (1, 2) for method in ("NIT", "ReLU", "STBP-N")]
    assert found["rows"][0]["history"] != found["rows"][3]["history"]
    told = {(p["first"], p["second"], p["seed"]): p for p in found["pairs"]}
    assert len(told) == len(found["pairs"]) == 6
    first, second = (row["withstood"] for row in found["rows"][3:5])
    pair = told["NIT", "ReLU", 2]
    assert len(first) == 4 and 100 * first.count("1") / 4 == found["rows"][3]["worst"]
    assert pair["first_alone"] - pair["second_alone"] == first.count("1") - second.count("1")
    lines = (tmp_path / "adversarial_mnist_6.md").read_text().splitlines()
    assert len(lines) == 2 + 6 + 3 + 6 and lines[2].startswith("| NIT | 1 | 2 | ")
    for row in found["rows"]:
        assert row["protocol"] == "adaptive"
        assert row["worst"] <= min(row["attacks"].values())
        assert row["training"]["method"] == row["method"]
        epochs = 6 if row["method"] == "ReLU" else 2
        assert len(row["history"]) == row["training"]["epochs"] == epochs
        attacked = [epoch["attacked"] for epoch in row["history"]]
        assert {"falls to zero", "steps", "black box"} <= set(row["checks"])
        assert row["kept_epoch"] == 1 + attacked.index(max(attacked))


@pytest.mark.parametrize(("method", "stop_images"), [("NIT", 0), ("NIT", 9), ("STBP-N", 9)])
def test_a_killed_run_resumes_to_the_same_weights(
    method: str, stop_images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("adversarial_training")
    splits = module.split(*module.load("mnist"))
    splits = type(splits)(*(torch.utils.data.TensorDataset(*p[:256]) for p in splits))
    setting = module.Setting(method, epochs=2, ema=0.9, stop_images=stop_images)
    start = module.Run(setting, 6, 0).net.fc1.weight.detach()

    def withstood(net: Any, *_: Any) -> float:
        """As if the first epoch were the best, so that its weights have to outlive the kill."""
        return 100 - (net.fc1.weight - start).norm().item()

    monkeypatch.setattr(module, "withstood", withstood)
    weights = []
    for cut in (False, True):
        checkpoint = tmp_path / f"{cut}.pt"
        run = module.Run(setting, 6, 0)
        if cut:
            save = module.Run._save

            def save_and_die(self: Any, path: Path, save: Any = save) -> None:
                save(self, path)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(module.Run, "_save", save_and_die)
                run.train(splits, checkpoint)
            run = module.Run(setting, 6, 0)
        run.train(splits, checkpoint, resume=cut)
        weights.append(run.net.state_dict())
        assert len(run.history) == 2
        assert run.best.get("epoch") == (1 if stop_images else None)
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    with pytest.raises(SystemExit, match="other settings"):
        module.Run(setting, 7, 0).train(splits, checkpoint, resume=True)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_epoch_that_withstands_most_validation_images_is_kept(
    ema: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("adversarial_training")
    splits = module.split(*module.load("mnist"))
    splits = type(splits)(*(torch.utils.data.TensorDataset(*p[:256]) for p in splits))
    seen: list[Any] = []
    scores = [20.0, 70.0, 70.0, 50.0]

    def withstood(net: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
        seen.append((net.state_dict()["1.weight"].clone(), images, labels))
        return scores[len(seen) - 1]

    monkeypatch.setattr(module, "withstood", withstood)
    setting = module.Setting("ReLU", epochs=4, ema=ema, stop_images=9)
    run = module.Run(setting, 6, 0)
    run.train(splits)
    assert [epoch["attacked"] for epoch in run.history] == scores
    assert run.best["epoch"] == 2
    assert torch.equal(run.net[1].weight, seen[1][0])
    plain = module.Run(module.Setting("ReLU", epochs=4, ema=ema), 6, 0)
    plain.train(splits)
    assert torch.equal(plain.net[1].weight, seen[3][0])  # training goes on as if nothing was asked
    validation = splits.validation.tensors
    for _, images, labels in seen:
        assert torch.equal(images, validation[0][-9:]) and torch.equal(labels, validation[1][-9:])


def test_the_attack_that_chooses_an_epoch_finds_what_there_is_to_find() -> None:
    module = importlib.import_module("adversarial_training")
    images, labels = torch.full((8, 1, 28, 28), 0.5), torch.zeros(8, dtype=torch.long)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2))
    found = []
    for margin in (0.9, 1.1):  # of what eps can change
        with torch.no_grad():
            net[1].weight.copy_(torch.tensor([[1 / 784], [0.0]]).expand(2, 784))
            net[1].bias.copy_(torch.tensor([0.1 * margin - 0.5, 0.0]))
        found.append(module.withstood(net, images, labels))
    assert found == [0.0, 100.0]


def test_moved_images_are_the_same_but_for_where_they_are() -> None:
    module = importlib.import_module("adversarial_training")
    images = torch.zeros(500, 1, 5, 6)
    images[:, 0, 2, 3] = torch.arange(1.0, 501)
    torch.manual_seed(0)
    moved = module.shifted(images, 1)
    assert torch.equal(moved.sum((1, 2, 3)), torch.arange(1.0, 501))
    places = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4)}
    corner = torch.zeros(50, 1, 3, 3)
    corner[:, 0, 0, 0] = 1
    assert set(module.shifted(corner, 1).sum((1, 2, 3)).tolist()) == {0.0, 1.0}


def test_a_trained_network_is_certified_with_the_steps_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([50.0, 40.0])  # the first epoch is kept, not the last
    example = importlib.import_module("adversarial_training")
    monkeypatch.setattr(example, "withstood", lambda *_: next(scores))
    run(tmp_path, monkeypatch, "--methods", "NIT", "--steps", "4")
    certify = importlib.import_module("certify")
    made: list[Any] = []
    monkeypatch.setattr(certify, "Spiking", lambda *args: made.append(Spiking(*args)) or made[-1])
    Spiking = importlib.import_module("adversarial_training").Spiking
    places = ["--checkpoint", str(tmp_path / "mnist_6_NIT_1"), "--output", str(tmp_path)]
    certify.main([*places, "--images", "4", "--draws", "100", "--sigmas", "0.25"])
    told = [(net.steps, net.scale, net.lif.sigma.max().item()) for net in made]
    assert told == [(4, 10.0, 1.5)]
    saved = example.Checkpoints(tmp_path / "mnist_6_NIT_1").newest()
    own = made[0].fc1.weight
    assert torch.equal(own, saved.progress["best"]["weights"]["fc1.weight"])
    assert not torch.equal(own, saved.parts["net"]["fc1.weight"])
    judged = json.loads((tmp_path / "adversarial_mnist_6.json").read_text())["rows"]
    assert not {"masked", "checks"} & set(judged[0])  # none was asked for
    rows = json.loads((tmp_path / "certified_mnist.json").read_text())["rows"]
    assert len(rows) == 3 and (tmp_path / "certified_mnist.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="No checkpoint in"):
        certify.main(["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path)])


@pytest.mark.full
@pytest.mark.parametrize("hidden", [50, 512])
def test_the_search_writes_its_trials_and_leaves_out_finished_ones(
    hidden: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("adversarial_search")
    few(module, monkeypatch)
    output = tmp_path / "search.json"
    arguments = ["--trials", "ReLU", "--images", "20", "--output", str(output)]
    arguments += ["--hidden", str(hidden)]
    trials = module.WIDE if hidden == 512 else module.TRIALS
    relu = [name for name in trials if name.startswith("ReLU")]
    trains: list[int] = []
    original = module.Run.train

    def train(self: Any, splits: Any) -> None:
        trains.append(1)
        original(self, splits)

    monkeypatch.setattr(module.Run, "train", train)
    for extra in ([], ["--resume"]):
        monkeypatch.setattr(sys, "argv", ["adversarial_search.py", *arguments, *extra])
        module.main()
        assert len(trains) == len(relu)
        found = json.loads(output.read_text())
        assert found["hidden"] == hidden
        assert [row["name"] for row in found["rows"]] == relu
        for row in found["rows"]:
            assert len(row["history"]) == row["setting"]["epochs"]
            assert ("attacked" in row["history"][0]) == (row["setting"]["stop_images"] > 0)
    text = output.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for name in relu)


@pytest.mark.full
def test_mean_rates_are_what_the_noisy_network_computes_on_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20,000 draws: within four standard errors of the mean logits."""
    module = importlib.import_module("adversarial_training")
    setting = module.Setting("NIT", sigma=1.2, scale=3.0, steps=5)
    spiking, rates = (
        module.network(6, module.replace(setting, method=method))
        for method in ("NIT", "mean rates")
    )
    spiking.fc1.bias.data = torch.linspace(
        -4, 6, 6
    )  # from neurons that are silent to some that never are
    rates.load_state_dict(spiking.state_dict(), strict=False)
    images = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        logits = spiking(images.repeat(20_000, 1, 1, 1)).view(20_000, 4, 10)
        expected = rates(images)
    error = (logits.std(0) / 20_000**0.5).max().item()
    torch.testing.assert_close(logits.mean(0), expected, rtol=0, atol=4 * error)


@pytest.mark.parametrize("name", ["mnist_50", "mnist_512", "fashion-mnist_50"])
def test_published_tables_are_those_of_the_numbers(name: str) -> None:
    module = importlib.import_module("adversarial_training")
    path = ROOT / "docs" / "results" / f"adversarial_{name}.json"
    assert path.with_suffix(".md").read_text() == module.table(json.loads(path.read_text()))


def test_a_resumed_run_takes_no_row_that_was_judged_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, monkeypatch, "--methods", "ReLU")
    assert run(tmp_path, monkeypatch, "--methods", "ReLU", "--resume")["rows"] == first["rows"]
    with pytest.raises(SystemExit, match="was judged with"):
        run(tmp_path, monkeypatch, "--methods", "ReLU", "--resume", "--apgd-steps", "3")


@pytest.mark.parametrize(("name", "trials"), [("", "TRIALS"), ("_512", "WIDE")])
def test_published_trials_are_those_of_the_search(name: str, trials: str) -> None:
    """What a trial is called is what was tried, in the search as it is now."""
    module = importlib.import_module("adversarial_search")
    path = ROOT / "docs" / "results" / f"adversarial_search{name}.json"
    rows = json.loads(path.read_text())["rows"]
    settings = {n: module.asdict(setting) for n, setting in getattr(module, trials).items()}
    assert {row["name"] for row in rows} == settings.keys()
    for row in rows:  # settings that are younger than a trial had their default then
        assert row["setting"].items() <= settings[row["name"]].items(), row["name"]
