"""Which neurons a swap leaves alone: those that are named, and those that never fire."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..compat import cuda_devices
from ..errors import SwapError
from ..validation.foreign_functions import custom_functions

#: What `keep` takes: a qualified name, a class, or a module, or several of them.
Keep = str | type[nn.Module] | nn.Module | Iterable[str | type[nn.Module] | nn.Module]

_MARK = "_nit_kept"
_SURROGATES = ("spike_grad", "surrogate_function")
_STEPS, _ROWS, _PIXELS = 4, 2, 4
_SILENT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def is_kept(module: nn.Module) -> bool:
    """Whether a swap has to leave this neuron alone."""
    return _MARK in vars(module)


def mark_kept(modules: Iterable[nn.Module], kept: bool) -> None:
    """Remembers on neurons that they are to be left alone, or forgets it."""
    for module in modules:
        vars(module).pop(_MARK, None)
        if kept:
            vars(module)[_MARK] = True


def chosen(net: nn.Module, keep: Keep, spiking: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The spiking neurons that `keep` speaks of, by name.

    Args:
        net: The network.
        keep: Names, of neurons or of what they are in; classes; or modules themselves.
        spiking: All neurons of the network that fire, by name.

    Raises:
        SwapError: An entry names no neuron of the network.
    """
    single = isinstance(keep, (str, type, nn.Module))
    entries: Sequence[Any] = [keep] if single else list(keep)  # type: ignore[arg-type]
    modules, names = dict(net.named_modules()), set[str]()
    for entry in entries:
        found = {name for name, module in spiking.items() if _speaks_of(entry, name, module)}
        # What never fires is left alone as it is.
        known = any(_speaks_of(entry, name or "(root)", m) for name, m in modules.items())
        if not found and not known:
            raise SwapError(
                f"keep has {entry!r}, but no such module is in the network. Its spiking neurons: "
                f"{', '.join(f'{n} ({type(m).__name__})' for n, m in spiking.items()) or 'none'}."
            )
        names |= found
    return {name: module for name, module in spiking.items() if name in names}


def _speaks_of(entry: Any, name: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return name == entry or name.startswith(f"{entry}.")
    if isinstance(entry, type):
        return isinstance(module, entry)
    if isinstance(entry, nn.Module):
        return any(module is inner for inner in entry.modules())
    raise SwapError(f"keep takes names, classes and modules, got {entry!r}.")


def never_fires(module: nn.Module) -> bool:
    """Whether a module made from a neuron only integrates: judged by what a copy of it does.

    A copy gets strong currents for some steps. It never fires if it asks no surrogate, uses no
    `torch.autograd.Function`, and returns numbers that are no spikes. What cannot be run
    counts as firing.
    """
    if module not in _SILENT:
        with torch.random.fork_rng(devices=cuda_devices()), torch.enable_grad():
            _SILENT[module] = any(_integrates(module, shape) for shape in _shapes(module))
    return _SILENT[module]


def _shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of inputs that a neuron may take, time first where there is time."""
    tensors = [*module.parameters(), *module.buffers()]
    sizes = dict.fromkeys([3, *(t.numel() for t in tensors if t.dim() == 1 and t.numel() > 1)])
    for size, tail, lead in product(sizes, ((), (_PIXELS, _PIXELS)), ((), (_STEPS,))):
        yield (*lead, _ROWS, size, *tail)


def _integrates(module: nn.Module, shape: tuple[int, ...]) -> bool:
    asked: list[bool] = []
    try:
        probe = _copied(module)
        _listen(probe, asked)
        like = next((t for t in probe.parameters() if t.is_floating_point()), None)
        x = torch.linspace(-1, 9, torch.Size(shape).numel()).view(shape)
        x = (x if like is None else x.to(like)).requires_grad_()
        outputs = [y for _ in range(_STEPS) for y in _tensors(probe(x))]
    except Exception:  # whatever a module of the user's own makes of such an input
        return False
    if asked or not outputs or not all(y.is_floating_point() for y in outputs):
        return False
    if any(custom_functions(y) for y in outputs):
        return False
    values = torch.cat([y.detach().flatten() for y in outputs])
    return bool(torch.isfinite(values).all()) and (len(values.unique()) > 4 or not values.any())


def _copied(module: nn.Module) -> Any:
    """A copy without its hooks, and without the graphs that its states may have."""
    states = {
        id(value): value.detach().clone()
        for inner in module.modules()
        for held in (vars(inner), inner._buffers, vars(inner).get("_memories", {}))
        for value in held.values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    probe = copy.deepcopy(module, states)
    for inner in probe.modules():
        for hooks in (inner._forward_hooks, inner._forward_pre_hooks, inner._backward_hooks):
            hooks.clear()
    return probe


def _listen(probe: nn.Module, asked: list[bool]) -> None:
    """Puts down whether a surrogate is asked."""

    def listening(own: Callable[..., Any]) -> Callable[..., Any]:
        def surrogate(*args: Any, **kwargs: Any) -> Any:
            asked.append(True)
            return own(*args, **kwargs)

        return surrogate

    for inner in list(probe.modules()):
        for name in _SURROGATES:
            own = getattr(inner, name, None)
            if callable(own):
                inner._modules.pop(name, None)
                vars(inner)[name] = listening(own)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
