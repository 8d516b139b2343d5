"""Writes `gradients.npz`: the gradients of all cases, by the code that is installed.

    python tests/golden/record.py

The file in the repository was recorded with commit 7aa0648, before the core was rebuilt, on a
processor with NIT_SNN_BACKEND=torch.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from cases import CASES, MakeLearner, run

from nit_snn import NITLearner

FILE = Path(__file__).with_name("gradients.npz")


def recorded(make_learner: MakeLearner = NITLearner) -> dict[str, np.ndarray]:
    """What every case leaves, by "case/parameter", and its losses by "case/loss"."""
    return {
        f"{case.name}/{name}": value.numpy()
        for case in CASES
        for name, value in run(case, make_learner).items()
    }


def write(make_learner: MakeLearner = NITLearner, file: Path = FILE) -> None:
    """Writes the file anew."""
    np.savez_compressed(file, **recorded(make_learner))


if __name__ == "__main__":
    os.environ["NIT_SNN_BACKEND"] = "torch"
    write()
