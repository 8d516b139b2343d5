"""A dense layer with few outputs, computed as if it had sixteen.

A product with a handful of columns takes longer on a CPU than one with sixteen, and a classifier's
readout is such a product, over all replicas and steps (timed in `benchmarks/step.py`). Where its
outputs are summed over the steps their gradients are the same at all of them, and are taken once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDE = 16
#: From so many rows on it pays where steps may be summed, and from four times as many elsewhere.
_ROWS = 1024


def few(module: nn.Module) -> bool:
    """Whether a dense layer has so few outputs."""
    weight = module.weight
    return isinstance(weight, Tensor) and 2 < len(weight) < _WIDE


def suits(module: nn.Module, x: Tensor) -> bool:
    """Whether `few_outputs` may stand in for a dense layer, and pays."""
    weight, enough = module.weight, _ROWS if x.dim() > 2 else 4 * _ROWS
    return (
        isinstance(weight, Tensor)
        and x.numel() >= enough * x.shape[-1]
        and few(module)
        and (not x.requires_grad or x.dim() > 2)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def few_outputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: (*, in).
        weight: (out, in), out below 16.
        bias: (out,), or None.

    Returns:
        (*, out).
    """
    found: Tensor = _FewOutputs.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return found


class _FewOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        outputs = len(weight)
        more = _WIDE - outputs
        wide = F.pad(weight, (0, 0, 0, more)), None if bias is None else F.pad(bias, (0, more))
        return F.linear(x, *wide)[..., :outputs].contiguous()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (cotangent,), whole, times = cotangents, x.shape, 1
        if cotangent.dim() > 2 and cotangent.stride(0) == 0:
            cotangent, times = cotangent[0], len(cotangent)
        rows = cotangent.reshape(-1, cotangent.shape[-1])
        wants_x, trains_weight, trains_bias = ctx.needs_input_grad
        back = (rows @ weight).view(*cotangent.shape[:-1], -1).expand(whole) if wants_x else None
        found = None
        if trains_weight:
            inputs = x if times == 1 else x.sum(0)
            found = rows.T @ inputs.reshape(-1, whole[-1])
        return back, found, rows.sum(0) * times if trains_bias else None
