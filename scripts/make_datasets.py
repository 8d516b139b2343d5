"""Make the embedded subsets of MNIST and Fashion-MNIST from the full sets.

The same full sets and the same seed give the same files, byte for byte (with the same release of
liblzma, which does the compression).
"""

import argparse
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nit_snn.datasets.codec import encode
from nit_snn.datasets.full import load_full
from nit_snn.datasets.names import NAMES
from nit_snn.datasets.subset import file_name

PER_CLASS = 1000
CLASSES = 10
PACKAGE_FOLDER = Path(__file__).resolve().parents[1] / "nit_snn" / "datasets"

Bytes = npt.NDArray[np.uint8]


def draw(labels: npt.NDArray[np.integer], per_class: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw the same number of examples of each class.

    Args:
        labels: The classes 0 to 9, shape (N,), any integer type.
        per_class: How many examples to draw of each class.
        seed: The seed of the draw.

    Returns:
        Indices into the labels, ascending, without repeats, shape (10 * per_class,), int64.

    Raises:
        ValueError: A class has too few examples.
    """
    # RandomState, because numpy promises that its numbers never change between releases.
    rng = np.random.RandomState(seed)
    chosen = []
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(f"class {label} has {len(members)} examples, need {per_class}")
        chosen.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def write(path: Path, **arrays: Bytes) -> None:
    """Write arrays as an .npz file that depends on nothing but the arrays.

    Args:
        path: The file to write; an old one is replaced.
        arrays: The arrays by the name they get in the file.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            # The defaults are the time of day and the kind of system.
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            member.external_attr = 0o644 << 16
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_LZMA)


def make(name: str, data_dir: Path, output: Path, seed: int, download: bool) -> Path:
    """Make the subset of one dataset.

    Args:
        name: One of `nit_snn.datasets.NAMES`.
        data_dir: The folder of the full sets, in torchvision's layout.
        output: The folder to write to.
        seed: The seed of the draw.
        download: Whether to download what is missing in `data_dir`.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: A file of the full set is missing and `download` is false.
    """
    images, labels = (tensor.numpy() for tensor in load_full(name, data_dir, download))
    chosen = draw(labels, PER_CLASS, seed)
    mask, residuals = encode(images[chosen])
    path = output / file_name(name)
    write(path, mask=mask, residuals=residuals, labels=labels[chosen].astype(np.uint8))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Make both subsets and print their sizes.

    Args:
        arguments: The command line without the program's name; None for that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder of the full sets in torchvision's layout (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=PACKAGE_FOLDER,
        help="folder to write to (default: the package's own)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--download", action="store_true", help="download missing files")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        path = make(name, options.data_dir, options.output, options.seed, options.download)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
