"""Runs what NVRTC makes of a kernel on the CPU, over its whole grid, and looks after its memory."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import nvrtc
import torch
from torch import Tensor

from nit_snn.dynamics.kernels.launch import Launch, options, source

from .translate import Kernel, translate

_HERE = Path(__file__).parent
#: How CuPy compiles for an H100, but to PTX instead of machine code.
OPTIONS = ("-ftz=true", "--gpu-architecture=compute_90")
_FLAGS = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-mfma", "-mf16c", "-shared", "-fPIC"]


class MachineError(RuntimeError):
    """What a GPU would have done wrong."""


def run_ptx(what: Launch) -> int:
    """A launcher for tests: what the GPU is given to run.

    Returns:
        How many instructions of PTX all threads have taken.

    Raises:
        MachineError: A thread reached for memory of no argument, or for an address that does not
            fit its size; two threads wrote one address; or a barrier was missing.
    """
    return run_translated(what, *_compiled(what.kernel, what.real))


def run_translated(what: Launch, kernel: Kernel, machine: ctypes.CDLL) -> int:
    """The same with a kernel that was translated before."""
    cells = [number.reshape(1) for number in what.numbers()]
    sizes = [cell.dtype.itemsize for cell in cells]
    if sizes != [int(kind[1:]) // 8 for kind in kernel.parameters]:
        raise MachineError(f"{what.kernel} takes {kernel.parameters}, got {sizes}")
    addresses = (ctypes.c_void_p * len(cells))(*(cell.ctypes.data for cell in cells))
    ranges = [bound for a in what.arguments if isinstance(a, Tensor) for bound in _range(a)]
    held = (ctypes.c_uint64 * len(ranges))(*ranges)
    instructions = ctypes.c_uint64()
    trouble = machine.run(
        *(ctypes.c_uint32(n) for n in (*what.grid, what.block)),
        addresses,
        held,
        ctypes.c_uint64(len(ranges) // 2),
        kernel.waits,
        ctypes.byref(instructions),
    )
    if trouble:
        raise MachineError(f"{what.kernel}: {trouble.decode()}")
    return instructions.value


def _range(x: Tensor) -> tuple[int, int]:
    assert x.is_contiguous()
    return x.data_ptr(), x.data_ptr() + x.nbytes


@cache
def _compiled(kernel: str, real: torch.dtype) -> tuple[Kernel, ctypes.CDLL]:
    made = nvrtc.compiled(source(kernel), f"{kernel}.cu", (*options(real), *OPTIONS))
    return built(made.rstrip(b"\0").decode())


def built(ptx: str) -> tuple[Kernel, ctypes.CDLL]:
    """A kernel's PTX, translated and compiled."""
    kernel = translate(ptx)
    folder = Path(tempfile.mkdtemp(prefix="nit_snn_"))
    file, library = folder / f"{kernel.name}.cpp", folder / f"{kernel.name}.so"
    sizes = ", ".join(map(str, kernel.sizes))
    file.write_text(
        f"enum {{ SHARED_BYTES = {kernel.shared}, PIECES = {len(kernel.sizes)} }};\n"
        f"static const int SIZES[] = {{{sizes}}};\n"
        f'#include "machine.h"\nstatic void thread() {{\n{kernel.body}\n}}\n'
    )
    subprocess.run(
        ["g++", *_FLAGS, f"-I{_HERE}", str(file), "-o", str(library)], check=True, cwd=folder
    )
    machine = ctypes.CDLL(str(library))
    machine.run.restype = ctypes.c_char_p
    return kernel, machine
