"""Make the embedded `spoken-digits` from the recordings of the Free Spoken Digit Dataset.

    python scripts/make_spoken_digits.py --data-dir free-spoken-digit-dataset

A recording becomes log energies of 40 mel bands, one frame each 10 ms, and delta modulation turns
those into spikes: a channel's ON or OFF spike says that its energy rose or fell by 6 dB. Only numpy
and scipy take part, and the same recordings give the same spikes.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from make_datasets import PACKAGE_FOLDER, write
from scipy.io import wavfile

from nit_snn.datasets.spikes import SPEAKERS, file_name

RATE = 8000
"""Samples in a second, of every recording."""
HOP, WINDOW, TRANSFORM = 80, 200, 256
"""Samples from a frame to the next (10 ms), in a window (25 ms), and in its Fourier transform."""
BANDS, LOWEST = 40, 50.0
"""Mel bands, and the lowest frequency in Hz; the highest is half the rate."""
STEPS = 64
"""Frames that are kept; 93 percent of the recordings are not longer."""
FLOOR, DELTA = 50.0, 6.0
"""In dB: how far below a recording's loudest band silence begins, and what one spike stands for."""

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


def mel_bands() -> Floats:
    """Triangles of unit height, equally wide in mel, m = 2595 log10(1 + f / 700).

    Returns:
        What each frequency of the transform counts in each band, shape (40, 129).
    """
    mel = 2595 * np.log10(1 + np.array([LOWEST, RATE / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(*mel, BANDS + 2) / 2595) - 1)
    frequencies = np.arange(TRANSFORM // 2 + 1) * RATE / TRANSFORM
    widths = np.diff(edges)[:, None]
    rising = (frequencies - edges[:-2, None]) / widths[:-1]
    falling = (edges[2:, None] - frequencies) / widths[1:]
    return np.maximum(0, np.minimum(rising, falling))


def energies(sound: npt.NDArray[np.int16]) -> Floats:
    """The energy of each mel band in each frame.

    Args:
        sound: A recording, shape (samples,), at least one.

    Returns:
        Energies, shape (frames, 40), one frame for each 80 samples begun.
    """
    count = 1 + (len(sound) - 1) // HOP
    padded = np.pad(sound.astype(np.float64), (WINDOW // 2, HOP * count + WINDOW))
    frames = padded[HOP * np.arange(count)[:, None] + np.arange(WINDOW)]
    return np.abs(np.fft.rfft(frames * np.hanning(WINDOW), TRANSFORM)) ** 2 @ mel_bands().T


def modulate(energy: Floats) -> Bytes:
    """Delta modulation of the log energies.

    Each channel keeps a reference, which begins at the floor. Where the level is more than 6 dB
    above or below it, the channel has an ON or an OFF spike, and the reference moves by 6 dB.

    Args:
        energy: Energies, shape (frames, 40).

    Returns:
        Spikes 0 or 1, shape (64, 80): 40 ON channels, then 40 OFF channels; zero after the end.
    """
    level = 10 * np.log10(np.maximum(energy, 1e-9))
    level = np.maximum(level - level.max(), -FLOOR)
    reference = np.full(BANDS, -FLOOR)
    spikes = np.zeros((STEPS, 2 * BANDS), dtype=np.uint8)
    for step, heard in enumerate(level[:STEPS]):
        on, off = heard - reference > DELTA, reference - heard > DELTA
        reference += DELTA * on - DELTA * off
        spikes[step] = np.concatenate([on, off])
    return spikes


def read(path: Path) -> Bytes:
    """The spikes of a recording, shape (64, 80).

    Raises:
        ValueError: It is not of one channel at 8 kHz.
    """
    rate, sound = wavfile.read(path)
    if rate != RATE or sound.ndim != 1:
        raise ValueError(
            f"{path} has {rate} Hz and the shape {sound.shape}: expected 8000 Hz and one channel"
        )
    return modulate(energies(sound))


def find_recordings(data_dir: Path) -> list[tuple[int, str, int, Path]]:
    """The recordings in a folder or in its folder `recordings`.

    Returns:
        Index, speaker, digit and path of each, by index, speaker and digit, so that the first 300
        are the official test part and digits are mixed.

    Raises:
        FileNotFoundError: There is none.
    """
    found = []
    for path in [*data_dir.glob("*.wav"), *data_dir.glob("recordings/*.wav")]:
        name = re.fullmatch(rf"(\d)_({'|'.join(SPEAKERS)})_(\d+)", path.stem)
        if name:
            found.append((int(name[3]), name[2], int(name[1]), path))
    if not found:
        raise FileNotFoundError(f"no file like 0_george_0.wav in {data_dir} or its recordings/")
    return sorted(found)


def make(data_dir: Path, output: Path) -> Path:
    """Write the file.

    Args:
        data_dir: The folder of the recordings, or the one above it.
        output: The folder to write to.

    Returns:
        The path of the file.
    """
    recordings = find_recordings(data_dir)
    spikes = np.stack([read(path) for *_, path in recordings])
    path = output / file_name("spoken-digits")
    write(
        path,
        spikes=np.packbits(spikes, axis=2),
        labels=np.array([digit for _, _, digit, _ in recordings], dtype=np.uint8),
        speakers=np.array([SPEAKERS.index(speaker) for _, speaker, *_ in recordings], np.uint8),
        test=np.array([index < 5 for index, *_ in recordings], dtype=np.uint8),
    )
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file and print its size.

    Args:
        arguments: The command line without the program's name; None for that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="folder of the recordings, or the one above"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=PACKAGE_FOLDER,
        help="folder to write to (default: the package's own)",
    )
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    path = make(options.data_dir, options.output)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
