"""Noisy steps of a layer by one compiled loop, and what there is to know of them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from torch import Tensor

from ...neurons.base import Lif
from .arguments import array, call, fits, period, repeated, structure, threads

_RESETS = {"none": 0, "hard": 1, "soft": 2, "whole": 3}
_Arguments = structure(
    "Steps",
    "current state noise signs decay gain threshold sigma spikes last membranes levels residuals "
    "densities scores sigma_scores decays sigma_decays wanderings gaps jumps silent sums "
    "sigma_sums bits current_stride count period steps slot rest v_reset reset delayed or_equal "
    "signs_alone threads",
    {
        **dict.fromkeys(("current_stride", "count", "period", "steps", "slot"), ctypes.c_int64),
        **dict.fromkeys(("rest", "v_reset"), ctypes.c_float),
        **dict.fromkeys(("reset", "delayed", "or_equal", "signs_alone", "threads"), ctypes.c_int32),
    },
)


def run_steps(
    current: Tensor,
    state: Tensor,
    noise: Sequence[Tensor],
    signs: Sequence[float],
    lif: Lif,
    threshold: float | Tensor,
    sigma: Tensor,
    into: Mapping[str, Tensor | None],
    *,
    slot: int = 0,
    signs_alone: bool = False,
) -> None:
    """Noisy steps, one for each of `noise`.

    Args:
        current: (T, N, *), or (1, N, *) for all steps; as all tensors float32 and contiguous.
        state: (N, *).
        noise: eps of each step but for its sign, (N, *).
        signs: What each is multiplied with.
        lif: What the membrane does.
        threshold: Where the neurons fire.
        sigma: Noise level; a scalar, or broadcasting to (*).
        into: Takes by name what is to be told: "spikes", (T, N, *); "last", (N, *), what the last
            step leaves behind, which may be `state`; of each step, (T, N, *), "membranes" before
            they fire, and what `nit_snn.dynamics.conditioned.Conditioned` holds; "silent", (N, *),
            the last membrane as it would be without its spike; added to, (N, *), "sums" of eps and
            "sigma_sums" of `eps^2 - 1`; and "bits", (planes, N, *), uint8.
        slot: Which of the bits is the first step's.
        signs_alone: "sums" are of the noise's signs.
    """
    steps, inner, dynamics = len(noise), current.shape[2:], lif.dynamics
    assert len(current) in (1, steps) and state.shape == current.shape[1:]
    assert fits(*noise) and all(eps.shape == state.shape for eps in noise)
    count = current[0].numel()
    addresses = array(ctypes.c_void_p, steps)(*(eps.data_ptr() for eps in noise))
    factors = array(ctypes.c_float, steps)(*signs)
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
        **into,
        current_stride=count if len(current) == steps else 0,
        count=count,
        period=period(inner),
        steps=steps,
        slot=slot,
        rest=dynamics.rest,
        v_reset=dynamics.v_reset,
        reset=_RESETS[dynamics.reset],
        delayed=dynamics.delayed,
        or_equal=dynamics.or_equal,
        signs_alone=signs_alone,
        threads=threads(count * steps),
    )
