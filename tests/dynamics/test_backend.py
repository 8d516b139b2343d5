"""Which backend a device gets, and what a learner does with it."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import SpikingJellyNet

import nit_snn.dynamics.backend as module
from nit_snn import NITLearner, backends, swap_neurons
from nit_snn.dynamics.backend import backend_of
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


OLD = (12, 8)


def fake_cupy(compiler: tuple[int, int] = (13, 0), broken: str | None = None) -> SimpleNamespace:
    """As much of CuPy as is asked; `broken` names what fails in it."""

    def count() -> int:
        if broken == "driver":
            raise RuntimeError("no driver")
        return 1

    def module(code: str, options: tuple[str, ...], backend: str) -> SimpleNamespace:
        assert 'extern "C"' in code and backend == "nvrtc"

        def get_function(name: str) -> None:
            if broken == "headers":
                raise RuntimeError("cannot open source file\n    vector_types.h")

        return SimpleNamespace(get_function=get_function)

    return SimpleNamespace(
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=count),
            nvrtc=SimpleNamespace(getVersion=lambda: compiler),
            Device=lambda index: nullcontext(),
        ),
        RawModule=module,
    )


@pytest.mark.parametrize(
    ("capability", "cupy", "name", "reason"),
    [
        ((9, 0), None, "torch", r"pip install 'nit-snn\[cuda13x\]'"),
        ((6, 1), None, "torch", "6.1 is below 7.0"),
        ((9, 0), fake_cupy(), "cupy", "a CUDA device with CuPy"),
        ((9, 0), fake_cupy(broken="driver"), "torch", "RuntimeError: no driver"),
        (
            (9, 0),
            fake_cupy(broken="headers"),
            "torch",
            r"CuPy cannot compile here: RuntimeError: cannot open source file vector_types.h \(pip",
        ),
        ((7, 0), fake_cupy(OLD), "cupy", "a CUDA device with CuPy"),
        ((7, 0), fake_cupy(), "torch", r"CUDA 13 makes nothing for .* 7.0 .*cuda12x"),
        ((7, 5), fake_cupy(), "cupy", "a CUDA device with CuPy"),
    ],
)
def test_a_gpu_takes_the_kernels_if_they_can_run(
    capability: tuple[int, int],
    cupy: SimpleNamespace | None,
    name: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: importing it fails
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
