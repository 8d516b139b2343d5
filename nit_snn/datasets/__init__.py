"""Embedded data: subsets of MNIST and Fashion-MNIST, spoken digits as spikes; and the full sets."""

from nit_snn.datasets.full import load_full
from nit_snn.datasets.loader import load
from nit_snn.datasets.names import NAMES, SPIKE_NAMES
from nit_snn.datasets.spikes import Spikes, load_spikes
from nit_snn.datasets.splits import Splits, split
from nit_snn.datasets.subset import load_subset

__all__ = [
    "NAMES",
    "SPIKE_NAMES",
    "Spikes",
    "Splits",
    "load",
    "load_full",
    "load_spikes",
    "load_subset",
    "split",
]
