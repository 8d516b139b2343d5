"""Which executor takes a layer's steps: chosen once per layer and pass, and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from ..noise.layer_noise import LayerNoise
from ..noise.philox_noise import PhiloxNoise
from .cuda_executor import TYPES, CudaExecutor
from .executor import Budget, Executor
from .needs import Needs
from .torch_executor import TorchExecutor


def executor_for(
    noise: LayerNoise,
    sigma: Tensor,
    needs: Needs,
    budget: Budget,
    binary: bool,
    dtype: torch.dtype,
) -> Executor:
    """The kernels where noise and activity are all that counts; else torch's operators.

    Args:
        noise: The layer's noise.
        sigma: Its noise level.
        needs: What the pass has to keep.
        budget: Bytes that may be kept.
        binary: Whether the layer's spikes are its membrane above the threshold, and nothing else.
        dtype: That of its currents; the kernels have no float64.
    """
    if isinstance(noise.noise, PhiloxNoise) and needs.plain and dtype in TYPES:
        return CudaExecutor(noise, noise.noise, sigma, needs, binary)
    return TorchExecutor(noise, sigma, needs, budget, binary)
