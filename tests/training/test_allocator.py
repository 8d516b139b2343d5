"""What the C library does with memory that is freed, counted in pages that the system cleared."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from nit_snn import keep_freed_memory

_LOOP = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from nit_snn import keep_freed_memory
    assert keep_freed_memory()
def turn():
    torch.empty(2**24).fill_(1.0)  # 64 MiB
for _ in range(5):  # until it has found its place among what else is there
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.full
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_large_blocks_are_cleared_once() -> None:
    def pages(way: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _LOOP, way], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    given_back = pages("given back")
    if given_back < 5:  # a system that hands out huge pages
        pytest.skip("the system clears memory in pieces too large to be counted")
    assert pages("kept") < given_back / 2


def test_it_says_whether_it_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
