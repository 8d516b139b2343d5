"""A progress bar for what takes long."""

from __future__ import annotations

from typing import Any

from ..compat import require


def bar(total: int, description: str, shown: bool) -> Any:
    """tqdm's, to be used in a `with`; it is imported when it is needed."""
    tqdm = require("tqdm", extra="robustness").tqdm
    return tqdm(total=total, desc=description, leave=False, disable=not shown)
