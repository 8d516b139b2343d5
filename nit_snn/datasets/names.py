"""The names of the datasets."""

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
