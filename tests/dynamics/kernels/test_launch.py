"""What CuPy is called with, by a stand-in for it: no GPU is needed to get that wrong."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pretended_cuda import PretendedCuda, put

from nit_snn.dynamics.kernels import launch as launching
from nit_snn.dynamics.kernels.launch import FOLDER, INCLUDE, Launch, source
from nit_snn.errors import BackendError

GPU = torch.device("cuda:0")


class Context:
    """Writes down when it is entered and left."""

    def __init__(self, seen: list[Any], *what: object) -> None:
        self.seen, self.what = seen, what

    def __enter__(self) -> None:
        self.seen.append(("enter", *self.what))

    def __exit__(self, *_: object) -> None:
        self.seen.append(("exit", *self.what))


@pytest.fixture(params=[True, False], ids=["CuPy 14", "CuPy 13"])
def seen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a stand-in for CuPy is called with, in which context."""
    seen: list[Any] = []

    def compiled(code: str, options: tuple[str, ...], backend: str) -> object:
        seen.append(("compiled", code, options, backend))
        return SimpleNamespace(get_function=lambda name: lambda *call: seen.append((name, *call)))

    def old(pointer: int, index: int) -> Context:
        if request.param:
            raise DeprecationWarning("ExternalStream is deprecated")
        return Context(seen, "stream", pointer)

    def new(stream: Any) -> Context:
        version, pointer = stream.__cuda_stream__()
        assert version == 0
        return Context(seen, "stream", pointer)

    cuda = SimpleNamespace(Device=lambda i: Context(seen, "device", i), ExternalStream=old)
    cuda.Stream = SimpleNamespace(from_external=new) if request.param else SimpleNamespace()
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, RawModule=compiled))
    monkeypatch.setattr(torch.cuda, "device", lambda i: Context(seen, "torch", i))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda i: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(launching, "_FUNCTIONS", {})
    launching._stream.cache_clear()
    yield seen
    launching._stream.cache_clear()


def test_cupy_is_given_addresses_and_numbers_on_torchs_stream(seen: list[Any]) -> None:
    before = launching.LAUNCHED.get("noisy_lif", 0)
    with PretendedCuda():
        x = put(torch.ones(3), GPU)
        for _ in range(2):
            launching.launch(
                Launch("noisy_lif", torch.float16, GPU, (5, 2), 64, [x, None, np.int32(4)])
            )
    (compiled,) = (s for s in seen if s[0] == "compiled")
    assert compiled[1] == source("noisy_lif") and compiled[3] == "nvrtc"
    assert "-DNIT_REAL=1" in compiled[2]
    call = next(s for s in seen if s[0] == "noisy_lif")
    assert call[1:3] == ((5, 2), (64,))
    assert call[3] == (x.data_ptr(), 0, 4)
    assert [type(a) for a in call[3]] == [np.uint64, np.uint64, np.int32]
    assert seen.index(("enter", "stream", 77)) < seen.index(call)
    assert launching.LAUNCHED["noisy_lif"] == before + 2


def test_tensors_of_two_devices_are_refused_by_name(seen: list[Any]) -> None:
    with PretendedCuda(), pytest.raises(BackendError, match=r"noisy_lif .*: cpu, cuda:0\. Move"):
        arguments = [put(torch.ones(3), GPU), torch.ones(3)]
        launching.launch(Launch("noisy_lif", torch.float32, GPU, (1, 1), 64, arguments))
    assert not seen


def test_nothing_is_compiled_while_a_graph_is_captured(
    seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    what = Launch("noisy_lif", torch.float32, GPU, (1, 1), 64, [])
    monkeypatch.setattr(launching, "being_captured", lambda: True)
    with pytest.raises(BackendError, match=r"noisy_lif .*compiled and loaded while a CUDA graph"):
        launching.launch(what)
    monkeypatch.setattr(launching, "being_captured", lambda: False)
    launching.launch(what)
    monkeypatch.setattr(launching, "being_captured", lambda: True)
    launching.launch(what)
    assert sum(s[0] == "compiled" for s in seen) == 1


@pytest.mark.parametrize("kernel", sorted(path.parent.name for path in FOLDER.glob("*/kernel.cu")))
def test_a_change_in_a_header_changes_the_source(
    kernel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """CuPy caches what it has compiled by the source and the options alone."""
    own = source(kernel)
    assert '#include "' not in own.replace('#include "host.h"', "")
    for header in INCLUDE.glob("*.cuh"):
        (tmp_path / header.name).write_text(header.read_text())
    monkeypatch.setattr(launching, "INCLUDE", tmp_path)
    assert source(kernel) == own
    changed = tmp_path / "platform.cuh"
    changed.write_text(changed.read_text() + "// another\n")
    assert source(kernel) != own
