"""What is in a network that a learner is attached to, by qualified name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import AttachError
from ..gradients.synapses import gradient_function
from ..neurons.base import NoisyNeuron
from ..swap.states import not_reset


def raise_all(*checks: Callable[[], None]) -> None:
    """Runs all checks.

    Raises:
        AttachError: One error that lists what all of them have found.
    """
    problems = []
    for check in checks:
        try:
            check()
        except AttachError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise AttachError(problems[0])
    if problems:
        listed = "\n".join(f"{n}. {problem}" for n, problem in enumerate(problems, 1))
        raise AttachError(f"{len(problems)} problems:\n{listed}")


def check_materialised(net: nn.Module) -> None:
    """Every parameter and buffer has a shape and a memory of its own."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise AttachError(
            f"Lazy modules have no weights yet: {', '.join(lazy)}. Run the network once on one "
            "batch, and attach the learner then."
        )
    meta = [name for name, parameter in net.named_parameters() if parameter.is_meta]
    if meta:
        raise AttachError(
            f"These are on the meta device, without values: {', '.join(meta)}. Call "
            "net.to_empty(device=...) and load or initialise them first."
        )


def quantised(net: nn.Module) -> dict[str, str]:
    """Modules whose weights are integers, with their kind."""
    found: dict[str, str] = {}
    for name, module in net.named_modules():
        kind = type(module)
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if ".quantized" in kind.__module__ and hasattr(module, "_packed_params") and not inside:
            found[name] = f"quantised {kind.__name__}"
    return found


def notes(net: nn.Module, neurons: Mapping[str, NoisyNeuron]) -> list[str]:
    """What is right as it is, and good to know: one sentence each."""
    inside = tuple(f"{name}." for name in neurons)
    found, places = [], dict[nn.Parameter, list[str]]()
    for name, module in net.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append(f"{name}.{own}" if name else own)
        if isinstance(module, NoisyNeuron) or name.startswith(inside):
            continue
        kind = type(module).__name__
        if module._parameters and gradient_function(module) is None:
            found.append(f"{name} ({kind}) has no gradient rule: it takes the general route.")
        if getattr(module, "inplace", False):
            found.append(f"{name} ({kind}) writes in place: its block takes the general route.")
    for each in not_reset(net):
        found.append(f"{each} has a reset() of its own, which learner.reset() does not call.")
    for names in places.values():
        if len(names) > 1:
            found.append(f"{', '.join(names)} are one parameter: their gradients add up.")
    return found
