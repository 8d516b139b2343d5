"""What a saved state has to look like before any of it is taken, so that none is taken in part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError

Entries = Mapping[str, Callable[[Any], bool]]


def check(state: Any, owner: str, entries: Entries) -> None:
    """Refuses a state that lacks an entry, or has one of another kind.

    Args:
        state: What was saved.
        owner: Whose it is to be, for the message.
        entries: What must be true of each entry.

    Raises:
        CheckpointError: It names all entries that are wrong.
    """
    if not isinstance(state, dict):
        raise CheckpointError(
            f"The {owner}'s state is no dict, as its state_dict() gives, but {_shown(state)}."
        )
    missing = sorted(set(entries) - set(state))
    if missing:
        raise CheckpointError(f"The {owner}'s state lacks: {', '.join(missing)}.")
    wrong = [name for name, fits in entries.items() if not fits(state[name])]
    if wrong:
        listed = ", ".join(f"{name}: {_shown(state[name])}" for name in wrong)
        raise CheckpointError(f"The {owner}'s state holds what cannot be: {listed}.")


def check_options(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuses the state of a learner that had other options.

    Args:
        state: What was saved; it holds every option.
        own: The options of the learner that is to take it.

    Raises:
        CheckpointError: It names all that differ.
    """
    different = [name for name, value in own.items() if not same(state[name], value)]
    if different:
        listed = ", ".join(f"{n}: saved {state[n]!r}, here {own[n]!r}" for n in different)
        raise CheckpointError(f"The saved learner had other options. {listed}.")


def same(saved: Any, own: Any) -> bool:
    """Whether two settings are equal; what cannot be compared is not."""
    try:
        return bool(saved == own)
    except (RuntimeError, TypeError, ValueError):
        return False


def anything(value: Any) -> bool:
    return True


def is_seed(value: Any) -> bool:
    """One that torch takes for a seed: of 64 bits, with a sign or without."""
    return type(value) is int and -(2**63) <= value < 2**64


def count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def number(value: Any) -> bool:
    return type(value) in (int, float)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
