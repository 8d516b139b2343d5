"""Which backend a device gets, and what a learner does with it."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SpikingJellyNet

import nit_snn.dynamics.backend as module
from nit_snn import NITLearner, backends, swap_neurons
from nit_snn.dynamics.backend import backend_of
from nit_snn.dynamics.kernels import launch as launching
from nit_snn.dynamics.kernels.launch import Launch
from nit_snn.errors import AttachError, BackendError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIT_SNN_BACKEND", raising=False)


def test_a_cpu_takes_torch_and_says_why() -> None:
    assert str(backends()["cpu"]).startswith("torch (no kernels here: they are for NVIDIA GPUs")


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_one_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", name)
    assert backend_of(CPU) == module.Backend(name, "forced by NIT_SNN_BACKEND")


def test_what_cannot_run_cannot_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "cupy")
    with pytest.raises(BackendError, match=r"cannot run on cpu: .*NVIDIA"):
        backend_of(CPU)
    learner = NITLearner(swap_neurons(SpikingJellyNet(), sigma=1.0), replicas=2)
    with pytest.raises(BackendError, match="cannot run on cpu"), learner.record():
        pass
    assert "cpu" in backends()  # asking what there is, is no reason to fail


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "cuda")
    with pytest.raises(BackendError, match=r"one of .*got 'cuda'"):
        backend_of(CPU)


@pytest.mark.parametrize(
    ("capability", "cupy", "name", "reason"),
    [
        ((9, 0), None, "torch", r"pip install 'nit-snn\[cuda13x\]'"),
        ((6, 1), None, "torch", "6.1 is below 7.0"),
        ((9, 0), "works", "cupy", "a CUDA device with CuPy"),
        ((9, 0), "no driver", "torch", "RuntimeError: no driver"),
    ],
)
def test_a_gpu_takes_the_kernels_if_they_can_run(
    capability: tuple[int, int],
    cupy: str | None,
    name: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count() -> int:
        if cupy == "no driver":
            raise RuntimeError("no driver")
        return 1

    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDeviceCount=count),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
    )
    fake = None if cupy is None else SimpleNamespace(cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", fake)  # None: importing it fails
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    module._no_cupy.cache_clear()
    try:
        found = backend_of(GPU)
    finally:
        module._no_cupy.cache_clear()
    assert found.name == name
    assert re.search(reason, found.reason)


def test_cupy_is_given_addresses_and_numbers_on_torchs_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for CuPy: what it is called with, in which context."""
    seen: list[object] = []

    class Context:
        def __init__(self, *what: object) -> None:
            self.what = what

        def __enter__(self) -> None:
            seen.append(("enter", *self.what))

        def __exit__(self, *_: object) -> None:
            seen.append(("exit", *self.what))

    def compiled(code: str, options: tuple[str, ...], backend: str) -> object:
        assert "NIT_KERNEL void noisy_lif" in code and backend == "nvrtc"
        assert "-DNIT_REAL=1" in options
        return SimpleNamespace(get_function=lambda name: lambda *call: seen.append((name, *call)))

    fake = SimpleNamespace(
        cuda=SimpleNamespace(
            Device=lambda i: Context("device", i), ExternalStream=lambda *s: Context("stream", *s)
        ),
        RawModule=compiled,
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "device", lambda i: Context("torch", i))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda i: SimpleNamespace(cuda_stream=77))
    launching._compiled.cache_clear()
    x = torch.ones(3)
    before = launching.LAUNCHED.get("noisy_lif", 0)
    try:
        launching.launch(
            Launch("noisy_lif", torch.float16, GPU, (5, 2), 64, [x, None, np.int32(4)])
        )
    finally:
        launching._compiled.cache_clear()
    call = next(s for s in seen if s[0] == "noisy_lif")
    assert call[1:3] == ((5, 2), (64,))
    assert call[3] == (x.data_ptr(), 0, 4)
    assert [type(a) for a in call[3]] == [np.uint64, np.uint64, np.int32]
    assert seen.index(("enter", "stream", 77, 0)) < seen.index(call)
    assert launching.LAUNCHED["noisy_lif"] == before + 1


def test_a_resumed_learner_goes_on_with_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")

    def step(learner: NITLearner) -> torch.Tensor:
        with learner.record():
            out = learner.net(learner.expand(x))
        learner.backward(out.sum(1))
        return out

    torch.manual_seed(0)
    x = torch.rand(3, 4)
    net = swap_neurons(SpikingJellyNet(), sigma=1.0)
    learner = NITLearner(net, replicas=2, credit="none", seed=3)
    first = [step(learner) for _ in range(2)]
    saved = learner.state_dict()
    third = step(learner)
    assert not torch.equal(first[0], first[1])
    learner.close()
    again = NITLearner(net, replicas=2, credit="none", seed=8)
    again.load_state_dict(saved)
    assert saved["passes"] == 2 and torch.equal(step(again), third)


def test_passes_that_only_the_device_has_counted_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")
    learner = NITLearner(
        swap_neurons(SpikingJellyNet(), sigma=1.0), replicas=2, credit="none", seed=3
    )
    with learner.record():
        learner.net(learner.expand(torch.rand(3, 4)))
    learner._session.source.counters[CPU].add_(5)  # as a replayed graph does
    assert learner.state_dict()["passes"] == 6


def test_more_replicas_than_a_counter_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "reference")
    learner = NITLearner(swap_neurons(SpikingJellyNet(), sigma=1.0), replicas=2**16 + 1)
    with pytest.raises(AttachError, match="65536 replicas"), learner.record():
        pass
