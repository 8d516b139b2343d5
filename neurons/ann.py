"""The artificial neuron of the paper: any activation with noise in its input (Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..dynamics.lif import Current, MembraneRule, MembraneUpdate
from ..errors import SwapError
from .base import NoisyNeuron

_INNER = "activation."
_RULE = MembraneRule()


class NoisyActivation(NoisyNeuron):
    """An activation with Gaussian noise in its input: a noisy neuron with T = 1.

    `v = m + sigma * eps`, `x = activation(v)` (section 3.1), where m is what comes in, usually
    the output of a synapse. While a learner records, v comes without a graph, so the activation
    needs no derivative; its own parameters, a PReLU's slopes, belong to the block behind
    the noise and are trained with it. Outside of `record()` it is an ordinary layer that autograd
    runs through, noise included. Around `nn.Identity()` it puts noise on logits, as Eq. 1 has it.

    Args:
        activation: A module, or any function of one tensor: differentiable or not, elementwise or
            not, in place or not. The rows of a batch must not depend on each other in it.
        sigma: Noise level, scalar or (\\*) as the input without its batch dimension.

    Shape:
        Input (N, \\*); the output is what the activation makes of it.

    Raises:
        SwapError: The activation is not callable, is a class instead of an instance, or has a
            `sigma` of its own; or sigma is negative or not finite.

    Example:
        >>> import torch
        >>> from nit_snn import NITLearner
        >>> step = NoisyActivation(lambda v: (v > 0).float(), sigma=0.5)
        >>> logits = NoisyActivation(nn.Identity())
        >>> net = nn.Sequential(nn.Linear(4, 3), step, nn.Linear(3, 2), logits)
        >>> learner = NITLearner(net, replicas=8, seed=0)
        >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 1, 0, 1])
        >>> with learner.record():
        ...     xr, yr = learner.expand(x, y)
        ...     wrong = (net(xr).argmax(1) != yr).float()
        >>> loss = learner.backward(wrong)
        >>> [name for name, p in net.named_parameters() if p.grad is not None]
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    activation: nn.Module

    def __init__(
        self, activation: nn.Module | Callable[[Tensor], Tensor], sigma: float | Tensor = 1.0
    ) -> None:
        super().__init__()
        if isinstance(activation, type) or not callable(activation):
            raise SwapError(
                "NoisyActivation takes a module or a function, such as nn.ReLU() or torch.tanh, "
                f"got {activation!r}."
            )
        if isinstance(getattr(activation, "sigma", None), Tensor):
            raise SwapError(
                f"{type(activation).__name__} has a sigma of its own, which would get mixed up "
                "with the noise level."
            )
        self.activation = activation if isinstance(activation, nn.Module) else Function(activation)
        self._init_noise(sigma, like=next(self.activation.parameters(), None))
        self.register_state_dict_post_hook(_hide_wrapper)

    def forward(self, input_: Tensor) -> Tensor:
        with self._cut():
            noisy = self._step(
                MembraneUpdate((Current(input_),), None, self._drift, _RULE)
            ).membrane
        assert noisy is not None
        if self._recorder is not None and not self._learning:
            noisy = noisy.clone()  # an activation in place would change what a probe has kept
        return self._emit(self.activation(noisy))

    def _drift(self, current: Tensor, _: Tensor | None) -> Tensor:
        # Who records keeps it, and whoever writes to the current later must not change that.
        fleeting = self._recorder is None or (self._learning and not current.requires_grad)
        return current if fleeting else current.clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in [n for n in state_dict if n.startswith(prefix) and n != prefix + "sigma"]:
            state_dict[prefix + _INNER + name[len(prefix) :]] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def reset_state(self) -> None:
        """Nothing is carried from one call to the next."""

    def reset_rows(self, rows: Tensor) -> None:
        """Nothing is carried from one call to the next."""

    def detach_state(self) -> None:
        """Nothing is carried from one call to the next."""

    @property
    def membrane(self) -> None:
        return None

    def why_no_firing_probability(self) -> str | None:
        return "it is an activation, which has no threshold to cross"


class Function(nn.Module):
    """A function as a module, so that it can stand in a network.

    Args:
        function: Any function of one tensor.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input_: Tensor) -> Tensor:
        return self.function(input_)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def _hide_wrapper(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Saves the activation's own entries under the names that they had without the noise."""
    for name in [name for name in state if name.startswith(prefix + _INNER)]:
        state[prefix + name[len(prefix + _INNER) :]] = state.pop(name)
