"""examples/paper_tables.py, from end to end, on the embedded images and at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nit_snn import NITLearner, swap_neurons

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.full
def test_the_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torchattacks")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    import paper_tables

    monkeypatch.setattr(paper_tables, "paper", few(paper_tables.paper, iterations=2, samples=4))
    monkeypatch.setattr(
        paper_tables, "adaptive", few(paper_tables.adaptive, steps=3, iterations=2, samples=4)
    )
    tiny = [
        *("--methods", "STBP", "NIT", "NIT-S+"),
        *("--epochs", "1", "--batch-size", "500", "--images", "8", "--check-images", "4"),
        *("--draws", "2", "--queries", "5", "--apgd-steps", "3", "--steps", "3"),
        *("--work", str(tmp_path / "work"), "--output", str(tmp_path)),
    ]
    monkeypatch.setattr(paper_tables, "check", few(paper_tables.check, epsilons=(0.1, 1.0)))
    paper_tables.main(tiny)
    written = (tmp_path / "mnist.json").read_text()
    results = json.loads(written)
    assert {"dataset", "command", "seed", "versions", "machine", "rows"} <= set(results)
    assert [(row["method"], row["protocol"]) for row in results["rows"]] == [
        (method, protocol)
        for method in ("STBP", "NIT", "NIT-S+")
        for protocol in ("paper", "adaptive")
    ]
    for row in results["rows"]:
        assert row["worst"] <= min([row["clean"], *row["attacks"].values()])
        assert all(0 <= value <= 100 for value in row["attacks"].values())
    assert set(results["rows"][0]["attacks"]) == set(paper_tables.ATTACKS)
    assert "transfer from a twin" in results["rows"][3]["attacks"]
    table = (tmp_path / "mnist.md").read_text()
    assert "| NIT | " in table and "(92.3)" in table and "NIT-S+" in table
    assert (tmp_path / "mnist.png").stat().st_size > 1000

    assert "by chance" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1

    monkeypatch.setattr(paper_tables.F, "cross_entropy", None)  # all is there
    paper_tables.main([*tiny, "--resume"])
    again = json.loads((tmp_path / "mnist.json").read_text())["rows"]
    assert [row["attacks"] for row in again] == [row["attacks"] for row in results["rows"]]
    compared = ["stronger attack" in row["checks"] for row in again]
    assert compared == [row["protocol"] == "paper" for row in again]
    with pytest.raises(SystemExit, match=r"lr: saved 0\.01, here 0\.5"):
        paper_tables.main([*tiny, "--resume", "--lr", "0.5"])


def few(protocol, **fewer):  # type: ignore[no-untyped-def]
    """A protocol or a check with fewer of what takes long."""
    return lambda *args, **options: protocol(*args, **{**options, **fewer})


def test_signed_spikes_are_the_same_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights W and bias b of a signed network do what 2 W and b - sum W do in a plain one."""
    pytest.importorskip("torchattacks")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import paper_tables

    signed, plain = (paper_tables.Net(steps=5, signed=sends) for sends in (True, False))
    state = signed.state_dict()
    for name in ("fc1", "fc2"):
        state[f"{name}.bias"] = state[f"{name}.bias"] - state[f"{name}.weight"].sum(1)
        state[f"{name}.weight"] = 2 * state[f"{name}.weight"]
    plain.load_state_dict(state)
    assert not plain.mean.any()
    images = torch.rand(50, 1, 28, 28)
    rates = signed(signed.encode(images))
    assert 0 < rates.mean() < 1
    same = rates == plain(plain.encode(images))
    assert same.float().mean() > 0.99  # a membrane may lie within rounding of its threshold


def test_the_sign_rule_points_along_the_gradient_where_spikes_are_signed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchattacks")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import paper_tables

    cosines = {}
    for signed in (True, False):
        torch.manual_seed(0)
        net = paper_tables.Net(steps=4, signed=signed)
        swap_neurons(net, sigma=1.0)
        x, y = torch.rand(32, 784), torch.arange(32) % 10
        found = []
        for options in ({"rule": "nit-s"}, {"credit": "time", "conditional": True}):
            options = {"credit": "readout", "residual": 1, **options}
            learner = NITLearner(net, replicas=256, seed=1, **options)
            net.zero_grad()
            with learner.record():
                xr, yr = learner.expand(x, y)
                losses = F.cross_entropy(net(xr), yr, reduction="none")
            learner.backward(losses)
            learner.close()
            found.append(net.fc2.weight.grad.flatten().clone())
        cosines[signed] = F.cosine_similarity(*found, dim=0).item()
    assert cosines[True] > 0.8 > 0.5 > cosines[False]
