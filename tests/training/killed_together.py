"""What `test_killed_together.py` runs in several processes: a training of eight updates, twice.

    torchrun --nproc-per-node 2 --max-restarts 1 killed_together.py FOLDER RANK UPDATE

Process RANK is killed, the first time only, before it writes the checkpoint of that update. When
all have gone on to the end, they train once more, unbroken; the weights are in FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import SnnTorchNet

from nit_snn import NITLearner, swap_neurons
from nit_snn.training.batches import Batches
from nit_snn.training.checkpoints import Checkpoints
from nit_snn.training.latest_common_checkpoint import newest_of_all


def train(folder: Path, strike: Callable[[int], None]) -> None:
    rank = dist.get_rank()
    torch.manual_seed(0)
    x = torch.rand(24, 4)
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=4, credit="none", seed=1, shard="samples")
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    torch.manual_seed(100 + rank)  # other batches in each process
    batches = Batches(len(x), 6)
    parts = {"net": net, "learner": learner, "optimizer": optimizer, "batches": batches}
    checkpoints = Checkpoints(folder / str(rank), keep=3)
    saved, update = newest_of_all(checkpoints), 0
    if saved is not None:
        saved.restore(**parts)
        update = saved.progress["update"]
        (folder / f"resumed {rank}").write_text(str(update))
    while batches.epoch < 2:
        for rows in batches:
            optimizer.zero_grad()
            with learner.record():
                losses = (net(learner.expand(x[rows])).sum(1) - 1).square().detach()
            learner.backward(losses)
            optimizer.step()
            update += 1
            strike(update)
            checkpoints.save({"update": update}, **parts)
    torch.save(net.state_dict(), folder / f"weights {rank}.pt")


def main(folder: str, rank: str, update: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    struck = dist.get_rank() == int(rank) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

    def strike(now: int) -> None:
        if struck and now == int(update):
            os.kill(os.getpid(), signal.SIGKILL)

    train(Path(folder) / "broken", strike)
    train(Path(folder) / "unbroken", lambda now: None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
