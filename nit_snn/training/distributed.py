"""Replicas or samples shared out over processes, on torch.distributed.

Under "replicas" every process sees the same batch and puts its share of each sample's replicas
through the network. One number per sample crosses the network for the leave-one-out baseline,
the sum of its replicas' losses, and then the gradient. The noise is named by the number of the
replica among all, so however many processes share it out, the gradient is the same.

Under "samples" every process has a batch of its own, as in data parallelism, and noise of its own;
only the gradient crosses.

With gloo each waits for the others as long as the `timeout` of
`torch.distributed.init_process_group` says, half an hour if it says nothing, and raises a
`DistributedError` then. With NCCL torch ends the process itself (not tried here).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import AttachError, DistributedError
from ..gradients.atomic_update import all_or_nothing

MODES = (None, "replicas", "samples")


@dataclass(frozen=True)
class Ranks:
    """The processes, and what they share out.

    Attributes:
        shares: "replicas" or "samples"; None if there is this process alone.
        rank: Number of this process.
        size: Number of processes.
    """

    shares: str | None = None
    rank: int = 0
    size: int = 1

    @staticmethod
    def of(shares: str | None) -> Ranks:
        """Those of the default process group.

        Raises:
            AttachError: There is no process group, or no such way of sharing.
        """
        if shares not in MODES:
            raise AttachError(f"shard must be one of {MODES}, got {shares!r}.")
        if shares is None:
            return Ranks()
        if not (dist.is_available() and dist.is_initialized()):
            raise AttachError(
                f"shard={shares!r} needs a process group. Start with torchrun, and call "
                "torch.distributed.init_process_group() before the learner is attached."
            )
        return Ranks(shares, dist.get_rank(), dist.get_world_size())

    def share(self, replicas: int, unit: int) -> int:
        """How many of all replicas are this process's.

        Args:
            replicas: C, of all processes.
            unit: What a share has to be a multiple of.

        Raises:
            AttachError: They cannot be shared out evenly.
        """
        if self.shares != "replicas":
            return replicas
        if replicas % (self.size * unit):
            raise AttachError(
                f"{replicas} replicas cannot be shared out over {self.size} processes; their "
                f"number must be a multiple of {self.size * unit}."
            )
        return replicas // self.size

    def first(self, own: int) -> int:
        """Number of this process's first replica among all, if every process has so many."""
        return self.rank * own if self.shares == "replicas" else 0

    @property
    def sharers(self) -> int:
        """Among how many processes each sample's replicas are shared out."""
        return self.size if self.shares == "replicas" else 1

    def same_everywhere(self, seed: int, net: nn.Module) -> int:
        """Gives all processes the seed, parameters and buffers of the first; returns the seed."""
        if self.shares is None:
            return seed
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        signed = (seed + 2**63) % 2**64 - 2**63  # the same to a generator
        named = torch.tensor([signed], dtype=torch.int64, device=device)
        with together():
            for tensor in (named, *net.state_dict().values()):
                dist.broadcast(tensor, 0)
        return int(named)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.shares is None:
            return values
        total = values.detach().clone()
        with together():
            dist.all_reduce(total)
        return total

    def own_seed(self, seed: int) -> int:
        """The same everywhere for shared replicas, another in each process for shared samples."""
        return seed + self.rank * 0x9E3779B97F4A7C15 if self.shares == "samples" else seed

    @contextmanager
    def summing(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """What is added to `.grad` inside is summed over all processes; what was there stays.

        If anything raises, nothing is added.
        """
        if self.shares is None:
            yield
            return
        with all_or_nothing(parameters):
            yield
            self.sum_gradients(parameters)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sums `.grad` over all processes; every process has to call it with the same parameters.

        A parameter that has none here may have one elsewhere: it counts as zero.
        """
        kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in parameters:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for alike in kinds.values():
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
            has = torch.tensor([float(p.grad is not None) for p in alike]).to(grads[0])
            # One message for all, and which of them there is a gradient of anywhere.
            flat = torch.cat([*(g.flatten() for g in grads), has])
            with together():
                dist.all_reduce(flat)
            *summed, has = flat.split([*(p.numel() for p in alike), len(alike)])
            for parameter, gradient, there in zip(alike, summed, has.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter).clone() if there else None


ALONE = Ranks()


@contextmanager
def together() -> Iterator[None]:
    """Inside, all processes exchange numbers.

    Raises:
        DistributedError: torch.distributed could not, or anything else raised a RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        who = "This process"
        if dist.is_initialized():
            who = f"Process {dist.get_rank()} of {dist.get_world_size()}"
        raise DistributedError(
            f"{who} could not exchange numbers with the others: {error}. If the cause is that one "
            "of them hangs or has ended, start all again, from the newest checkpoint that is whole "
            "in each (nit_snn.training.latest_common_checkpoint). How long they wait for each "
            "other is the timeout of torch.distributed.init_process_group, a datetime.timedelta."
        ) from error


def check_wrapper(net: nn.Module) -> None:
    """Refuses a network that averages gradients by itself.

    Raises:
        AttachError: It does.
    """
    sharded = any(type(p).__name__ == "DTensor" for p in net.parameters())
    wrappers = ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel")
    kinds = {name: type(module).__name__ for name, module in net.named_modules()}
    found = [
        f"{kind}{f' at {name}' if name else ''}" for name, kind in kinds.items() if kind in wrappers
    ]
    if sharded or found:
        how = "sharded" if sharded else f"wrapped in {', '.join(found)}"
        raise AttachError(
            f"The network is {how}, whose own hooks work on gradients that autograd makes, and "
            "these are not. Attach the learner to the plain network, with shard='replicas' or "
            "'samples'."
        )
