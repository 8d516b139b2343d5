"""Checkpoints: whole or not at all, checked when read, restored all or none, and harmless."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SnnTorchNet

from nit_snn import NITLearner, NITSPlus, swap_neurons
from nit_snn.errors import CheckpointError, DamagedCheckpointError, DamagedCheckpointWarning
from nit_snn.training.batches import Batches
from nit_snn.training.checkpoint_file import read, write_whole
from nit_snn.training.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]


class Net(SnnTorchNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output spikes, (N, 3), summed over time; no membrane is read."""
        mem1, mem2, spikes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes).sum(0)


def parts(**options: Any) -> dict[str, Any]:
    """A network and all that trains it."""
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=4, seed=1, **options)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    return {
        "net": net,
        "learner": learner,
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50),
        "plus": NITSPlus(learner, after=3),
        "batches": Batches(12, 5),
    }


def train(own: dict[str, Any], steps: int) -> None:
    """So many updates, over as many epochs as they need."""
    x = torch.linspace(-1, 2, 48).reshape(12, 4)
    while steps:
        for rows in own["batches"]:
            own["optimizer"].zero_grad()
            with own["learner"].record():
                xr = own["learner"].expand(x[rows])
                out = own["net"](xr)
                # Torch's global generator has its part in the loss.
                losses = (out - torch.rand(())).square().sum(1)
            own["learner"].backward(losses)
            own["optimizer"].step()
            own["schedule"].step()
            steps -= 1
            if not steps:
                return
        own["plus"].step()


def states(own: dict[str, Any]) -> list[Any]:
    numbers = [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]
    return [{name: copy.deepcopy(part.state_dict()) for name, part in own.items()}, numbers]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise_reuse": True},
        {"credit": "none", "recompute": True},
        {"antithetic": True, "learn_sigma": True},
        {"credit": "layers"},
        {"credit": "layers", "residual": 1},
        {"credit": "time", "conditional": True, "residual": 1},
    ],
)
def test_what_is_restored_goes_on_as_if_nothing_had_been(
    options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    whole = parts(**options)
    train(whole, 7)  # into the third epoch, and beyond the switch of NIT-S+ soon after
    Checkpoints(tmp_path).save({"best": 0.5}, **whole)
    train(whole, 8)
    torch.manual_seed(99)
    resumed = parts(**options)
    train(resumed, 2)
    saved = Checkpoints(tmp_path).newest()
    assert saved is not None and saved.progress == {"best": 0.5}
    saved.restore(**resumed)
    train(resumed, 8)
    assert equal(states(whole), states(resumed))


def test_all_random_numbers_are_restored(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    saved = read(Checkpoints(tmp_path).save())
    first = draw()
    draw()
    saved.restore()
    assert draw() == first


def test_the_first_start_finds_nothing(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").newest() is None
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_the_newest_are_kept_and_numbers_go_on(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("another's")
    for number in range(4):
        Checkpoints(tmp_path, keep=2).save({"number": number})
    assert [path.name for path in Checkpoints(tmp_path).paths] == ["00000003.pt", "00000004.pt"]
    assert Checkpoints(tmp_path).newest().progress == {"number": 3}
    assert (tmp_path / "notes.pt").exists()


def test_it_is_due_after_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path)
    assert not checkpoints.due(60)
    now[0] = 160.0
    assert checkpoints.due(60)
    checkpoints.save()
    assert not checkpoints.due(60) and checkpoints.due(0)


def test_a_file_is_one_of_torch_save(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(net=torch.nn.Linear(2, 1))
    state = torch.load(path, weights_only=True)
    assert list(state["parts"]["net"]) == ["weight", "bias"]


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "gone bad at the end"])
def test_a_damaged_file_is_refused_and_the_one_before_it_taken(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(2):
        path = checkpoints.save({"number": number}, net=torch.nn.Linear(9, 9))
    content = bytearray(path.read_bytes())
    if damage == "byte":
        content[len(content) // 2] ^= 1
    elif damage == "gone bad at the end":
        content[-5] ^= 1
    path.write_bytes(content[: {"cut": 1000, "empty": 0}.get(damage, len(content))])
    with pytest.raises(DamagedCheckpointError, match=r"00000002\.pt is (cut short|damaged)"):
        read(path)
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(DamagedCheckpointWarning, match=r"00000002\.pt .* The one before it"):
        assert checkpoints.newest().progress == {"number": 0}
    checkpoints.save({"number": 7})  # the damaged one gives way, not the whole one
    assert [p.name for p in checkpoints.paths] == ["00000001.pt", "00000003.pt"]
    for path in checkpoints.paths:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole.*Start anew"):
        Checkpoints(tmp_path).newest()


def test_every_single_byte_counts(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(net=torch.nn.Linear(1, 1))
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(DamagedCheckpointError):
            read(path)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Checkpoints(tmp_path, settings={"lr": 0.1, "steps": 8, "seed": 0}).save()
    other = {"lr": 0.2, "steps": 8, "device": "cpu"}
    with pytest.raises(CheckpointError, match="other settings") as found:
        Checkpoints(tmp_path, settings=other).newest()
    message = str(found.value)
    assert "lr: saved 0.1, here 0.2" in message and "Resume with the same" in message
    assert "seed: saved 0, here None" in message and "steps" not in message
    assert Checkpoints(tmp_path).newest().settings == {"lr": 0.1, "steps": 8, "seed": 0}


def test_parts_have_to_be_the_same(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 1)
    saved = read(Checkpoints(tmp_path).save(net=net, schedule=None))
    saved.restore(net=net, learner=None)
    with pytest.raises(CheckpointError, match="lacks optimizer"):
        saved.restore(net=net, optimizer=torch.optim.SGD(net.parameters()))
    with pytest.raises(CheckpointError, match="also holds net"):
        saved.restore()


@pytest.mark.parametrize("wrong", ["net", "learner", "optimizer", "schedule", "batches", "random"])
def test_a_refusal_leaves_everything_as_it_was(wrong: str, tmp_path: Path) -> None:
    own = parts()
    train(own, 4)
    saved = read(Checkpoints(tmp_path).save(**own))
    train(own, 5)
    if wrong == "random":
        saved.random["python"] = (3, (), None)
    elif wrong == "net":
        saved.parts["net"]["fc2.bias"] = torch.zeros(4)
    elif wrong == "schedule":
        saved.parts["schedule"] = "no dict"
    else:
        saved.parts[wrong].popitem()
    before, schedule = states(own), dict(vars(own["schedule"]))
    if wrong != "schedule":
        saved.parts["schedule"]["new"] = 1  # it would take that, and has to lose it again
    with pytest.raises(CheckpointError, match="random" if wrong == "random" else wrong):
        saved.restore(**own)
    assert equal(states(own), before) and vars(own["schedule"]) == schedule
    train(own, 2)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_strangers_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "executed"
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"plain values.*system"):
        checkpoints.save({"best": Hostile(mark)})
    assert not mark.exists() and not checkpoints.paths
    with monkeypatch.context() as patch:  # as somebody else would write it
        patch.setattr(torch, "load", lambda *_, **__: None)
        path = checkpoints.save({"best": Hostile(mark)})
    with pytest.raises(CheckpointError, match=r"posix\.system\. Nothing in it was executed"):
        read(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file was harmless, and the test shows nothing"


@pytest.mark.parametrize("content", [[1], {"parts": {}}, {"format": 1}, {"format": 2}])
def test_other_files_of_torch_are_told_from_checkpoints(content: Any, tmp_path: Path) -> None:
    from nit_snn.training.checkpoint_file import packed

    path = tmp_path / "00000001.pt"
    path.write_bytes(packed(content))
    with pytest.raises(CheckpointError, match=r"no checkpoint|has no usable|has format 2"):
        Checkpoints(tmp_path).newest()
    torch.save({"net": {}}, path)
    with pytest.raises(DamagedCheckpointError, match="its checksum is missing"):
        read(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DamagedCheckpointError):
        read(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The kernel's own ENOSPC: the new file's writes go to a device that has no space left."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = checkpoints.save({"number": 1})
    (tmp_path / "00000002.pt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left.*00000001\.pt is still") as found:
        checkpoints.save({"number": 2})
    assert found.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == [first]
    assert Checkpoints(tmp_path).newest().progress == {"number": 1}
    checkpoints.save({"number": 2})  # there is space again
    assert Checkpoints(tmp_path).newest().progress == {"number": 2}


LIMITED = """
import resource, signal, sys
import torch
from nit_snn.training.checkpoints import Checkpoints
from nit_snn.errors import CheckpointError
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save({"number": 1}, net=torch.nn.Linear(2, 2))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    checkpoints.save({"number": 2}, net=torch.nn.Linear(200, 200))
except CheckpointError as error:
    print(error.__cause__.errno, checkpoints.newest().progress)
"""


@pytest.mark.full
def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    """Half of the file is written when the kernel refuses the rest."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout.strip() == f"{errno.EFBIG} {{'number': 1}}", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["00000001.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_whatever_fails_the_old_file_stays(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_whole(path, b"old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, call, fail)
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_batches_go_on_in_the_midst_of_an_epoch() -> None:
    torch.manual_seed(3)
    one = Batches(11, 3)
    assert len(one) == 4 and len(Batches(11, 3, drop_last=True)) == 3
    epochs = [torch.cat(list(one)) for _ in range(2)]
    assert all(sorted(rows.tolist()) == list(range(11)) for rows in epochs)
    assert not torch.equal(*epochs) and (one.epoch, one.done) == (2, 0)
    for _, _rows in zip(range(2), one, strict=False):
        pass
    state = copy.deepcopy(one.state_dict())
    rest = [rows.tolist() for rows in one]
    numbers = torch.get_rng_state()
    other = Batches(11, 3)
    other.load_state_dict(state)
    assert [rows.tolist() for rows in other] == rest and other.epoch == 3
    assert torch.equal(torch.get_rng_state(), numbers)
    with pytest.raises(CheckpointError, match="other data"):
        Batches(12, 3).load_state_dict(state)
    with pytest.raises(CheckpointError, match="done: 5"):
        other.load_state_dict({**state, "done": 5})
    with pytest.raises(CheckpointError, match="order"):
        other.load_state_dict({**state, "order": torch.zeros(3)})
    with pytest.raises(ValueError, match="no batch"):
        Batches(2, 3, drop_last=True)


def test_a_data_loader_takes_batches() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(7))
    loader = torch.utils.data.DataLoader(data, batch_sampler=Batches(7, 3))
    assert sorted(torch.cat([rows for (rows,) in loader]).tolist()) == list(range(7))
