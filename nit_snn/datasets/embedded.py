"""Files that come with the package: each must be the very one, byte for byte."""

import hashlib
import io
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nit_snn.errors import DatasetError


def read_embedded(
    path: Traversable | Path, sha256: Mapping[str, str]
) -> dict[str, npt.NDArray[np.uint8]]:
    """Read the arrays of an .npz file, which is known by its name.

    Args:
        path: The file.
        sha256: The checksum of each known file, by its name.

    Returns:
        Its arrays by their names.

    Raises:
        DatasetError: It is not the file that belongs to this name.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}. Install nit-snn again.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256[path.name]:
        raise DatasetError(
            f"{path} is damaged: {len(content)} bytes with the SHA-256 {found}, expected "
            f"{sha256[path.name]}. Install nit-snn again."
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as parts:
        return dict(parts)
