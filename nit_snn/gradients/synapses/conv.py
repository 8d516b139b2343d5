"""Gradient of `nn.Conv1d`, `Conv2d` and `Conv3d` from presynaptic activity and membrane score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import register_synapse


@register_synapse(nn.Conv1d)
@register_synapse(nn.Conv2d)
@register_synapse(nn.Conv3d)
def conv_gradient(module: nn.Module, activity: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """torch's own weight gradient of a convolution.

    Args:
        module: The layer; stride, padding (numbers, "same", "valid", any mode), dilation and
            groups are taken from it.
        activity: (*, C_in, spatial), any leading dimensions (none, batch, time and batch).
        cotangent: (*, C_out, spatial).
    """
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    dims = len(module.kernel_size)
    cotangent = cotangent.reshape(-1, *cotangent.shape[-dims - 1 :])
    activity = activity.reshape(-1, *activity.shape[-dims - 1 :]).to(cotangent.dtype)
    activity, padding = _padded(module, activity)
    _, weight, bias = torch.ops.aten.convolution_backward(
        cotangent,
        activity,
        module.weight.detach().to(cotangent.dtype),
        [module.out_channels],
        module.stride,
        padding,
        module.dilation,
        False,
        [0] * dims,
        module.groups,
        [False, True, module.bias is not None],
    )
    gradients = {"weight": weight}
    if bias is not None:
        gradients["bias"] = bias
    return gradients


def _padded(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input with whatever padding the convolution itself cannot do, and what it can do."""
    dims = len(module.kernel_size)
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, list(module.padding)
    # torch keeps both sides of every dimension here, last dimension first, as F.pad wants them.
    sides = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, sides, mode=mode), [0] * dims
