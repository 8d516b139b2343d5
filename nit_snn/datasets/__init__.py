"""MNIST and Fashion-MNIST: embedded subsets, the full sets, and the 7:2:1 split."""

from nit_snn.datasets.full import load_full
from nit_snn.datasets.loader import load
from nit_snn.datasets.names import NAMES
from nit_snn.datasets.splits import Splits, split
from nit_snn.datasets.subset import load_subset

__all__ = ["NAMES", "Splits", "load", "load_full", "load_subset", "split"]
