"""Compiles the loops, once for a processor and a compiler, and loads them."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_SOURCES = ("steps.cpp", "charge.cpp", "explained.cpp", "settle.cpp")
_HEADERS = ("shared.h", "normal.h", "replicas.h")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-pthread",
    "-fPIC",
    "-shared",
)
_PATIENCE = 120.0


class CannotBuildError(Exception):
    """Why there are no compiled loops."""


@cache
def loops() -> ctypes.CDLL | str:
    """The compiled loops, or why there are none."""
    try:
        library = _library()
        try:
            return ctypes.CDLL(str(_built(library)))
        except OSError:  # a damaged file
            library.unlink(missing_ok=True)
            return ctypes.CDLL(str(_built(library)))
    except (CannotBuildError, OSError, subprocess.SubprocessError) as error:
        return str(error)


def compiled() -> ctypes.CDLL:
    """The compiled loops; whoever calls has seen that they are there."""
    found = loops()
    assert isinstance(found, ctypes.CDLL)
    return found


def _library() -> Path:
    """Where this compiler's loops for this processor are, or will be."""
    if sys.byteorder != "little" or os.name != "posix":
        raise CannotBuildError("they are for little-endian processors under POSIX systems")
    return _folder() / f"loops-{_fingerprint(_compiler())}.so"


def _built(library: Path) -> Path:
    """Compiled, unless it has been already."""
    if not (library.exists() and _is_own(library)):  # it may be older than the folder's mode
        made = Path(tempfile.mkdtemp(dir=library.parent))
        try:
            sources = [str(_HERE / name) for name in _SOURCES]
            _run([_compiler(), *_FLAGS, *sources, "-o", str(made / library.name)])
            (made / library.name).replace(library)  # at once, whoever else makes it, too
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return library


def _compiler() -> str:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    for name in names:
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise CannotBuildError("there is no C++ compiler (c++, g++, clang++, or $CXX)")


def _fingerprint(compiler: str) -> str:
    """Of the sources, the compiler, and the processor that it compiles for."""
    texts = [(_HERE / name).read_text() for name in (*_SOURCES, *_HEADERS)]
    # Every instruction set has its macros, and so has the compiler's version.
    macros = _run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    whole = "\0".join([compiler, *_FLAGS, *texts, macros])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _folder() -> Path:
    """Where libraries are kept: nowhere that somebody else could put one."""
    try:
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache_home) / "nit_snn"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_own(folder) and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return _own_folder()


def _is_own(path: Path) -> bool:
    """Whether it is this user's, and nobody else's to write to."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@cache
def _own_folder() -> Path:
    """For this process alone."""
    folder = Path(tempfile.mkdtemp(prefix="nit_snn_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        CannotBuildError: It failed.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CannotBuildError(f"{Path(command[0]).name} failed: {lines[0]}")
    return done.stdout
