"""What one checkpoint holds, and how it is put back: all of it or nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError
from .random_states import random_states, set_random_states


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
                set_random_states(self.random)
            except Exception as error:
                raise CheckpointError(
                    f"{self.path}: the states of the random numbers are no such states: {error}"
                ) from error


@contextmanager
def _all_or_none(parts: Any) -> Iterator[None]:
    """Puts the parts, and the random numbers, back if what is done inside raises."""
    held = [(part, dict(getattr(part, "__dict__", {})), _copied(part)) for part in parts]
    numbers = random_states()
    try:
        yield
    except BaseException:
        for part, own, state in held:
            if own:  # attributes that a schedule was given, and had not before
                vars(part).clear()
                vars(part).update(own)
            with suppress(Exception):  # the others are put back, too
                part.load_state_dict(state)
        set_random_states(numbers)
        raise


def _copied(part: Part) -> dict[str, Any]:
    return copy.deepcopy(part.state_dict())
