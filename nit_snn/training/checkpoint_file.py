"""The file of a checkpoint: written whole or not at all, and checked when it is read.

It is one of `torch.save`, with its SHA-256 behind it; `torch.load` takes it as it is. Nothing in a
file is ever executed (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, DamagedCheckpointError
from .checkpoint import Checkpoint

FORMAT = 1
_MARK = b"\nsha256 "
_SEAL = len(_MARK) + 64 + 1
_ENTRIES = ("parts", "progress", "settings", "random")


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads and checks one file of `Checkpoints`. Nothing in it is executed.

    Raises:
        DamagedCheckpointError: It is not there, cut short, or not as it was written.
        CheckpointError: It is whole, but not a checkpoint, one of a later version, or one that
            wants something executed.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}.") from error
    payload, seal = content[:-_SEAL], content[-_SEAL:]
    if seal[: len(_MARK)] != _MARK:
        raise DamagedCheckpointError(
            f"{path} is cut short, or no checkpoint: its checksum is missing "
            f"({len(content)} bytes)."
        )
    if seal != _sealed(payload):
        raise DamagedCheckpointError(f"{path} is damaged: its checksum does not fit its content.")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is whole, but holds more than plain values and tensors, which are all that is "
            f"read: {_unwanted(error)}. Nothing in it was executed."
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is no checkpoint of a run.")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']!r}; this version of nit_snn reads {FORMAT}."
        )
    wrong = [name for name in _ENTRIES if not isinstance(state.get(name), dict)]
    if wrong:
        raise CheckpointError(f"{path} has no usable {', '.join(wrong)}.")
    return Checkpoint(path, **{name: state[name] for name in _ENTRIES})


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file by a new one: whoever reads it, at whatever moment, finds one or the other.

    Written beside it under another name, brought to the disk, and then renamed.

    Raises:
        OSError: It cannot be written. The old file is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave an empty file
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):  # where a directory can be opened
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def packed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)  # what nobody could read must not take the place of what can be read
        torch.load(buffer, map_location="meta", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            "A checkpoint can hold plain values (numbers, strings, lists, dicts) and tensors only; "
            f"this one holds: {_unwanted(error)}."
        ) from error
    payload = buffer.getvalue()
    return payload + _sealed(payload)


def _sealed(payload: bytes) -> bytes:
    return _MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def _unwanted(error: Exception) -> str:
    """What `torch.load` stumbled over, without its advice to switch the check off."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found.group(1) if found else type(error).__name__
