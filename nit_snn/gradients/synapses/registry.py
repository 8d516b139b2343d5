"""The registry of synapses: layers whose gradient is had without an autograd graph.

For a layer in it that feeds a noisy neuron directly, the learner calls one pure function with
the presynaptic activity and the weighted membrane score. Every other layer, and
everything else between two noisy layers, takes the general route through the local graph; both
give the same gradient. Add a layer kind of your own with `register_synapse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

#: `(module, activity, cotangent) -> {parameter name: gradient}`
SynapseGradient = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]

_REGISTRY: dict[type[nn.Module], tuple[SynapseGradient, frozenset[str]]] = {}


def register_synapse(
    kind: type[nn.Module], parameters: Iterable[str] = ("weight", "bias")
) -> Callable[[SynapseGradient], SynapseGradient]:
    """Registers the gradient function of a layer class.

    The function gets the module, its input `activity` and the cotangent of its output, both as they
    were in the forward pass, and returns the gradient of every parameter of the module by
    name: the vector-Jacobian product, nothing else. The layer must be linear in its
    parameters and treat the rows of the batch independently. Only this exact class is looked up:
    a subclass may compute something else.

    Args:
        kind: The layer class.
        parameters: Names of all its parameters, those that may be None included.

    Example:
        >>> import torch
        >>> class Scale(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = nn.Parameter(torch.ones(()))
        ...     def forward(self, x):
        ...         return self.factor * x
        >>> @register_synapse(Scale, parameters=["factor"])
        ... def scale_gradient(module, activity, cotangent):
        ...     return {"factor": (activity * cotangent).sum()}
        >>> gradient_function(Scale()) is scale_gradient
        True
    """

    def register(function: SynapseGradient) -> SynapseGradient:
        _REGISTRY[kind] = (function, frozenset(parameters))
        return function

    return register


def gradient_function(module: nn.Module) -> SynapseGradient | None:
    """The gradient function for `module`, or None if it has to take the general route.

    A pruned or weight-normed layer has other parameters than its class declares: None.
    """
    function, declared = _REGISTRY.get(type(module), (None, frozenset()))
    return function if function is not None and declared == set(module._parameters) else None


def batch_rank(module: nn.Module) -> int | None:
    """How many dimensions a batch has that goes into a synapse, (N, *); None for unknown kinds."""
    if isinstance(module, nn.Linear):
        return 2
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 2 + len(module.kernel_size)
    return None
