"""Which code takes the steps on a device: torch's operators, or CUDA kernels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch

from ..errors import BackendError
from .kernels.launch import OPTIONS

NAMES = ("torch", "cupy", "reference")
VARIABLE = "NIT_SNN_BACKEND"
_OLDEST = (7, 0)
#: What NVRTC of CUDA 13 still compiles for.
_OLDEST_OF_13 = (7, 5)
_PROBE = 'extern "C" __global__ void nit_probe(int *x) { *x = 1; }'


@dataclass(frozen=True)
class Backend:
    """What a device gets.

    Attributes:
        name: "torch"; "cupy", the CUDA kernels; or "reference", these kernels' models in torch,
            which give the same numbers on any device, slowly.
        reason: Why, and why not another.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def backends() -> dict[str, Backend]:
    """The backend of every device here, and why it is that one.

    The environment variable NIT_SNN_BACKEND forces one.

    Raises:
        BackendError: The variable asks for something that there is not.

    Example:
        >>> from nit_snn import backends
        >>> backends()["cpu"].name
        'torch'
    """
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "cupy":
        return {name: _choose(torch.device(name), "") for name in devices}
    return {name: backend_of(torch.device(name)) for name in devices}


def backend_of(device: torch.device) -> Backend:
    """The backend of one device.

    Raises:
        BackendError: NIT_SNN_BACKEND names none, or one that cannot run there.
    """
    return _choose(device, os.environ.get(VARIABLE, ""))


def _choose(device: torch.device, wanted: str) -> Backend:
    if wanted and wanted not in NAMES:
        raise BackendError(f"{VARIABLE} must be one of {NAMES} or empty, got {wanted!r}.")
    if wanted in ("torch", "reference"):
        return Backend(wanted, f"forced by {VARIABLE}")
    obstacle = _obstacle(device)
    if obstacle is None:
        return Backend("cupy", f"forced by {VARIABLE}" if wanted else "a CUDA device with CuPy")
    if wanted:
        raise BackendError(f"{VARIABLE}=cupy cannot run on {device}: {obstacle}.")
    return Backend("torch", f"no kernels here: {obstacle}")


def _obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device; None if they can."""
    if device.type != "cuda":
        return f"they are for NVIDIA GPUs, and this is {device.type}"
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    index = torch.cuda.current_device() if device.index is None else device.index
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below 7.0"
    return _no_cupy(index, capability)


@cache
def _no_cupy(index: int, capability: tuple[int, int]) -> str | None:
    """Why CuPy cannot run kernels on a device; a small one is compiled and loaded."""
    extra = f"cuda{(torch.version.cuda or '12').split('.')[0]}x"
    try:
        import cupy
    except ImportError:
        return f"CuPy is not installed (pip install 'nit-snn[{extra}]')"
    try:
        cupy.cuda.runtime.getDeviceCount()
        compiler = cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # whatever CuPy makes of a missing driver or library
        return f"CuPy does not work here: {_short(error)}"
    if capability < _OLDEST_OF_13 and compiler[0] >= 13:
        return (
            f"the compiler of CUDA {compiler[0]} makes nothing for compute capability "
            f"{capability[0]}.{capability[1]} (pip install 'nit-snn[cuda12x]' in its place)"
        )
    try:
        with cupy.cuda.Device(index):
            cupy.RawModule(code=_PROBE, options=OPTIONS, backend="nvrtc").get_function("nit_probe")
    except Exception as error:  # missing headers, a read-only cache, a driver that is too old
        return f"CuPy cannot compile here: {_short(error)} (pip install 'nit-snn[{extra}]')"
    return None


def _short(error: Exception) -> str:
    """An error in one line: a compiler's has the whole source in it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
