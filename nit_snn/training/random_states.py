"""The states of all random number generators that a training script is likely to use."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Those of all generators that a training script is likely to use."""
    kind, keys, *rest = np.random.get_state()
    version, numbers, left = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.tensor(np.asarray(keys, np.int64)), *rest],
        "python": [version, torch.tensor(numbers), left],
    }


def set_random_states(states: dict[str, Any]) -> None:
    here: Sequence[int] = range(torch.cuda.device_count())
    torch.set_rng_state(states["torch"])
    for device, state in zip(here, states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, left = states["python"]
    random.setstate((version, tuple(numbers.tolist()), left))
