"""Notes on errors that are not ours, where we know what hides behind them."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import NITError


def of_written_batch_size(error: BaseException, expanded: Collection[int], replicas: int) -> None:
    """A forward pass failed over the size of the batch before it was expanded.

    Args:
        error: What was raised in it; it is given a note.
        expanded: The numbers of rows that something was expanded to.
        replicas: C.
    """
    if (
        replicas < 2
        or isinstance(error, NITError)
        or not isinstance(error, (RuntimeError, ValueError))
    ):
        return
    numbers = set(re.findall(r"\d+", str(error)))
    for rows in expanded:
        if rows and str(rows // replicas) in numbers:
            error.add_note(
                f"nit_snn: inside record() the batch has {rows} rows, {replicas} replicas of "
                f"{rows // replicas} samples. If {rows // replicas} is written into your forward "
                "pass, take it from the input instead: x.shape[0]."
            )
            return
