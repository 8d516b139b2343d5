"""Checkpoints of a long run: written whole or not at all, and checked when they are read.

A checkpoint holds all that the rest of a run depends on: the parts that have a `state_dict`
(network, optimizer, learner, schedule, batches), torch's, NumPy's and Python's random numbers, and
whatever else the run keeps account of. So a run that was killed at any moment goes on from its last
checkpoint to the numbers of a run that was not.

The file is one of `torch.save`, with its SHA-256 behind it; `torch.load` takes it as it is.
Nothing in a file is ever executed (`weights_only=True`).
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import random
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import CheckpointError, DamagedCheckpointError, DamagedCheckpointWarning
from ..validation.to_python_scalar import is_whole
from .saved_state import same

_FORMAT = 1
_MARK = b"\nsha256 "
_SEAL = len(_MARK) + 64 + 1
_ENTRIES = ("parts", "progress", "settings", "random")


class Part(Protocol):
    """Anything that a checkpoint can hold: a module, an optimizer, a learner, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    """What was read from one file.

    Attributes:
        path: Where it was.
        progress: What the run kept account of.
        settings: What the run was made with.
        parts: The state of each part, its tensors on the CPU.
        random: The states of the random number generators.
    """

    path: Path
    progress: dict[str, Any]
    settings: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    random: dict[str, Any]

    def restore(self, **parts: Part | None) -> None:
        """Puts all parts, and the random numbers, where they were; all of them or none.

        Args:
            **parts: What was given to `Checkpoints.save`, by the same names.

        Raises:
            CheckpointError: A part is missing on either side, or does not take its state. Then
                everything is as it was before.
        """
        given = {name: part for name, part in parts.items() if part is not None}
        lacking, left = sorted(set(given) - set(self.parts)), sorted(set(self.parts) - set(given))
        if lacking or left:
            found = [f"it lacks {', '.join(lacking)}"] if lacking else []
            found += [f"it also holds {', '.join(left)}"] if left else []
            raise CheckpointError(
                f"{self.path} does not hold the parts that are to go on: {'; '.join(found)}."
            )
        with _all_or_none(given.values()):
            for name, part in given.items():
                try:
                    part.load_state_dict(copy.deepcopy(self.parts[name]))
                except Exception as error:
                    raise CheckpointError(
                        f"{self.path}: {name} ({type(part).__name__}) does not take its state: "
                        f"{error}"
                    ) from error
            try:
                _set_random_states(self.random)
            except Exception as error:
                raise CheckpointError(
                    f"{self.path}: the states of the random numbers are no such states: {error}"
                ) from error


class Checkpoints:
    """The checkpoints of one run, in a directory of their own; one process writes them.

    Args:
        directory: Where they are; it is made when the first is saved.
        keep: How many to keep. The one before the newest is what is left if the newest is damaged.
        settings: What a run must have in common with the one that it goes on from, in plain values
            (numbers, strings, lists, dicts); None takes any.

    Raises:
        ValueError: `keep` is no positive integer.
        TypeError: `settings` is no dict.

    Example:
        >>> import tempfile, torch, snntorch
        >>> from nit_snn import NITLearner, swap_neurons
        >>> net = swap_neurons(torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), snntorch.Leaky(beta=0.9, init_hidden=True)))
        >>> learner = NITLearner(net, replicas=8, seed=0)
        >>> optimizer = torch.optim.Adam(learner.parameters())
        >>> parts = {"net": net, "learner": learner, "optimizer": optimizer}
        >>> checkpoints = Checkpoints(tempfile.mkdtemp(), settings={"lr": 1e-3})
        >>> saved = checkpoints.newest()                     # None: this is the first start
        >>> path = checkpoints.save({"epoch": 3}, **parts)
        >>> checkpoints.newest().restore(**parts)            # in the process that goes on
        >>> path.name, checkpoints.newest().progress
        ('00000001.pt', {'epoch': 3})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 2,
        settings: dict[str, Any] | None = None,
    ) -> None:
        if not is_whole(keep) or keep < 1:
            raise ValueError(f"keep must be an integer of at least 1, got {keep!r}.")
        if not isinstance(settings, dict | None):
            raise TypeError(f"settings must be a dict or None, got {type(settings).__name__}.")
        self.directory = Path(directory)
        self.keep = int(keep)
        self.settings = settings
        self._damaged: set[Path] = set()
        self._saved_at = time.monotonic()

    @property
    def paths(self) -> list[Path]:
        """The files that are there, the newest last."""
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(path for path in found if re.fullmatch(r"\d{8,}\.pt", path.name))

    def due(self, seconds: float) -> bool:
        """Whether the last one was saved so long ago, or this object made."""
        return time.monotonic() - self._saved_at >= seconds

    def save(self, progress: dict[str, Any] | None = None, **parts: Part | None) -> Path:
        """Writes a checkpoint, and then removes those that are too many.

        It takes the size of all states in memory once more. Membranes are not saved: a network has
        to begin each batch from reset neurons, as the learner's estimate supposes.

        Args:
            progress: Whatever else the run keeps account of, in plain values and tensors.
            **parts: By name, what has `state_dict` and `load_state_dict`; None is left out.

        Returns:
            The new file.

        Raises:
            CheckpointError: `progress` is no dict, a part has no state, a state is made of more
                than plain values and tensors, or the file cannot be written, as on a full disk. The
                older checkpoints are all there.
        """
        if not isinstance(progress, dict | None):  # nobody could read it, and older files would go
            raise CheckpointError(
                f"progress must be a dict or None, got {type(progress).__name__}. "
                "Nothing was saved."
            )
        strange = [n for n, p in parts.items() if p is not None and not hasattr(p, "state_dict")]
        if strange:
            raise CheckpointError(
                f"These have no state_dict: {', '.join(strange)}. Plain values belong into "
                "progress. Nothing was saved."
            )
        state = {
            "format": _FORMAT,
            "parts": {n: part.state_dict() for n, part in parts.items() if part is not None},
            "progress": {} if progress is None else progress,
            "settings": self.settings or {},
            "random": _random_states(),
        }
        older = self.paths
        number = 1 + max((int(path.stem) for path in older), default=0)
        path = self.directory / f"{number:08}.pt"
        content = _packed(state)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            left = f"{older[-1].name} is still there" if older else "there was none before"
            raise CheckpointError(f"{path} cannot be written ({error}); {left}.") from error
        whole = [one for one in older if one not in self._damaged]
        for old in [*self._damaged, *whole[: max(0, len(whole) + 1 - self.keep)]]:
            with suppress(OSError):
                old.unlink(missing_ok=True)
        self._damaged.clear()
        self._saved_at = time.monotonic()
        return path

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is no file at all.

        Warns with `DamagedCheckpointWarning` of each that had to be passed over.

        Raises:
            CheckpointError: It was made with other settings, all files are damaged, or a whole one
                is no checkpoint of this version.
        """
        damaged: list[str] = []
        for found in self._whole(damaged):
            for message in damaged:
                warnings.warn(
                    f"{message} The one before it is taken.", DamagedCheckpointWarning, stacklevel=2
                )
            self._check_settings(found)
            return found
        if damaged:
            raise CheckpointError(
                f"No checkpoint in {self.directory} is whole. {' '.join(damaged)} "
                "Start anew, in another directory."
            )
        return None

    def whole(self) -> list[Checkpoint]:
        """All checkpoints that are whole, the newest first.

        Raises:
            CheckpointError: One was made with other settings, or is no checkpoint of this version.
        """
        found = list(self._whole([]))
        for checkpoint in found:
            self._check_settings(checkpoint)
        return found

    def _whole(self, damaged: list[str]) -> Iterator[Checkpoint]:
        """The newest first; what is wrong with those that are passed over goes to `damaged`."""
        for path in reversed(self.paths):
            try:
                yield read(path)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
                self._damaged.add(path)

    def _check_settings(self, found: Checkpoint) -> None:
        if self.settings is None:
            return
        saved, own = found.settings, self.settings
        names = [
            name
            for name in {**saved, **own}
            if not (name in saved and name in own and same(saved[name], own[name]))
        ]
        if names:
            listed = ", ".join(f"{n}: saved {saved.get(n)!r}, here {own.get(n)!r}" for n in names)
            raise CheckpointError(
                f"{found.path} was made with other settings. {listed}. "
                "Resume with the same, or start anew in another directory."
            )


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
    if state["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']!r}; this version of nit_snn reads {_FORMAT}."
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


def _packed(state: dict[str, Any]) -> bytes:
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


@contextmanager
def _all_or_none(parts: Any) -> Iterator[None]:
    """Puts the parts, and the random numbers, back if what is done inside raises."""
    held = [(part, dict(getattr(part, "__dict__", {})), _copied(part)) for part in parts]
    numbers = _random_states()
    try:
        yield
    except BaseException:
        for part, own, state in held:
            if own:  # attributes that a schedule was given, and had not before
                vars(part).clear()
                vars(part).update(own)
            with suppress(Exception):  # the others are put back, too
                part.load_state_dict(state)
        _set_random_states(numbers)
        raise


def _copied(part: Part) -> dict[str, Any]:
    return copy.deepcopy(part.state_dict())


def _random_states() -> dict[str, Any]:
    """Those of all generators that a training script is likely to use."""
    kind, keys, *rest = np.random.get_state()
    version, numbers, left = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.tensor(np.asarray(keys, np.int64)), *rest],
        "python": [version, torch.tensor(numbers), left],
    }


def _set_random_states(states: dict[str, Any]) -> None:
    here: Sequence[int] = range(torch.cuda.device_count())
    torch.set_rng_state(states["torch"])
    for device, state in zip(here, states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, left = states["python"]
    random.setstate((version, tuple(numbers.tolist()), left))
