"""What `nit_snn.estimators.control_coefficients` says that is explained, by compiled loops."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..conditioned import Conditioned
from .arguments import call, fits, period, repeated, structure, threads

_INTEGERS = {
    **dict.fromkeys(
        ("given_stride", "steps", "replicas", "batch", "inner", "period"), ctypes.c_int64
    ),
    "threads": ctypes.c_int32,
}
_Given = structure(
    "Given", "gradients deviations factors rows steps replicas batch inner threads", _INTEGERS
)
_Settle = structure(
    "Settle",
    "given arriving residuals densities decays jumps gaps wanderings carry fall factors drifts "
    "rows given_stride steps replicas batch inner period threads",
    _INTEGERS,
)


def explain(
    gradients: Tensor,
    deviations: Tensor,
    rows: Tensor,
    replicas: int,
    factors: Tensor | None = None,
) -> None:
    """Adds what is explained of each row's loss less what is explained of its baseline.

    Args:
        gradients: g, (T, C * B, *), as all tensors contiguous, and float32 but for `rows`.
        deviations: d, likewise.
        rows: (C * B,), float64; added to.
        replicas: C, which share no noise.
        factors: Takes the mean of g over the other replicas, (T, C * B, *).
    """
    steps, count = gradients.shape[:2]
    assert rows.dtype == torch.float64
    call(
        "nit_explained",
        _Given,
        gradients=gradients,
        deviations=deviations,
        factors=factors,
        rows=rows,
        steps=steps,
        replicas=replicas,
        batch=count // replicas,
        inner=gradients.shape[2:].numel(),
        threads=threads(gradients.numel()),
    )


def collect_and_settle(
    steps: Conditioned,
    spikes: Tensor | None,
    membrane: Tensor | None,
    carry: float | Tensor,
    replicas: int,
    wants_drifts: bool,
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """What `Followed.collect` finds in `nit_snn.estimators.control_steps`, and settled at once.

    Args:
        steps: What the layer did.
        spikes: The loss's derivative in the spikes as read, (T, N, *).
        membrane: In the membrane that the last step leaves behind, (N, *).
        carry: The derivative of a drift in the membrane before.
        replicas: C, which share no noise.
        wants_drifts: Whether anything further back depends on the drifts.

    Returns:
        The derivatives in the drifts, (T, N, *), if wanted; the coefficients, likewise; and what is
        explained of each row, (N,). None where that has to go by torch.
    """
    known = (steps.residual, steps.density, steps.decay, steps.wandering)
    density, jumps = steps.density, steps.jump
    if density is None or jumps is None or any(x is None for x in known):
        return None
    if replicas < 2 or not density.numel():
        return None
    rows, inner = density.shape[1], density.shape[2:]
    stride = density[0].numel()
    if spikes is not None:
        if spikes.stride(0) == 0:  # the same at all steps
            spikes, stride = spikes[0], 0
        spikes = spikes.contiguous()
    membrane = None if membrane is None else membrane.contiguous()
    fall = None
    if steps.gap is not None:  # a reset by subtraction: the same at all steps, in all rows
        fall, jumps = repeated(jumps[0, 0], inner), None
    if not fits(spikes, membrane, *known, jumps, steps.gap):
        return None
    factors = torch.empty_like(density)
    drifts = torch.empty_like(density) if wants_drifts else None
    explained = torch.zeros(rows, dtype=torch.float64, device="cpu")
    call(
        "nit_settle",
        _Settle,
        given=spikes,
        arriving=membrane,
        residuals=steps.residual,
        densities=density,
        decays=steps.decay,
        jumps=jumps,
        gaps=steps.gap,
        wanderings=steps.wandering,
        carry=repeated(carry, inner),
        fall=fall,
        factors=factors,
        drifts=drifts,
        rows=explained,
        given_stride=stride,
        steps=len(density),
        replicas=replicas,
        batch=rows // replicas,
        inner=inner.numel(),
        period=period(inner),
        threads=threads(density.numel()),
    )
    return drifts, factors, explained.to(density.dtype)
