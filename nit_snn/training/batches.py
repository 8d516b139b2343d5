"""Which rows a batch holds, in an order that a resumed run can take up in the midst of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..validation.to_python_scalar import is_whole
from .saved_state import anything, check, count, same


class Batches:
    """Row numbers of the batches of a run, shuffled in each epoch by torch's global generator.

    Going through it yields what is left of the running epoch, and then the next epoch begins. A
    `DataLoader` takes it as `batch_sampler`; with workers, which fetch ahead, save between epochs.

    Args:
        count: Number of rows.
        size: Rows in a batch.
        drop_last: Leave out a last batch that is smaller.

    Attributes:
        epoch: How many epochs are over.
        done: How many batches of the running one were handed out.

    Raises:
        ValueError: There is not one batch in an epoch, or a number is no integer.

    Example:
        >>> batches = Batches(5, 2)
        >>> [len(rows) for rows in batches], batches.epoch
        ([2, 2, 1], 1)
    """

    def __init__(self, count: int, size: int, *, drop_last: bool = False) -> None:
        for name, number in (("count", count), ("size", size)):
            if not is_whole(number):
                raise ValueError(f"{name} must be an integer, got {number!r}.")
        if size < 1 or count < (size if drop_last else 1):
            raise ValueError(f"{count} rows make no batch of {size}.")
        self.count, self.size = int(count), int(size)
        self.drop_last = drop_last
        self.epoch = self.done = 0
        self._generator: Tensor | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.count // self.size if self.drop_last else -(-self.count // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        order = self._order()
        while self.done < len(self):
            rows = order[self.done]
            self.done += 1  # whoever saves after the update has this batch behind him
            yield rows
        self.epoch, self.done, self._generator = self.epoch + 1, 0, None

    def _order(self) -> tuple[Tensor, ...]:
        if self._generator is None:
            self._generator = torch.get_rng_state()
            rows = torch.randperm(self.count)
        else:  # the same order once more, with nothing drawn from the global generator
            generator = torch.Generator()
            generator.set_state(self._generator)
            rows = torch.randperm(self.count, generator=generator)
        return rows.split(self.size)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the next batch."""
        return {**self._data(), "epoch": self.epoch, "done": self.done, "order": self._generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the batches that gave `state` stopped.

        Raises:
            CheckpointError: They were of other data, or it is no such state.
        """
        own = self._data()
        entries = {"epoch": count, "done": lambda n: count(n) and n <= len(self), "order": anything}
        check(state, "batches", {**dict.fromkeys(own, anything), **entries})
        saved = {name: state[name] for name in own}
        if not same(saved, own):
            raise CheckpointError(f"The batches were of other data: saved {saved}, here {own}.")
        if state["done"] or state["order"] is not None:
            try:
                torch.Generator().set_state(state["order"])
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(f"The batches' order is no generator's: {error}") from error
        self.epoch, self.done, self._generator = state["epoch"], state["done"], state["order"]

    def _data(self) -> dict[str, Any]:
        return {"count": self.count, "size": self.size, "drop_last": self.drop_last}
