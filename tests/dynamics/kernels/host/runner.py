"""Runs a kernel's own source on the CPU: compiled as C++, over its whole grid."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from nit_snn.dynamics.kernels.launch import Launch, options, source

_HERE = Path(__file__).parent


def run_on_host(what: Launch, entry: str = "launch") -> None:
    """A launcher for tests: what the kernel does, without a GPU.

    With "launch_last" as `entry` only the last blocks of the grid's first dimension run.
    """
    numbers = what.numbers()
    assert all(isinstance(n, np.generic) for n in numbers)
    cells = [np.array([n]) for n in numbers]
    addresses = (ctypes.c_void_p * len(cells))(*(cell.ctypes.data for cell in cells))
    launch = _compiled(what.kernel, what.real, entry)
    launch(*what.grid, what.block, addresses)


@cache
def _compiled(kernel: str, real: torch.dtype, name: str) -> ctypes._CFuncPtr:
    folder = Path(tempfile.mkdtemp(prefix="nit_snn_"))
    entry = folder / f"{kernel}.cpp"
    entry.write_text(f"{source(kernel)}\nNIT_HOST_ENTRY({kernel})\n")
    built = folder / f"{kernel}.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared"]
    mode = [o for o in options(real) if not o.startswith("--std")]
    command = ["g++", *flags, "-fPIC", "-DNIT_HOST", f"-I{_HERE}", *mode, str(entry)]
    subprocess.run([*command, "-o", str(built)], check=True)
    function = getattr(ctypes.CDLL(str(built)), f"{name}_{kernel}")
    function.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]
    function.restype = None
    return function
