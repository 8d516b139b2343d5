"""What the files of the full sets must look like, before torchvision reads them.

A file in MNIST's own format begins with two zeros, 8 for bytes, and the number of dimensions; then
comes each dimension as four bytes, and then the values (yann.lecun.com/exdb/mnist).
"""

import hashlib
import struct
from pathlib import Path

from nit_snn.errors import DatasetError

DIMENSIONS = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}

SHA256 = {
    "MNIST": {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
}
"""Of the files that torchvision unpacks from the archives whose MD5 it knows."""


def check_file(path: Path) -> int:
    """Refuse a file that is damaged.

    A file as large as the true one must be the true one, byte for byte.

    Args:
        path: `<dataset>/raw/<file>`, as torchvision lays it out.

    Returns:
        How many images, or labels, it holds.

    Raises:
        DatasetError: Its beginning, its length, its values or its checksum are not what they must
            be. The message names the file, what was expected and found, and the way out.
    """
    wanted = DIMENSIONS[path.name.partition("-")[2]]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error
    start = 4 + 4 * wanted
    magic = bytes([0, 0, 8, wanted])
    if content[:4] != magic:
        raise _damaged(path, f"it begins with {content[:4].hex(' ') or 'nothing'}", magic.hex(" "))
    if len(content) < start:
        raise _damaged(path, f"it has {len(content)} bytes", f"a header of {start}")
    count, *sides = struct.unpack(f">{wanted}I", content[4:start])
    if wanted == 3 and sides != [28, 28]:
        raise _damaged(path, f"its images have {sides[0]} x {sides[1]} pixels", "28 x 28")
    length = start + count * (784 if wanted == 3 else 1)
    if len(content) != length:
        raise _damaged(path, f"it has {len(content)} bytes", f"{length}, as its header says")
    true_count = 60_000 if path.name.startswith("train") else 10_000
    known = SHA256.get(path.parent.parent.name, {}).get(path.name)
    if count == true_count and known:
        found = hashlib.sha256(content).hexdigest()
        if found != known:
            raise _damaged(path, f"its SHA-256 is {found}", known)
    if wanted == 1 and max(content[start:], default=0) > 9:
        raise _damaged(path, f"it holds the label {max(content[start:])}", "0 to 9")
    return int(count)


def _damaged(path: Path, found: str, expected: str) -> DatasetError:
    return DatasetError(
        f"{path} is damaged or is not what its name says: {found}, expected {expected}. "
        "Delete it and download it again (--download, or download=True)."
    )
