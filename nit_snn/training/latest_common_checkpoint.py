"""The checkpoint that several processes go on from together, each with a directory of its own.

Processes that are killed do not stop at the same update: one may have written a checkpoint that the
others had not come to. So they agree on the newest that is whole everywhere.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .checkpoints import Checkpoints
from .distributed import together


def newest_of_all(checkpoints: Checkpoints) -> Checkpoint | None:
    """The newest checkpoint that is whole in every process of torch.distributed.

    Every process has to call it, and has to save after the same updates. Two steps apart they can
    never be, since each update waits for all: `keep=3` leaves one in common even if the
    newest of one process is damaged. What is newer than the one in common is removed.

    Args:
        checkpoints: Those of this process alone.

    Returns:
        The checkpoint of this process; None if no process has any.

    Raises:
        CheckpointError: None is whole everywhere, or one cannot be taken, in any process: then all
            of them raise.
        DistributedError: Another process hangs or has ended, or the exchange failed.

    Example:
        >>> import os, tempfile, torch.distributed as dist
        >>> os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        >>> dist.init_process_group("gloo", rank=0, world_size=1)
        >>> checkpoints = Checkpoints(f"{tempfile.mkdtemp()}/{dist.get_rank()}", keep=3)
        >>> newest_of_all(checkpoints) is None
        True
        >>> path = checkpoints.save({"epoch": 3})
        >>> newest_of_all(checkpoints).progress
        {'epoch': 3}
        >>> dist.destroy_process_group()
    """
    found, problem = {}, ""
    try:
        found = {int(saved.path.stem): saved for saved in checkpoints.whole()}
    except CheckpointError as error:
        problem = str(error)
    told: list[Any] = [None] * dist.get_world_size()
    with together():
        dist.all_gather_object(told, (sorted(found), bool(checkpoints.paths), problem))
    problems = [f"process {rank}: {text}" for rank, (*_, text) in enumerate(told) if text]
    if problems:
        raise CheckpointError(f"The processes cannot go on together. {' '.join(problems)}")
    if not any(there for _, there, _ in told):
        return None
    common = set.intersection(*(set(numbers) for numbers, *_ in told))
    if not common:
        whole = ", ".join(f"process {rank}: {numbers}" for rank, (numbers, *_) in enumerate(told))
        raise CheckpointError(
            f"No checkpoint is whole in all processes. Whole are, by number: {whole}. Start anew, "
            "in other directories."
        )
    chosen = max(common)
    for path in checkpoints.paths:
        if int(path.stem) > chosen:
            path.unlink()
    return found[chosen]
