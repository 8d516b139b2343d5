"""Checkpoints of a long run: written whole or not at all, and checked when they are read.

A checkpoint holds all that the rest of a run depends on: the parts that have a `state_dict`
(network, optimizer, learner, schedule, batches), torch's, NumPy's and Python's random numbers, and
whatever else the run keeps account of. So a run that was killed at any moment goes on from its last
checkpoint to the numbers of a run that was not.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, DamagedCheckpointError, DamagedCheckpointWarning
from ..validation.to_python_scalar import is_whole
from .checkpoint import Checkpoint, Part
from .checkpoint_file import FORMAT, packed, read, write_whole
from .random_states import random_states
from .saved_state import same


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
            "format": FORMAT,
            "parts": {n: part.state_dict() for n, part in parts.items() if part is not None},
            "progress": {} if progress is None else progress,
            "settings": self.settings or {},
            "random": random_states(),
        }
        older = self.paths
        number = 1 + max((int(path.stem) for path in older), default=0)
        path = self.directory / f"{number:08}.pt"
        content = packed(state)
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
