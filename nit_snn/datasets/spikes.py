"""Embedded data that are spikes: sounds, as a network of spiking neurons hears them."""

from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nit_snn.datasets.embedded import read_embedded
from nit_snn.datasets.names import check_spike_name

CHANNELS = 80
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
"""Who speaks in `spoken-digits`, by the number in the file."""

SHA256 = {
    "spoken-digits.npz": "e2f5d8518e19f0d403cd4d56cd6f1b50dd44f6d14797b3c0123a73d37d94ac5b",
}
"""Of the file that `scripts/make_spoken_digits.py` writes."""


class Spikes(NamedTuple):
    """Spike trains and what they stand for.

    Attributes:
        spikes: 0 or 1, shape (N, T, channels), uint8.
        labels: The classes, shape (N,), int64.
        test: Which are to test with, and not to train on, shape (N,), bool.
        speaker: Who speaks, shape (N,), strings.
    """

    spikes: Tensor
    labels: Tensor
    test: Tensor
    speaker: npt.NDArray[Any]


def file_name(name: str) -> str:
    """Name the file, beside this module, that holds a data set of spikes.

    Examples:
        >>> file_name("spoken-digits")
        'spoken-digits.npz'
    """
    return f"{name}.npz"


def load_spikes(name: str, held_out: str | None = None) -> Spikes:
    """Load an embedded data set of spikes; needs no network and no further package.

    `spoken-digits` is the Free Spoken Digit Dataset: 3,000 recordings of the English digits 0 to 9
    by six speakers, as spikes of 40 ON and 40 OFF channels in 64 steps of 10 ms. Channel c and
    channel 40 + c belong to the same mel band, from low to high. ON says that the band's energy
    rose by 6 dB, OFF that it fell. `scripts/make_spoken_digits.py` makes the file.

    Args:
        name: "spoken-digits".
        held_out: A speaker, all of whose recordings are the test part. None is the official split:
            the recordings 0 to 4 of each speaker and digit, 300 in all.

    Returns:
        Spikes of shape (3000, 64, 80), labels, which are to test with, and the speakers. Digits and
        speakers are mixed; the official test part comes first.

    Raises:
        ValueError: The name or the speaker is unknown.
        DatasetError: The file is damaged.

    Examples:
        >>> spikes, labels, test, speaker = load_spikes("spoken-digits")
        >>> spikes.shape, spikes.dtype, int(test.sum())
        (torch.Size([3000, 64, 80]), torch.uint8, 300)
        >>> int(load_spikes("spoken-digits", held_out="jackson").test.sum())
        500
    """
    check_spike_name(name)
    if held_out is not None and held_out not in SPEAKERS:
        raise ValueError(f"unknown speaker {held_out!r}: hold out one of {', '.join(SPEAKERS)}")
    parts = read_embedded(resources.files("nit_snn.datasets") / file_name(name), SHA256)
    spikes = np.unpackbits(parts["spikes"], axis=2, count=CHANNELS)
    speaker = np.array(SPEAKERS)[parts["speakers"]]
    test = parts["test"].astype(bool) if held_out is None else speaker == held_out
    return Spikes(
        torch.from_numpy(spikes),
        torch.from_numpy(parts["labels"]).to(torch.int64),
        torch.from_numpy(test),
        speaker,
    )
