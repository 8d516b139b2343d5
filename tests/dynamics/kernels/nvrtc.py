"""NVIDIA's runtime compiler, which needs neither a GPU nor a driver, through ctypes."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, files

_PACKAGE = "nvidia-cuda-nvrtc-cu12"


@cache
def library() -> ctypes.CDLL | None:
    """That of CUDA 12, the last one that knows compute capability 7.0; None without the package."""
    try:
        held = [f for f in files(_PACKAGE) or [] if ".so" in f.name]
    except PackageNotFoundError:
        return None
    loaded = None
    # It looks for its built-in functions by name: they have to be there already.
    for kind in ("libnvrtc-builtins.so", "libnvrtc.so"):
        for file in held:
            if file.name.startswith(kind):
                loaded = ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
    return loaded


def compiled(source: str, name: str, options: tuple[str, ...], cubin: bool = False) -> bytes:
    """PTX, or machine code.

    Raises:
        RuntimeError: It does not compile, or not without a warning.
    """
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    _check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), 0, None, None
        )
    )
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        lines = _text(nvrtc, program, "ProgramLog").rstrip(b"\0").decode().splitlines()
        # Capability 7.0 is on its way out of CUDA; that is known.
        log = [line for line in lines if line.strip() and "Architectures prior to" not in line]
        if failed or log:
            raise RuntimeError("\n".join([f"{name} {options}", *log]))
        return _text(nvrtc, program, "CUBIN" if cubin else "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    held = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, held))
    return held.raw


def _check(result: int) -> None:
    if result:
        raise RuntimeError(f"NVRTC failed with code {result}.")
