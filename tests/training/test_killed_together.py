"""Several processes of which one is killed go on together to the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nit_snn.errors import CheckpointError
from nit_snn.training.checkpoints import Checkpoints
from nit_snn.training.latest_common_checkpoint import newest_of_all

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_killed_process_costs_no_number(tmp_path: Path) -> None:
    """Killed by the system in mid-epoch; torchrun starts all processes again."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", str(HERE / "killed_together.py")]
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        # Else processes that are started again find the addresses of those before.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    done = subprocess.run(
        [*command, str(tmp_path), "1", "6"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found, wanted = (
        [torch.load(tmp_path / run / f"weights {rank}.pt") for rank in range(2)]
        for run in ("broken", "unbroken")
    )
    for own, others in zip(found, wanted, strict=True):
        assert own.keys() == others.keys()
        assert all(torch.equal(own[name], others[name]) for name in own)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    resumed = [(tmp_path / "broken" / f"resumed {rank}").read_text() for rank in range(2)]
    # The other process may have written the sixth: each update waits for all, its end does not.
    assert resumed == ["5", "5"]
    numbers = [[p.name for p in Checkpoints(tmp_path / "broken" / r).paths] for r in "01"]
    assert numbers[0] == numbers[1] == [f"{n:08}.pt" for n in (6, 7, 8)]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch):
    """Stands in for a second process, which says what is put in here."""
    said: list[object] = []

    def gather(told: list[object], own: object) -> None:
        told[:] = [own, *said]

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    return said


def test_all_go_back_to_what_all_have(tmp_path: Path, others: list[object]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for update in (1, 2, 3, 4):
        checkpoints.save({"update": update})
    others.append(([1, 2, 3], True, ""))
    assert newest_of_all(checkpoints).progress == {"update": 3}
    assert [int(path.stem) for path in checkpoints.paths] == [2, 3]
    assert int(checkpoints.save().stem) == 4  # the number that the other process gives its next


def test_a_damaged_file_counts_as_none(tmp_path: Path, others: list[object]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for update in (1, 2, 3):
        newest = checkpoints.save({"update": update})
    newest.write_bytes(newest.read_bytes()[:-9])
    others.append(([1, 2, 3], True, ""))
    assert newest_of_all(checkpoints).progress == {"update": 2}
    assert not newest.exists()


def test_what_one_has_and_the_others_have_not_is_no_start(
    tmp_path: Path, others: list[object]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    others.append(([], False, ""))
    assert newest_of_all(checkpoints) is None
    checkpoints.save()
    with pytest.raises(CheckpointError, match=r"process 0: \[1\], process 1: \[\]"):
        newest_of_all(checkpoints)
    assert len(checkpoints.paths) == 1


def test_other_settings_in_one_process_stop_all(tmp_path: Path, others: list[object]) -> None:
    Checkpoints(tmp_path, settings={"lr": 1.0}).save()
    others.append(([1], True, ""))
    with pytest.raises(CheckpointError, match=r"together\. process 0: .*lr: saved 1\.0, here 2\.0"):
        newest_of_all(Checkpoints(tmp_path, settings={"lr": 2.0}))
    others[:] = [([], True, "its disk is gone")]
    with pytest.raises(CheckpointError, match="process 1: its disk is gone"):
        newest_of_all(Checkpoints(tmp_path))
