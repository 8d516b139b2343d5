"""`nit_snn.dynamics.conditioned` by compiled loops: the steps, and a pass back through them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...neurons.base import Lif
from ..conditioned import Conditioned, jump
from ..kernels.noisy_lif.reference import Dynamics
from .arguments import call, fits, period, repeated, structure, threads
from .steps import run_steps

_INTEGERS = {
    **dict.fromkeys(
        ("given_stride", "count", "period", "steps", "inner", "weight_stride"), ctypes.c_int64
    ),
    "threads": ctypes.c_int32,
}
_Charge = structure(
    "Charge",
    "scores weight factors densities decays arriving carry rate each total leaving count period "
    "steps inner weight_stride threads",
    _INTEGERS,
)


def condition(
    current: Tensor,
    state: Tensor,
    noise: Sequence[Tensor],
    signs: Sequence[float],
    lif: Lif,
    threshold: float | Tensor,
    sigma: Tensor,
    *,
    learns_sigma: bool,
    controlled: bool,
    through_time: bool,
) -> tuple[Tensor, Tensor, Conditioned, Tensor | None]:
    """See `nit_snn.dynamics.conditioned.condition`; every tensor float32 and contiguous."""
    hard = lif.dynamics.reset == "hard"
    carries = isinstance(lif.decay, Tensor) or lif.decay != 0
    follows = controlled and through_time and carries
    wanted = _wanted(learns_sigma, controlled, carries, follows, hard)
    spikes, last = current.new_empty((len(noise), *current.shape[1:])), torch.empty_like(state)
    each = {name: torch.empty_like(spikes) for name in wanted}
    silent = torch.empty_like(state) if follows else None
    into = {**each, "spikes": spikes, "last": last, "silent": silent}
    run_steps(current, state, noise, signs, lif, threshold, sigma, into)
    found = _conditioned(each)
    if follows and not hard:
        found.jump = jump(lif, threshold, spikes)
    return spikes, last, found, silent


def condition_call(
    drift: Tensor,
    noise: Tensor,
    sigma: Tensor,
    threshold: float | Tensor,
    *,
    or_equal: bool,
    wiped: bool,
    carries: bool,
    learns_sigma: bool,
    controlled: bool,
    through_time: bool,
) -> tuple[Tensor, Tensor, Conditioned, Tensor | None]:
    """The same of a single call, from its drift.

    Args:
        drift: m, (N, *).
        noise: eps, likewise.
        sigma: Noise level; a scalar, or broadcasting to (*).
        threshold: Where the neurons fire.
        or_equal: Whether they fire at the threshold, too.
        wiped: Whether a spike leaves nothing of the membrane.
        carries: Whether the next drift depends on it.
        learns_sigma: Whether the noise level is learned.
        controlled: Whether a control variate asks.
        through_time: Whether it follows membranes and resets.

    Returns:
        The membrane before it fires, (N, *); spikes, likewise; what there is to know of the call,
        but for its jump; and the membrane without the spike, if time is followed.
    """
    follows = controlled and through_time and carries
    wanted = _wanted(learns_sigma, controlled, carries, follows, wiped)
    each = {n: torch.empty_like(drift) for n in wanted if n != "jumps"}
    membrane, spikes = torch.empty_like(drift), torch.empty_like(drift)
    silent = torch.empty_like(drift) if follows else None
    lif = Lif(Dynamics(reset="hard" if wiped else "none", or_equal=or_equal), decay=0.0)
    into = {**each, "membranes": membrane, "spikes": spikes, "silent": silent}
    # Nothing is left of the state, so anything finite will do.
    run_steps(drift[None], noise, [noise], [1.0], lif, threshold, sigma, into)
    return membrane, spikes, _conditioned(each), silent


def _wanted(
    learns_sigma: bool, controlled: bool, carries: bool, follows: bool, wiped: bool
) -> list[str]:
    asked = {
        "scores": True,
        "levels": learns_sigma,
        "decays": carries,
        "sigma_scores": learns_sigma,
        "sigma_decays": learns_sigma and carries,
        "residuals": controlled,
        "densities": controlled,
        "wanderings": follows,
        "gaps": follows and not wiped,
        "jumps": follows and wiped,
    }
    return [name for name, wanted in asked.items() if wanted]


def _conditioned(each: Mapping[str, Tensor]) -> Conditioned:
    return Conditioned(
        each["scores"],
        each.get("levels"),
        each.get("decays"),
        each.get("sigma_scores"),
        each.get("sigma_decays"),
        each.get("residuals"),
        each.get("densities"),
        each.get("wanderings"),
        each.get("gaps"),
        each.get("jumps"),
    )


def charge(
    steps: Conditioned,
    weight: Tensor,
    sigma: Tensor,
    carry: float | Tensor,
    put_back: tuple[Tensor, Tensor] | None,
    arriving: Tensor | None,
    *,
    each: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None] | None:
    """The cotangents of a layer's drifts, with what its membranes mean to later ones.

    Args:
        steps: What the layer did.
        weight: A, (N,), or (T, N).
        sigma: Noise level; a scalar, or broadcasting to (*).
        carry: The derivative of a drift in the membrane before.
        put_back: A control variate's coefficients and the spikes' covariances with their scores,
            (T, N, *).
        arriving: What later drifts ask of the last membrane, (N, *).
        each: Whether the cotangents of the single steps are wanted.

    Returns:
        They, (T, N, *); their sum; and what is asked of the membrane before the first step. None
        where that has to go by torch.
    """
    score, inner = steps.score, steps.score.shape[2:]
    weight = weight.to(score.dtype).contiguous()
    factors, covariances = (x.contiguous() for x in put_back) if put_back else (None, None)
    arriving = None if arriving is None else arriving.contiguous()
    if not fits(score, weight, factors, covariances, steps.decay, arriving):
        return None
    count = score[0].numel()
    found = torch.empty_like(score) if each else None
    total, leaving = (score.new_empty(score.shape[1:]) for _ in range(2))
    call(
        "nit_charge",
        _Charge,
        scores=score,
        weight=weight,
        factors=factors,
        densities=covariances,
        decays=steps.decay,
        arriving=arriving,
        carry=repeated(carry, inner),
        rate=repeated(1 / sigma.to(score.dtype), inner),
        each=found,
        total=total,
        leaving=leaving,
        count=count,
        period=period(inner),
        steps=len(score),
        inner=max(1, inner.numel()),
        weight_stride=score.shape[1] if weight.dim() > 1 else 0,
        threads=threads(score.numel()),
    )
    return found, total, None if steps.decay is None else leaving
