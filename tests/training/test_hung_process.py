"""One of two processes hangs or is gone: the other ends with an error that says what to do."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import SnnTorchNet
from test_distributed import free_port

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import DistributedError
from nit_snn.training.checkpoints import Checkpoints
from nit_snn.training.latest_common_checkpoint import newest_of_all

PATIENCE = 6.0


def work(
    rank: int, port: int, strike: signal.Signals, start: Barrier, folder: str, told: Connection
) -> None:
    """Two passes, between which process 1 sends the signal to itself."""
    if rank:
        told.close()  # so that nobody but process 0 holds it open
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    start.wait()
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE))
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=4, credit="none", seed=1, shard="replicas")
    for update in range(2):
        if rank and update:
            os.kill(os.getpid(), strike)
        net.zero_grad()
        with learner.record():
            losses = net(learner.expand(torch.ones(5, 4))).sum(1)
        began = time.monotonic()
        if update:
            with pytest.raises(DistributedError) as error:
                learner.backward(losses)
            waited = time.monotonic() - began
            with pytest.raises(DistributedError, match="newest checkpoint"):
                newest_of_all(Checkpoints(folder))
            told.send((str(error.value), waited, [p.grad for p in net.parameters()]))
        else:
            learner.backward(losses)


@pytest.mark.slow
@pytest.mark.parametrize("strike", [signal.SIGSTOP, signal.SIGKILL], ids=lambda s: s.name)
def test_the_others_do_not_wait_for_ever(strike: signal.Signals, tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    common = (free_port(), strike, context.Barrier(2), str(tmp_path), theirs)
    processes = [context.Process(target=work, args=(rank, *common)) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        theirs.close()
        assert ours.poll(120), "Process 0 waits for ever."
        try:
            message, waited, gradients = ours.recv()
        except EOFError:
            pytest.fail("Process 0 has ended otherwise; see what it printed.")
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert "Process 0 of 2" in message and "init_process_group" in message
    assert waited < (3 * PATIENCE if strike is signal.SIGSTOP else PATIENCE)
    assert gradients == [None] * len(gradients)  # no update can be made of half a gradient
