"""Every kernel compiles for every GPU that is promised, for every type, without a warning."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nvrtc
import pytest
import torch

from nit_snn.dynamics.kernels.launch import FOLDER, REALS, options, source

if nvrtc.library() is None:
    pytest.skip("there is no NVRTC of CUDA 12 for this platform", allow_module_level=True)

KERNELS = sorted(path.parent.name for path in FOLDER.glob("*/kernel.cu"))


def test_all_kernels_are_here() -> None:
    assert KERNELS == [
        "linear_gradient",
        "linear_sign_gradient",
        "noisy_lif",
        "sigma_gradient",
        "unpack_bits",
        "weighted_score",
    ]


@pytest.mark.parametrize("real", REALS, ids=str)
@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_compiles(kernel: str, capability: int, real: torch.dtype) -> None:
    arguments = (*options(real), f"--gpu-architecture=compute_{capability}")
    code = nvrtc.compiled(source(kernel), f"{kernel}.cu", arguments).decode()
    assert f".entry {kernel}(" in code
    assert f".target sm_{capability}" in code


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_assembles(kernel: str) -> None:
    """To machine code for an H100."""
    arguments = (*options(torch.float32), "--gpu-architecture=sm_90")
    assert nvrtc.compiled(source(kernel), f"{kernel}.cu", arguments, cubin=True)[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("body", "message"), [("g();", "undefined"), ("int unused;", "never referenced")]
)
def test_errors_and_warnings_are_noticed(body: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        nvrtc.compiled(f"__global__ void f() {{ {body} }}", "f.cu", ())


_OF_13 = """
import sys; sys.path.insert(0, sys.argv[1])
import nvrtc; nvrtc._PACKAGE = "nvidia-cuda-nvrtc"
from nit_snn.dynamics.kernels.launch import REALS, options, source
for kernel in sys.argv[2:]:
    for real in REALS:
        for capability in (75, 90, 100):
            own = (*options(real), f"--gpu-architecture=sm_{capability}")
            nvrtc.compiled(source(kernel), kernel, own, cubin=True)
try:
    nvrtc.compiled(source(kernel), kernel, (*options(real), "--gpu-architecture=compute_70"))
except RuntimeError as error:
    assert "invalid value for --gpu-architecture" in str(error)
else:
    raise AssertionError("CUDA 13 knows capability 7.0")
"""


@pytest.mark.full
def test_cuda_13_compiles_them_for_all_but_7_0() -> None:
    """In a process of its own, for two compilers in one take each other's functions."""
    try:
        found = version("nvidia-cuda-nvrtc")
    except PackageNotFoundError:
        pytest.skip("torch has brought no NVRTC of CUDA 13")
    if not found.startswith("13."):
        pytest.skip(f"NVRTC is that of CUDA {found}")
    command = [sys.executable, "-c", _OF_13, str(Path(__file__).parent), *KERNELS]
    subprocess.run(command, check=True)
