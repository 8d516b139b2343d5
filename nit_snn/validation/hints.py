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
        size = rows // replicas
        if not rows or str(size) not in numbers:
            continue
        keep = ""
        if size >= replicas and size % replicas == 0:
            keep = f" Or keep to it, and expand {size // replicas} samples at a time."
        error.add_note(
            f"nit_snn: inside record() the batch has {rows} rows, {replicas} replicas of {size} "
            f"samples. If {size} is written into your forward pass, take it from the input "
            f"instead: x.shape[0].{keep} One replica asks for no more rows: a loss with a "
            "derivative needs no others."
        )
        return
