"""Memory that is freed and asked for again all the time, as a training loop does."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_ALL = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells the C library to keep what is freed, up to 2 GiB, for the whole process.

    glibc gives every block above 32 MiB back to the system when it is freed, and whatever lies free
    at the end of its heap. The system has to clear each page before it hands it out once more, so
    that a step of many replicas, or of many time steps, takes up to half as long again. Call this
    once, before training on a CPU; the process then stays as large as it once was.

    Returns:
        Whether the C library took it; others than glibc have no such settings.

    Example:
        >>> done = keep_freed_memory()
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _ALL))
