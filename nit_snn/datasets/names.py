"""The names of the datasets, and what is refused of a call that loads one."""

import os

NAMES = ("mnist", "fashion-mnist")
"""Every name that the functions of this package take."""


def check_name(name: str) -> None:
    """Refuse a name that is not in `NAMES`.

    Args:
        name: The name of a dataset.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"unknown dataset {name!r}: choose one of {', '.join(NAMES)}")


def check_folder(data_dir: object) -> None:
    """Refuse a folder that is no path; None stands for none.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(data_dir, str | os.PathLike | None):
        raise TypeError(f"data_dir must be a path or None, got {data_dir!r}.")
