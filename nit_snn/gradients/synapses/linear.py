"""Gradient of `nn.Linear` from presynaptic activity and membrane score."""

from torch import Tensor, nn

from .registry import register_synapse


@register_synapse(nn.Linear)
def linear_gradient(module: nn.Module, activity: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """`dW = cotangent^T activity`, `db = sum cotangent`, summed over all leading dimensions.

    Args:
        module: The layer, with weight (out, in).
        activity: (*, in).
        cotangent: (*, out).
    """
    rows = cotangent.reshape(-1, cotangent.shape[-1])
    gradients = {"weight": rows.T @ activity.reshape(-1, activity.shape[-1]).to(rows.dtype)}
    if module.bias is not None:
        gradients["bias"] = rows.sum(0)
    return gradients
