"""The numbers of README, results.md and accuracy.md are those of the committed results."""

from __future__ import annotations

import importlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
#: Results in rows; those by task belong to no table of these pages.
RESULTS = [
    path
    for path in sorted((ROOT / "docs" / "results").glob("*.json"))
    if "rows" in json.loads(path.read_text())
]
#: What docs/robustness.md shows; the others are accuracies, in docs/accuracy.md.
ROBUSTNESS = re.compile(r"(fashion-)?mnist|(adversarial|certified|masking)_.*")
ACCURACIES = [p for p in RESULTS if not ROBUSTNESS.fullmatch(p.stem)]
README = (ROOT / "README.md").read_text()
RESULTS_PAGE = (ROOT / "docs" / "results.md").read_text()
ACCURACY = (ROOT / "docs" / "accuracy.md").read_text()
COLUMNS = ("test", "test_mean_of_16_draws", "test_noise_off")


def table() -> dict[tuple[str, str], list[str]]:
    """(file, method) -> the cells of that row."""
    rows = re.findall(r"^\|(.+)\|$", ACCURACY, re.M)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    found = {}
    for file, _, method, *values in cells:
        match = re.search(r"results/([\w.-]+\.json)", file)
        if match:
            found[match[1], method] = values
    return found


@pytest.mark.parametrize("path", ACCURACIES, ids=[p.stem for p in ACCURACIES])
def test_table_shows_every_result_as_it_was_measured(path: Path) -> None:
    shown = table()
    results: dict[str, Any] = json.loads(path.read_text())
    for row in results["rows"]:
        expected = ["-" if row.get(c) is None else f"{row[c]:.2f}" for c in COLUMNS]
        assert shown[path.name, row["method"].upper()] == expected


def test_table_shows_nothing_else() -> None:
    names = {p.name for p in ACCURACIES}
    assert names and {file for file, _ in table()} == names


@pytest.mark.parametrize("path", RESULTS, ids=[p.stem for p in RESULTS])
def test_results_say_how_to_get_them_again(path: Path) -> None:
    results = json.loads(path.read_text())
    if path.stem.startswith("adversarial_search"):  # each trial by a command of its own
        told = [{**row["by"], "images": row["images"]} for row in results["rows"]]
    else:
        told = [results]
    for each in told:
        assert re.match(r"python (examples|benchmarks)/", each["command"])
        assert {"seed", "versions", "machine", "images", "dataset"} <= set(each)
        assert (ROOT / each["command"].split()[1]).exists()


def test_networks_are_those_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rows = json.loads((ROOT / "docs" / "benchmarks" / "networks.json").read_text())["rows"]
    shown = importlib.import_module("networks").table(rows)
    assert shown in README and shown in RESULTS_PAGE
    ratios = []
    for network in dict.fromkeys(row["network"] for row in rows):
        best = [
            max(
                (r for r in rows if r["network"] == network and r["method"] == method),
                key=lambda row: row["validation"],
            )
            for method in ("auto", "STBP")
        ]
        ratios.append(best[0]["cpu_seconds"] / best[1]["cpu_seconds"])
    assert f"in {min(ratios):.1f} to {max(ratios):.1f} times its CPU time" in RESULTS_PAGE
    assert len(rows) == 132 and {len(row["versions"]) for row in rows} == {2}


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_accuracy_table_shows_means_and_spreads_of_the_benchmark(dataset: str) -> None:
    path = ROOT / "docs/benchmarks" / f"accuracy_{dataset}.json"
    rows = json.loads(path.read_text())["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert {len([r for r in rows if r["method"] == m]) for m in methods} == {3}
    for method in methods:
        cells = []
        for column in COLUMNS:
            found = [r[column] for r in rows if r["method"] == method and r.get(column)]
            shown = (
                f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f}" if found else "-"
            )
            cells.append(shown)
        line = f"| [{path.name}](benchmarks/{path.name}) | {method.upper()} | "
        assert line + " | ".join(cells) + " |" in ACCURACY


def test_variance_ratios_are_those_of_the_benchmark() -> None:
    networks = json.loads((ROOT / "docs/benchmarks/gradient_variance.json").read_text())["networks"]

    def span(network: str, name: str, over: str, key: str) -> tuple[float, float]:
        stages = networks[network]
        rows = [{row["estimator"]: row[key] for row in stage["rows"]} for stage in stages]
        ratios = [row[over] / row[name] for row in rows]
        return min(ratios), max(ratios)

    shallow, deep, long = "784-50-10", "784-50-50-50-10", "784-50-50-10, long memory"
    fitted = "784-50-10, fitted"
    plain, others, best = "plain Eq. 8", "leave-one-out", "control time, pathwise"
    for network in (shallow, fitted, deep, long):
        cells = [
            "{:.0f} to {:.0f}".format(*span(network, name, plain, "variance_x_time"))
            for name in (others, best)
        ]
        assert f"| {network} | {' | '.join(cells)} |" in RESULTS_PAGE


def test_speed_is_that_of_the_benchmark() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    results = json.loads((ROOT / "docs/benchmarks/step.json").read_text())
    single = results["milliseconds_of_operations"]
    assert f"numbers, {single['normal numbers of a pass']:.1f} ms" in text
    readout = "readout of a pass, forth and back: "
    for row, fast, slow, digits in (
        ("spikes", "spikes: compared into numbers", "spikes: compared, then converted", 2),
        ("resets", "reset: multiplied", "reset: masked_fill", 2),
        ("normal density", "density far away: as a power of 2", "density far away: as exp", 2),
        ("readout", f"{readout}as 16", f"{readout}10 outputs", 1),
    ):
        now, before = (f"{single[name]:.{digits}f}" for name in (fast, slow))
        assert re.search(rf"^\| {row}\b.*\| {now} \|.*\| {before} \|$", text, re.M), row
    compiled = [single[f"a step of a layer, {way}"] for way in ("torch.compile", "as it is")]
    assert "takes {:.2f} ms there, against {:.2f}".format(*compiled) in text
    for row in results["rows"]:
        bptt = row["method"].endswith("BPTT")
        one = row["milliseconds"] / row["replicas"]
        ratio = "-" if bptt else f"{row['bptt_over_one_replica']:.1f}"
        assert f"| {row['method']} | {row['milliseconds']:.2f} | {one:.3f} | {ratio} |" in text
    named = ("NIT, default", "NIT, noise from a table")
    of = {row["method"]: f"1/{row['bptt_over_one_replica']:.0f}" for row in results["rows"]}
    jelly, torch_ = (
        [of[f"{frame}, {way}"] for way in named] for frame in ("SpikingJelly", "snnTorch")
    )
    said = " ".join(RESULTS_PAGE.split())
    assert f"in SpikingJelly takes {jelly[0]} of a step" in said
    assert (
        f"{jelly[1]} with `noise_reuse=True`. In snnTorch it is {torch_[0]} and {torch_[1]}."
        in said
    )
    steps = {row["method"]: row["milliseconds"] for row in results["rows"]}
    for frame, way, said in (
        ("snnTorch", "NIT, default", "takes {} times as long as a step of BPTT in snnTorch."),
        ("SpikingJelly", "NIT, default", "In SpikingJelly it takes {} times as long."),
        ("SpikingJelly", named[1], "With noise from a table it takes {} times as long there."),
    ):
        longer = steps[f"{frame}, {way}"] / steps[f"{frame}, BPTT"]
        assert said.format(f"{longer:.1f}") in text
    for name, row in (("step", "with `keep"), ("step_plain_allocator", "without it")):
        lines = json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text())["linearity"]
        assert [line["what"] for line in lines] == [
            f"{frame}, {over}"
            for frame in ("snnTorch", "SpikingJelly")
            for over in ("steps", "replicas")
        ]
        cells = " | ".join(f"{100 * line['worst_point_off_by']:.0f}%" for line in lines)
        assert re.search(rf"^\| {row}.*\| {cells} \|$", text, re.M), row


def test_the_convolution_takes_as_long_as_its_quiet_epochs() -> None:
    (row,) = json.loads((ROOT / "docs/results/conv.json").read_text())["rows"]
    quiet = statistics.mean(epoch["seconds"] for epoch in row["history"][1:3])
    epochs = len(row["history"])
    assert f"takes {round(quiet, -1):.0f} seconds for each of {epochs} epochs" in ACCURACY
    assert f"{quiet * epochs / 60:.0f} minutes in all" in ACCURACY


def test_memory_is_that_of_the_benchmark() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    results = json.loads((ROOT / "docs/benchmarks/memory.json").read_text())
    by_method: dict[str, dict[int, Any]] = {}
    for row in results["rows"]:
        by_method.setdefault(row["method"], {})[row["steps"]] = row
    for method, rows in by_method.items():
        cells = [f"{r['resident'] / 2**20:.1f} ({r['tensors'] / 2**20:.1f})" for r in rows.values()]
        assert f"| {method} | {' | '.join(cells)} |" in text
    names = ("snnTorch, BPTT", "snnTorch, NIT, recompute", "snnTorch, layers")
    rival, ours, layers = (by_method[name][200] for name in names)
    ratios = [f"1/{rival[what] / ours[what]:.0f}" for what in ("resident", "tensors")]
    assert f"takes {ratios[0]} of what" in text and f"of tensors alone {ratios[1]}." in text
    assert f"takes {ratios[0]} of the memory" in RESULTS_PAGE
    more = [layers[what] / rival[what] for what in ("resident", "tensors")]
    assert f"{more[0]:.1f} times what BPTT takes resident" in text
    assert f"and {more[1]:.1f} times of tensors" in text
    bits = results["bits_for_a_presynaptic_spike"]
    grown = [bits[what]["snnTorch, NIT, recompute"] for what in ("resident", "tensors")]
    assert f"grows by {grown[0]:.2f} bits" in text and f"by {grown[1]:.2f} bits of tensors" in text


def test_times_to_accuracy_are_those_of_the_benchmark() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    results = json.loads((ROOT / "docs/benchmarks/time_to_accuracy.json").read_text())
    rows = {row["method"]: row for row in results["rows"]}
    for method, row in rows.items():
        low, high = row["spread"]
        assert (
            f"| {method} | {row['settings']['batch_size']} | {row['median_seconds']:.2f} "
            f"({low:.2f} to {high:.2f}) | {row['over_reference']:.2f} | {row['median_steps']:.0f} "
            f"| {row['milliseconds_of_a_step']:.2f} |"
        ) in text
    own = {"snnTorch, BPTT": 0, "SpikingJelly, BPTT": 1, "SpikingJelly, NIT": 2}
    shown = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", text, re.M)
    for method, column in own.items():
        settings = rows[method]["settings"]
        for name, *cells in shown:
            cell = cells[column].strip("`")
            assert cell == str(settings.get(name, "-")), (method, name)
    ours = rows["SpikingJelly, NIT"]
    assert f"takes {ours['over_reference']:.2f} times as long as snnTorch's BPTT" in text
    rival = rows["SpikingJelly, BPTT"]["median_seconds"]
    assert f"{ours['median_seconds'] / rival:.2f} times as long as SpikingJelly's" in text


def test_quick_start_prints_what_the_readme_shows() -> None:
    """As a new user runs it. On another processor the accuracy may differ by a few images."""
    code = README.split("```python\n")[1].split("```")[0]
    shown = README.split("```\nnit_snn: ")[1].split("```")[0]
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    chosen, accuracy = shown.splitlines()
    assert chosen in done.stdout + done.stderr
    found, expected = (
        float(re.search(r"accuracy ([\d.]+)%", t)[1]) for t in (done.stdout, accuracy)
    )
    assert abs(found - expected) < 2


def test_it_is_short() -> None:
    """Words of prose and tables; code and addresses do not count."""
    text = re.sub(r"```.*?```", "", README, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    assert len(re.findall(r"[A-Za-z0-9][\w'.,%-]*", text)) <= 850


def test_robustness_is_that_of_the_tables() -> None:
    said = " ".join(RESULTS_PAGE.split())
    tables = json.loads((ROOT / "docs/results/mnist.json").read_text())["rows"]
    rows = {(row["method"], row["protocol"]): row for row in tables}
    nit, stbp = rows["NIT", "paper"]["attacks"]["PGD"], rows["STBP", "paper"]["attacks"]["PGD"]
    assert f"NIT keeps {nit:.1f}% of MNIST under PGD, and so does plain STBP ({stbp:.1f}%)" in said
    worst = [rows[method, "adaptive"]["worst"] for method in ("NIT", "STBP")]
    assert "leaves {:.1f}% and {:.1f}%.".format(*worst) in said
    trained = json.loads((ROOT / "docs/results/adversarial_mnist_50.json").read_text())["rows"]

    def mean(method: str, key: str) -> float:
        return statistics.mean(row[key] for row in trained if row["method"] == method)

    text = f"keeps {mean('NIT', 'worst'):.1f}% in the worst case of {len(trained[0]['attacks'])}"
    assert f"{text} attacks at {mean('NIT', 'clean'):.1f}% clean" in said
    assert f"of the same size keeps {mean('ReLU', 'worst'):.1f}%" in said
    assert f"trained with surrogates {mean('STBP-N', 'worst'):.1f}% (means of two runs" in said
    wide = json.loads((ROOT / "docs/results/adversarial_mnist_512.json").read_text())["rows"]
    wider = "784-512-10 keeps {:.1f}%, and {:.1f}% with ReLU (one run each)"
    assert wider.format(*(row["worst"] for row in wide)) in said
    page = (ROOT / "docs/robustness.md").read_text()
    for dataset in ("mnist", "fashion-mnist"):
        for line in (ROOT / f"docs/results/{dataset}.md").read_text().splitlines():
            assert line in page
    for name in ("mnist_50", "mnist_512", "fashion-mnist_50"):
        for line in (ROOT / f"docs/results/adversarial_{name}.md").read_text().splitlines():
            assert line in page


def test_every_robustness_result_is_named_where_it_is_shown() -> None:
    page = (ROOT / "docs/robustness.md").read_text()
    for path in RESULTS:
        if ROBUSTNESS.fullmatch(path.stem):
            assert f"results/{path.name}" in page
            results = json.loads(path.read_text())
            trials = path.stem.startswith("adversarial_search")
            for by in [row["by"] for row in results["rows"]] if trials else [results]:
                assert f"`{by['command'].replace(' --resume', '')}`" in page
