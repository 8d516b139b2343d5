"""The names of the datasets, and what is refused of a call that loads one."""

import os

NAMES = ("mnist", "fashion-mnist")
"""The sets of images: every name that `load`, `load_subset` and `load_full` take."""

SPIKE_NAMES = ("spoken-digits",)
"""The sets of spikes: every name that `load_spikes` takes."""


def check_name(name: str) -> None:
    """Refuse a name that is not in `NAMES`.

    Args:
        name: The name of a dataset.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in NAMES:
        raise ValueError(_unknown(name))


def check_spike_name(name: str) -> None:
    """Refuse a name that is not in `SPIKE_NAMES`.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in SPIKE_NAMES:
        raise ValueError(_unknown(name))


def _unknown(name: str) -> str:
    """Every name there is, and what loads it."""
    if name in SPIKE_NAMES:
        return f"{name!r} are spikes: load_spikes({name!r}) loads them"
    if name in NAMES:
        return f"{name!r} are images: load({name!r}) loads them"
    return (
        f"unknown dataset {name!r}: choose one of {', '.join(NAMES)} (images, by load) or "
        f"{', '.join(SPIKE_NAMES)} (spikes, by load_spikes)"
    )


def check_folder(data_dir: object) -> None:
    """Refuse a folder that is no path; None stands for none.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(data_dir, str | os.PathLike | None):
        raise TypeError(f"data_dir must be a path or None, got {data_dir!r}.")
