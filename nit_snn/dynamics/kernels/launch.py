"""From torch tensors to a kernel: addresses, numbers, torch's own stream.

torch owns all memory; a kernel gets addresses and plain numbers, which every launcher knows. (They
are addresses, not DLPack's arrays, since not every CuPy has an array of bfloat16.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import BackendError
from ...noise.philox import Stream
from ...validation.capture import being_captured

FOLDER = Path(__file__).parent
INCLUDE = FOLDER / "include"
#: What every kernel is compiled with.
OPTIONS = ("--std=c++17",)
#: What NIT_REAL is for each type that currents may have.
REALS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MOST_ROWS, _MOST_INNER = 2**32, 2**31 - 4
_ENOUGH = 2**17
#: Blocks that a grid's second dimension holds.
MOST_PARTS = 2**16 - 1

Argument = Tensor | np.generic | None


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: Its name: that of its folder and of its function.
        real: The type that `NIT_REAL` stands for.
        device: Where.
        grid: Blocks, in two dimensions.
        block: Threads of a block.
        arguments: In the kernel's order; tensors are contiguous.
    """

    kernel: str
    real: torch.dtype
    device: torch.device
    grid: tuple[int, int]
    block: int
    arguments: Sequence[Argument]

    def numbers(self) -> list[np.generic]:
        """The arguments as the kernel gets them, with addresses for the tensors."""
        return [
            np.uint64(0 if a is None else a.data_ptr()) if a is None or isinstance(a, Tensor) else a
            for a in self.arguments
        ]


def over(threads: int, block: int = 256) -> tuple[tuple[int, int], int]:
    """Grid and block for so many threads."""
    return (-(-threads // block), 1), block


def parts(threads: int, most: int) -> int:
    """In how many parts, from one to `most`, so few threads' work is split to fill a GPU."""
    return max(1, min(most, _ENOUGH // max(1, threads)))


def placed(x: Tensor) -> Tensor:
    """Contiguous, at an address that four numbers at once can be read from."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def dense(x: Tensor) -> Tensor:
    """The same in float32."""
    return placed(x.float())


def options(real: torch.dtype) -> tuple[str, ...]:
    """What a kernel is compiled with."""
    return (f"-DNIT_REAL={REALS[real]}", *OPTIONS)


def source(kernel: str) -> str:
    """A kernel with its headers in it: whoever caches what it is compiled to sees all of it."""
    return _with_headers((FOLDER / kernel / "kernel.cu").read_text(), set())


def _with_headers(text: str, known: set[str]) -> str:
    lines = []
    for line in text.splitlines():
        name = line.removeprefix('#include "').removesuffix('"')
        if name == line or not (INCLUDE / name).exists():
            lines.append(line)
        elif name not in known:
            known.add(name)
            lines.append(_with_headers((INCLUDE / name).read_text(), known))
    return "\n".join(line for line in lines if line != "#pragma once") + "\n"


def levels(values: Tensor, inner: int) -> tuple[Argument, Argument]:
    """A parameter of the neurons: one number, one each, or one for some neighbours each."""
    shared = 0 if values.numel() == 1 else inner // values.numel()
    return values, np.int32(shared)


def stream_arguments(stream: Stream) -> list[Argument]:
    return [
        np.uint64(stream.seed & 0xFFFFFFFFFFFFFFFF),
        stream.passes,
        np.int32(stream.layer),
        np.int32(stream.replicas),
        np.int32(stream.antithetic),
        np.int32(stream.first_replica),
    ]


def check_size(rows: int, inner: int) -> None:
    """What the counter of the noise and a kernel's numbers can tell apart.

    Raises:
        ValueError: More.
    """
    if rows >= _MOST_ROWS or inner > _MOST_INNER:
        raise ValueError(
            f"The kernels take fewer than 2^32 rows of at most 2^31 - 4 neurons, got {rows} rows "
            f"of {inner}. Use smaller batches, or NIT_SNN_BACKEND=torch."
        )


def launch(what: Launch) -> None:
    """Runs a kernel on torch's current stream of its device.

    Nothing waits for it: torch's allocator gives memory that is let go of back to the same stream
    only.

    Raises:
        BackendError: Tensors are on different devices, or a kernel would have to be compiled while
            a CUDA graph is captured.
    """
    import cupy

    index = what.device.index if what.device.index is not None else torch.cuda.current_device()
    _check_devices(what, torch.device(what.device.type, index))
    key = (what.kernel, what.real, index)
    with torch.cuda.device(index), cupy.cuda.Device(index):
        if key not in _FUNCTIONS:
            if being_captured():
                raise BackendError(
                    f"The kernel {what.kernel} ({what.real}) would have to be compiled and loaded "
                    "while a CUDA graph is captured. Take the same step outside of the graph "
                    "first, as nit_snn.cuda_graph() does."
                )
            _FUNCTIONS[key] = _compiled(what.kernel, what.real)
        with _stream(torch.cuda.current_stream(index).cuda_stream, index):
            _FUNCTIONS[key](what.grid, (what.block,), tuple(what.numbers()))
    LAUNCHED[what.kernel] = LAUNCHED.get(what.kernel, 0) + 1


#: How often each kernel ran: what shows that the kernels' path was taken.
LAUNCHED: dict[str, int] = {}
#: Compiled kernels by name, type and device.
_FUNCTIONS: dict[tuple[str, torch.dtype, int], Any] = {}


def _check_devices(what: Launch, device: torch.device) -> None:
    """A kernel would take the address of another device's memory for one of its own."""
    found = {a.device for a in what.arguments if isinstance(a, Tensor)}
    if found - {device}:
        listed = ", ".join(sorted(map(str, found)))
        raise BackendError(
            f"The tensors of {what.kernel} are on different devices: {listed}. Move the network, "
            "its parameters, its states and the input to one."
        )


def _compiled(kernel: str, real: torch.dtype) -> Any:
    import cupy

    module = cupy.RawModule(code=source(kernel), options=options(real), backend="nvrtc")
    return module.get_function(kernel)


@lru_cache(maxsize=64)
def _stream(pointer: int, index: int) -> Any:
    """torch's stream as one of CuPy's, which must not be closed."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Pointer(pointer))
    return cupy.cuda.ExternalStream(pointer, index)  # before CuPy 14


@dataclass(frozen=True)
class _Pointer:
    """CUDA's stream protocol, which not every torch has."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address
