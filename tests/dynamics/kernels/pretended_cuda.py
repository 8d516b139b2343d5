"""A GPU that is a CPU: tensors that say they are on CUDA, and whoever waits for one is counted.

What a step on a GPU does is decided by `device.type`. Inside `PretendedCuda` a tensor that was put
on "cuda" says so, wherever its numbers really are, and so does all that is computed from it. What
would fail on a GPU fails here: tensors of two devices in one operation. What would stall it is
written down: a number that Python asks for, and a tensor that comes from a CPU.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # it looks at what is patched below
from host.runner import run_on_host
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import nit_snn
import nit_snn.neurons
from nit_snn.dynamics import backend
from nit_snn.dynamics.kernels.linear_gradient.op import launched as linear_gradient
from nit_snn.dynamics.kernels.linear_sign_gradient.op import launched as linear_sign_gradient
from nit_snn.dynamics.kernels.noisy_lif.op import launched as noisy_lif
from nit_snn.dynamics.kernels.sigma_gradient.op import launched as sigma_gradient
from nit_snn.dynamics.kernels.unpack_bits.op import launched as unpack_bits
from nit_snn.dynamics.kernels.weighted_score.op import launched as weighted_score

CPU = torch.device("cpu")
_LAUNCHED: Mapping[str, Callable[..., Any]] = {
    "linear_gradient": linear_gradient,
    "linear_sign_gradient": linear_sign_gradient,
    "noisy_lif": noisy_lif,
    "sigma_gradient": sigma_gradient,
    "unpack_bits": unpack_bits,
    "weighted_score": weighted_score,
}
#: What Python cannot know before a GPU has finished.
_WAITS = frozenset(
    {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
)
#: What reads numbers without an operation.
_READS = frozenset({"tolist", "numpy", "__array__"})
_OURS = tuple(f"{Path(m.__file__).parent}{os.sep}" for m in (nit_snn, nit_snn.neurons))
#: What makes tensors of Python's numbers.
_FROM_PYTHON = frozenset({"tensor", "as_tensor", "asarray", "from_numpy"})


def place(x: Tensor) -> torch.device:
    """Where a tensor says that it is."""
    return getattr(x, "_pretended", CPU)


def put(x: Any, device: torch.device) -> Any:
    """Makes a tensor say that it is there."""
    if isinstance(x, Tensor) and device.type == "cuda":
        x._pretended = device  # type: ignore[attr-defined]
    return x


def move(net: nn.Module, device: torch.device) -> nn.Module:
    """All parameters and buffers of a network, as `net.to(device)` would."""
    for tensor in [*net.parameters(), *net.buffers()]:
        put(tensor, device)
    return net


class PretendedCuda:
    """Inside, "cuda" is a device.

    Args:
        kernels: Whether the kernels' own sources run, compiled for the CPU; else their models.

    Attributes:
        waits: Where the host waited for the device, or the device for the host.
        ran: How often each kernel ran.
    """

    def __init__(self, kernels: bool = False) -> None:
        self.waits: list[str] = []
        self.ran: dict[str, int] = {}
        self.kernels = kernels
        self._modes = (_Functions(self), _Operations(self))

    def __enter__(self) -> PretendedCuda:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*reason)

    def wait(self, what: str) -> None:
        """Writes a wait down, with who has asked for it."""
        names = [(f.filename, f.name) for f in traceback.extract_stack()]
        ours = [n for n in names if any(p in n[0] for p in _OURS)]
        where = "elsewhere"
        if ours:
            where = f"{Path(ours[-1][0]).name}, {ours[-1][1]}"
        self.waits.append(f"{what} in {where}")


class _Functions(TorchFunctionMode):
    """Answers what a tensor's device is, and takes "cuda" for one."""

    def __init__(self, owner: PretendedCuda) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        owner = getattr(function, "__self__", None)
        if name == "__get__" and owner is Tensor.device:
            return place(args[0])
        if name == "__get__" and owner is Tensor.is_cuda:
            return place(args[0]).type == "cuda"
        if name == "cuda":
            return self._to(args[0], torch.device("cuda", 0))
        if name == "cpu":
            return self._to(args[0], CPU)
        if name == "to":
            return self._moved(function, args, kwargs)
        if name == "is_autocast_enabled" and args and args[0] == "cuda":
            args = ("cpu",)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = CPU
            if name in _FROM_PYTHON:
                self.owner.wait("copy to cuda")
            return put(function(*args, **kwargs), _whole(device))
        if name in _READS and place(args[0]).type == "cuda":
            self.owner.wait(name)
        if name == "new_tensor" and place(args[0]).type == "cuda":
            self.owner.wait("copy to cuda")
            return put(function(*args, **kwargs), place(args[0]))
        return function(*args, **kwargs)

    def _moved(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, *rest = args
        device = kwargs.pop("device", None)
        for i, value in enumerate(rest):
            if isinstance(value, torch.device | str):
                device = rest.pop(i)
                break
            if isinstance(value, Tensor):
                device, rest[i] = place(value), value.dtype
                break
        if rest or kwargs:
            x = function(x, *rest, **kwargs)
        return x if device is None else self._to(x, torch.device(device))

    def _to(self, x: Tensor, device: torch.device) -> Tensor:
        device = _whole(device)
        return x if place(x) == device else torch.ops.pretended.move(x, str(device))


class _Operations(TorchDispatchMode):
    """Follows devices from what goes in to what comes out."""

    def __init__(self, owner: PretendedCuda) -> None:
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        namespace, name = function.namespace, function.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if namespace == "pretended":
            device = torch.device(args[1])
            self.owner.wait(f"copy to {device.type}")
            return put(args[0].clone(), device)
        devices = {place(x) for x in tensors if x.dim() or place(x).type == "cuda"}
        if len(devices) > 1 and name not in ("copy_", "_to_copy"):
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}, {devices}")
        gpu = next((d for d in devices if d.type == "cuda"), CPU)
        if gpu.type == "cuda" and name in _WAITS:
            self.owner.wait(name)
        if name == "copy_":
            if len({place(x).type for x in tensors}) > 1 and tensors[1].dim():
                self.owner.wait("copy_")
            gpu = place(tensors[0])
        if namespace == "nit_snn" and gpu.type == "cuda" and self.owner.kernels:
            self.owner.ran[name] = self.owner.ran.get(name, 0) + 1
            call = dict(zip((a.name for a in function._schema.arguments), args, strict=False))
            found = _LAUNCHED[name](**call, **kwargs, launch=run_on_host)
        else:
            found = function(*args, **kwargs)
        return tree_map(lambda x: put(x, gpu), found)


def _whole(device: Any) -> torch.device:
    device = torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


@torch.library.custom_op("pretended::move", mutates_args=())
def _move(x: Tensor, device: str) -> Tensor:
    return x.clone()


_move.register_autograd(lambda ctx, grad: (grad, None))


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, kernels: bool = False) -> Iterator[PretendedCuda]:
    """A GPU with CuPy, whose kernels run on the CPU."""
    monkeypatch.setattr(backend, "_obstacle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**34, 2**35))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=0)
    )
    make = torch.Tensor._make_subclass
    monkeypatch.setattr(
        torch.Tensor, "_make_subclass", lambda kind, x, *rest: put(make(kind, x, *rest), place(x))
    )
    found, engine = PretendedCuda(kernels), torch.autograd._engine_run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with _Functions(
            found
        ):  # a mode is off inside of its own functions, and this one leads back
            return engine(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", run_backward)
    with found:
        yield found
