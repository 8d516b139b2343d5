"""What NVRTC makes of every kernel, run on the CPU, its memory looked after.

The tests of the kernels' sources are taken once more with PTX in the sources' place: the same
shapes, types and tolerances. No thread may leave the memory of the arguments, read or write at an
address that does not fit, write where another one writes, or pass a barrier alone.
"""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import nvrtc
import pytest
import test_kernel_linear_gradient
import test_kernel_linear_sign_gradient
import test_kernel_noisy_lif
import test_kernel_ops
import test_kernel_sigma_gradient
import test_kernel_unpack_bits
import test_kernel_weighted_score
import torch
from host.layers import layers
from host.linear import EDGES
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx.runner import OPTIONS, MachineError, built, run_ptx, run_translated
from ptx.translate import translate

from nit_snn.dynamics.kernels.launch import FOLDER, REALS, Launch, options, source
from nit_snn.dynamics.kernels.noisy_lif.op import launched as noisy_lif
from nit_snn.recording import bits as spike_bits

if nvrtc.library() is None:
    pytest.skip("there is no NVRTC of CUDA 12 for this platform", allow_module_level=True)

KERNELS = sorted(path.parent.name for path in FOLDER.glob("*/kernel.cu"))
DRAWN = {
    test_kernel_linear_gradient: ["test_source_is_right"],
    test_kernel_linear_sign_gradient: [
        "test_source_is_exact_for_whole_numbers",
        "test_source_is_close_for_any_numbers",
    ],
    test_kernel_noisy_lif: ["test_source_does_what_the_reference_does"],
    test_kernel_sigma_gradient: ["test_source_does_what_the_reference_does"],
    test_kernel_unpack_bits: ["test_source_does_what_the_reference_does"],
    test_kernel_weighted_score: [
        "test_source_does_what_the_reference_does",
        "test_two_chunks_are_one",
    ],
}
FEW = settings(max_examples=6, deadline=None, derandomize=True)


@pytest.fixture(scope="module", autouse=True)
def _ptx_instead_of_source() -> Any:
    modules = [*DRAWN, test_kernel_ops]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "run_on_host", run_ptx)
        yield


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "name"), [(m, n) for m, names in DRAWN.items() for n in names], ids=str
)
def test_whatever_its_source_is_tested_with(module: ModuleType, name: str) -> None:
    getattr(module, name)()


# A few of each, in one type, so that few kernels have to be compiled.
@FEW
@given(test_kernel_noisy_lif.sequences().filter(lambda case: case["real"] == torch.float32))
def test_noisy_lif(case: dict[str, Any]) -> None:
    test_kernel_noisy_lif.test_source_does_what_the_reference_does.hypothesis.inner_test(case)


@FEW
@given(layers(), st.booleans(), st.booleans())
def test_weighted_score(case: Any, signs: bool, summed: bool) -> None:
    own = test_kernel_weighted_score.test_source_does_what_the_reference_does
    own.hypothesis.inner_test(case, signs, summed, torch.bfloat16)


@FEW
@given(layers())
def test_sigma_gradient(case: Any) -> None:
    test_kernel_sigma_gradient.test_source_does_what_the_reference_does.hypothesis.inner_test(case)


@FEW
@given(st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
def test_unpack_bits(steps: int, slot: int, seed: int) -> None:
    own = test_kernel_unpack_bits.test_source_does_what_the_reference_does
    own.hypothesis.inner_test(steps, slot, 3, 7, torch.float16, seed)


@pytest.mark.full
@pytest.mark.parametrize("real", [torch.float32, torch.float16])
def test_what_is_not_contiguous_or_not_aligned(real: torch.dtype) -> None:
    test_kernel_ops.test_what_is_not_contiguous_or_not_aligned(real)


@pytest.mark.parametrize(
    ("real", "most"),
    [
        (torch.float32, 60),
        *(pytest.param(r, 75, marks=pytest.mark.full) for r in (torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
@pytest.mark.parametrize("delayed", [False, True])
def test_instructions_of_the_fused_neuron(real: torch.dtype, most: int, delayed: bool) -> None:
    """Of PTX, for each number of 32 steps. It is bound by them, not by memory."""
    steps, rows, inner = 32, 4, 512
    half, taken = torch.full((1,), 0.5), []
    noisy_lif(
        torch.randn(steps, rows, inner).to(real),
        None,
        spike_bits.empty(steps, (rows, inner)),
        *(half, half, torch.ones(1), half),
        passes=torch.tensor([1]),
        **{"seed": 1, "layer": 0, "replicas": 4, "antithetic": False},
        **{"rest": 0.0, "v_reset": 0.0, "reset": "hard", "delayed": delayed, "or_equal": True},
        **{"steps": steps, "first_step": 0, "slot": 0, "wants_membranes": False},
        launch=lambda what: taken.append(run_ptx(what)),
    )
    assert taken[0] / (steps * rows * inner) < most


@pytest.mark.full
@pytest.mark.parametrize("name", EDGES)
def test_dense_gradients_at_the_edges(name: str) -> None:
    test_kernel_linear_gradient.test_source_is_right_at_the_edges(name)
    test_kernel_linear_sign_gradient.test_source_is_exact_at_the_edges(name)


@pytest.mark.parametrize("real", REALS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_lies_in_local_memory(kernel: str, real: torch.dtype) -> None:
    """An array whose index is not known when it is compiled would, and each use of it is slow."""
    made = nvrtc.compiled(source(kernel), f"{kernel}.cu", (*options(real), *OPTIONS)).decode()
    assert not re.search(r"\.local\b", made)


#: A kernel of 64 threads over 64 numbers in x, with 64 more in shared memory, y.
FAULTS = {
    "read out of bounds": "x[t] = x[t + 1];",
    "write out of bounds": "x[t + 1] = 1.0f;",
    "misaligned": "if (t == 0) { float2 v = *(float2 *)(x + 1); x[5] = v.x + v.y; }",
    "two threads write": "x[0] = t;",
    "race: (read after write|write after read)": "y[t] = x[t]; x[t] = y[63 - t];",
    "race: (write after read|read after write)": (
        "y[t] = x[t]; __syncthreads(); float z = y[63 - t]; y[t] = z; __syncthreads(); x[t] = z;"
    ),
    "race: two threads write": "y[t / 64] = t; __syncthreads(); x[t] = y[0];",
    "past the last barrier": "if (t > 5) break; y[t] = x[t]; __syncthreads(); x[t] = y[t] + 1;",
    "out of bounds or misaligned": "y[t + 1] = 1.0f; __syncthreads(); x[t] = y[t];",
}
SOUND = "y[t] = x[t]; __syncthreads(); x[t] = y[63 - t];"


@cache
def with_faults() -> Any:
    """All of them in one kernel, which takes the number of one."""
    cases = "".join(f"case {i}: {{ {body} }} break;" for i, body in enumerate(FAULTS.values()))
    code = (
        'extern "C" __global__ void f(float *x, int which) { __shared__ float y[64];'
        f"int t = threadIdx.x; switch (which) {{ {cases} default: {SOUND} }} }}"
    )
    return built(nvrtc.compiled(code, "f.cu", OPTIONS).rstrip(b"\0").decode())


def run_faulty(*arguments: Any) -> int:
    what = Launch("f", torch.float32, torch.device("cpu"), (1, 1), 64, arguments)
    return run_translated(what, *with_faults())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str) -> None:
    with pytest.raises(MachineError, match=fault):
        run_faulty(torch.ones(64), np.int32(list(FAULTS).index(fault)))


def test_a_sound_kernel_runs_and_its_instructions_are_counted() -> None:
    x = torch.arange(64.0)
    assert 64 * 8 < run_faulty(x, np.int32(-1)) < 64 * 80
    assert torch.equal(x, torch.arange(64.0).flip(0))


def test_arguments_of_another_size_are_noticed() -> None:
    with pytest.raises(MachineError, match=r"takes \['u64', 'u32'\], got \[8, 8\]"):
        run_faulty(torch.ones(64), np.int64(1))


def test_a_tensor_is_all_that_may_be_touched() -> None:
    """The end of one argument is no way to another."""
    with pytest.raises(MachineError, match="read out of bounds"):
        run_faulty(torch.ones(128)[:64], np.int32(0))


def test_what_is_not_known_is_an_error() -> None:
    code = 'extern "C" __global__ void f(float *x) { atomicAdd(x, 1.0f); }'
    with pytest.raises(ValueError, match="atom"):
        translate(nvrtc.compiled(code, "f.cu", OPTIONS).rstrip(b"\0").decode())
