"""Sets whatever a network remembers from step to step to its initial state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..neurons.base import NoisyNeuron
from ..neurons.checks import rows_of

#: States of snnTorch's neurons.
_STATES = ("mem", "syn", "syn_exc", "syn_inh", "spk")


def reset_states(net: nn.Module) -> None:
    """Sets every neuron of either framework, noisy or plain, to its initial state.

    Whatever else remembers in SpikingJelly's way, a dropout its mask, is reset as well. Unlike the
    frameworks' own functions it walks the whole network, and only this one.

    Example:
        >>> import torch, snntorch
        >>> net = torch.nn.Sequential(torch.nn.Sequential(snntorch.Leaky(beta=0.5)))
        >>> _ = net(torch.ones(1, 2))
        >>> reset_states(net)
        >>> net[0][0].mem
        tensor([[0., 0.]])
    """
    for module, reset in _stateful(net):
        reset() if reset is not None else module.reset_state()  # type: ignore[operator]


def reset_rows(net: nn.Module, rows: Tensor) -> None:
    """Sets some rows of what neurons remember to the initial state.

    Args:
        net: The network.
        rows: (N,), true where a row starts anew.
    """
    for module, _ in _stateful(net):
        if isinstance(module, NoisyNeuron):
            module.reset_rows(rows)
        elif "_memories" in vars(module):
            memories: dict[str, Any] = vars(module)["_memories"]
            rests = vars(module).get("_memories_rv", {})
            for name, held in memories.items():
                if isinstance(held, Tensor) and held.dim() and len(held) == len(rows):
                    memories[name] = held.masked_fill(rows_of(rows, held), rests.get(name) or 0.0)
        else:
            for name in _STATES:
                held = getattr(module, name, None)
                if isinstance(held, Tensor) and held.dim() and len(held) == len(rows):
                    setattr(module, name, held.masked_fill(rows_of(rows, held), 0.0))


def not_reset(net: nn.Module) -> list[str]:
    """Modules with a `reset` of their own that `reset_states` does not call, by name."""
    known = {module for module, _ in _stateful(net)}
    inside = tuple(f"{name}." for name, module in net.named_modules() if name and module in known)
    return [
        f"{name} ({type(module).__name__})"
        for name, module in net.named_modules()
        if module not in known
        and not name.startswith(inside)
        and any(callable(getattr(module, own, None)) for own in ("reset", "reset_state"))
    ]


def _stateful(net: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """What remembers something, and how it forgets; None for a noisy neuron."""
    for module in net.modules():
        if isinstance(module, NoisyNeuron):
            yield module, None
        elif "_memories" in vars(module) and callable(getattr(module, "reset", None)):
            yield module, module.reset
        elif callable(getattr(module, "reset_mem", None)) and hasattr(module, "spike_grad"):
            yield module, module.reset_mem
