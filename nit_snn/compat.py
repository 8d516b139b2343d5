"""Optional dependencies, and what differs between versions of the two frameworks."""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`, or says which extra of nit_snn brings it.

    Args:
        module: Dotted name of the module.
        extra: Name of the extra in nit_snn's own metadata.

    Raises:
        ImportError: The module is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}). "
            f'Install it with: pip install "nit-snn[{extra}]"'
        ) from error


def loaded_neuron_families() -> list[ModuleType]:
    """The families of noisy neurons whose framework the user has already imported.

    A network made of snnTorch neurons implies that snnTorch is imported, so a framework that
    was never imported need not be looked at, nor be installed.
    """
    names: list[str] = [n for n in ("snntorch", "spikingjelly") if n in sys.modules]
    if "spikingjelly" in names and has_more_nodes():
        names.append("spikingjelly_more")
    return [importlib.import_module(f"nit_snn.neurons.{name}") for name in names]


def has_more_nodes() -> bool:
    """Whether SpikingJelly has the nodes of `nit_snn.neurons.spikingjelly_more`, as since 2.0."""
    node = importlib.import_module("spikingjelly.activation_based.neuron")
    return hasattr(node, "SimpleIFNode") and hasattr(node, "CUBALIFNode")


def give_functional_states(node: type) -> None:
    """Gives a noisy node what SpikingJelly has since 2.0: states that go in and come out.

    Before, a node reads and writes its own membrane, in a `single_step_forward` of its own with no
    place for noise. Nothing happens where the framework has it.

    Args:
        node: A class with `single_step_functional_forward`.
    """
    if not hasattr(node, "materialize_states"):
        node.materialize_states = _materialize_states  # type: ignore[attr-defined]
        node.single_step_forward = _single_step_forward  # type: ignore[attr-defined]


def _materialize_states(
    self: Any, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
) -> tuple[Any, ...]:
    """A membrane that is still a number, or another batch's, becomes a tensor like the input."""
    x = inputs[0][0] if step_mode == "m" else inputs[0]
    v = states[0]
    if not isinstance(v, Tensor) or v.shape != x.shape:
        v = torch.full_like(x, self.v_reset or 0.0, requires_grad=False)
    elif v.dtype != x.dtype or v.device != x.device:
        v = v.to(x)
    return (v, *states[1:])


def _single_step_forward(self: Any, x: Tensor) -> Tensor:
    states = self.materialize_states((x,), tuple(self._memories.values()), "s")
    (spike,), states = self.single_step_functional_forward((x,), states)
    for name, value in zip(self._memories, states, strict=True):
        setattr(self, name, value)
    return spike  # type: ignore[no-any-return]


def cuda_devices() -> list[int]:
    """The devices whose random numbers `torch.random.fork_rng` may have to put back."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return list(range(torch.cuda.device_count())) if used else []
