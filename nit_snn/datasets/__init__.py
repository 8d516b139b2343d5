"""Embedded images and spikes, the full sets of images, event files and a simulated sensor."""

from nit_snn.datasets.event_files import EVENT_NAMES, EventFrames
from nit_snn.datasets.full import load_full
from nit_snn.datasets.loader import load
from nit_snn.datasets.names import NAMES, SPIKE_NAMES
from nit_snn.datasets.saccades import saccades
from nit_snn.datasets.spikes import Spikes, load_spikes
from nit_snn.datasets.splits import Splits, split
from nit_snn.datasets.subset import load_subset

__all__ = [
    "EVENT_NAMES",
    "NAMES",
    "SPIKE_NAMES",
    "EventFrames",
    "Spikes",
    "Splits",
    "load",
    "load_full",
    "load_spikes",
    "load_subset",
    "saccades",
    "split",
]
