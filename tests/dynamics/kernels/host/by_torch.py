"""What torch's executor makes of the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from nit_snn.dynamics.executor import Steps
from nit_snn.dynamics.lif import MembraneRule
from nit_snn.dynamics.needs import Needs
from nit_snn.dynamics.torch_executor import TorchExecutor


def cotangents(
    eps: Tensor, weight: Tensor, sigma: Tensor, signs: bool = False, summed: bool = False
) -> Tensor:
    """`A * score / sigma`, (T, N, F), or (N, F) if `summed`.

    Args:
        eps: Noise that was kept, (T, N, F).
        weight: A, (N,) or (T, N).
        sigma: Noise level, broadcasting to (F,).
        signs: Take the signs of the noise (NIT-S), without a scale.
        summed: Add the steps up.
    """
    chunks = _executor(sigma, signs).weighted_scores(_kept(eps), weight, 1.0, summed)
    found = torch.cat([chunk for _, chunk in chunks])
    return found[0] if summed else found


def sigma_scores(eps: Tensor, weight: Tensor) -> Tensor:
    """`sum A * (eps^2 - 1)`, (F,)."""
    return _executor(torch.ones(()), False).sigma_scores(_kept(eps), weight)


def _executor(sigma: Tensor, signs: bool) -> TorchExecutor:
    """One that neither draws nor keeps anything."""
    return TorchExecutor(None, sigma, Needs(signs=signs), None, binary=True)  # type: ignore[arg-type]


def _kept(eps: Tensor) -> Steps:
    calls = list(range(len(eps)))
    return Steps(calls, eps.shape[1:], eps.dtype, several=True, rule=MembraneRule(), noise=eps)
