"""Noisy steps of a layer by one compiled loop, and what there is to know of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..neurons.base import Lif
from .arguments import call, period, repeated, structure, threads

_RESETS = {"none": 0, "hard": 1, "soft": 2, "whole": 3}
_OF_EACH = (
    "membranes levels residuals densities scores sigma_scores decays sigma_decays wanderings gaps "
    "jumps"
)
_Arguments = structure(
    "Steps",
    f"current state noise signs decay gain threshold sigma spikes last {_OF_EACH} silent "
    "current_stride count period steps rest v_reset reset delayed or_equal threads",
    {
        **dict.fromkeys(("current_stride", "count", "period", "steps"), ctypes.c_int64),
        **dict.fromkeys(("rest", "v_reset"), ctypes.c_float),
        **dict.fromkeys(("reset", "delayed", "or_equal", "threads"), ctypes.c_int32),
    },
)


@dataclass(eq=False)
class Made:
    """What a layer did in T steps.

    Attributes:
        spikes: (T, N, *).
        last: What the last step leaves behind, (N, *).
        each: By name what was asked for of each step, (T, N, *): "membranes" before they fire, or
            the attributes of `nit_snn.conditioned.Conditioned`.
        silent: The last membrane as it would be without its spike, (N, *), if asked for.
    """

    spikes: Tensor
    last: Tensor
    each: dict[str, Tensor]
    silent: Tensor | None = None


def run_steps(
    current: Tensor,
    state: Tensor,
    noise: Sequence[Tensor],
    signs: Sequence[float],
    lif: Lif,
    threshold: float | Tensor,
    sigma: Tensor,
    wanted: Sequence[str] = (),
    silent: bool = False,
) -> Made:
    """Noisy steps, one for each of `noise`.

    Args:
        current: (T, N, *), or (1, N, *) for all steps; as all tensors float32 and contiguous.
        state: (N, *).
        noise: eps of each step but for its sign, (N, *).
        signs: What each is multiplied with.
        lif: What the membrane does.
        threshold: Where the neurons fire.
        sigma: Noise level; a scalar, or broadcasting to (*).
        wanted: Names of what to tell of each step.
        silent: Whether to tell what the last membrane would be without its spike.
    """
    steps, inner, dynamics = len(noise), current.shape[2:], lif.dynamics
    count = current[0].numel()
    spikes = current.new_empty((steps, *current.shape[1:]))
    made = Made(spikes, current.new_empty(current.shape[1:]), {})
    made.each = {name: torch.empty_like(spikes) for name in wanted}
    if silent:
        made.silent = torch.empty_like(made.last)
    addresses = (ctypes.c_void_p * steps)(*(eps.data_ptr() for eps in noise))
    factors = (ctypes.c_float * steps)(*signs)
    call(
        "nit_steps",
        _Arguments,
        current=current,
        state=state,
        noise=ctypes.addressof(addresses),
        signs=ctypes.addressof(factors),
        decay=repeated(lif.decay, inner),
        gain=repeated(lif.gain, inner),
        threshold=repeated(threshold, inner),
        sigma=repeated(sigma, inner),
        spikes=spikes,
        last=made.last,
        **made.each,
        silent=made.silent,
        current_stride=count if len(current) == steps else 0,
        count=count,
        period=period(inner),
        steps=steps,
        rest=dynamics.rest,
        v_reset=dynamics.v_reset,
        reset=_RESETS[dynamics.reset],
        delayed=dynamics.delayed,
        or_equal=dynamics.or_equal,
        threads=threads(count * steps),
    )
    return made
