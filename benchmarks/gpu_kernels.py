"""The kernels of nit_snn alone: how near they come to a copy's bandwidth, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_measure import Result, copy_rate, measure

from nit_snn.dynamics.kernels.linear_gradient.op import linear_gradient
from nit_snn.dynamics.kernels.linear_sign_gradient.op import linear_sign_gradient
from nit_snn.dynamics.kernels.noisy_lif.op import noisy_lif
from nit_snn.dynamics.kernels.sigma_gradient.op import sigma_gradient
from nit_snn.dynamics.kernels.unpack_bits.op import unpack_bits
from nit_snn.dynamics.kernels.weighted_score.op import weighted_score
from nit_snn.recording import bits as spike_bits

_TILE = 256  # inputs for which the gradient of a dense layer draws its noise once


@dataclass(frozen=True)
class Size:
    """T steps of N rows of F neurons, C replicas."""

    steps: int
    rows: int
    inner: int
    replicas: int

    @property
    def numbers(self) -> int:
        return self.steps * self.rows * self.inner

    @property
    def bits(self) -> int:
        """Bytes of the spikes as bits."""
        return spike_bits.planes(self.steps) * self.rows * self.inner


@dataclass(frozen=True)
class Case:
    """A kernel, and what it has to do.

    Attributes:
        kernel: Its name.
        size: Of its layer; a dense one has as many inputs as outputs.
        dtype: Of what it reads or writes as numbers.
        prepare: Makes its arguments, and returns what launches it.
        moved: Bytes that it reads and writes at the least.
        streams: Whether these are most of its work, so that a copy is what it compares with.
        drawn: Numbers that it draws, or makes of bits.
        flops: Of the product in it.
        popcounts: Of the product in it.
    """

    kernel: str
    size: Size
    dtype: str
    prepare: Callable[[], Callable[[], object]]
    moved: int
    streams: bool = False
    drawn: int = 0
    flops: int = 0
    popcounts: int = 0

    def measured(self, device: torch.device, seconds: float, matmul: float) -> Result:
        """Times, and what they mean per second; `matmul` is the rate of torch's products."""
        found = measure(self.prepare(), device, seconds)
        per_second = 1e3 / found["ms"]
        copy = copy_rate(self.moved, device)
        return found | {
            "bytes": self.moved,
            "bytes_per_second": self.moved * per_second,
            "copy_bytes_per_second": copy,
            "fraction_of_copy": self.moved * per_second / copy if self.streams else None,
            "numbers_per_second": self.drawn * per_second,
            "flops_per_second": self.flops * per_second or None,
            "fraction_of_matmul": self.flops * per_second / matmul or None,
            "popcounts_per_second": self.popcounts * per_second or None,
        }


def cases(size: Size, device: torch.device) -> list[Case]:
    """Every kernel at that size, and `linear_gradient` on the widest layer a learner gives it."""
    found, drawn = [], size.numbers
    for dtype in (torch.float32, torch.bfloat16):
        name, item = str(dtype).removeprefix("torch."), dtype.itemsize
        # Current in, spikes out, the last membrane; bits; four parameters and the pass's number.
        moved = item * (2 * drawn + size.rows * size.inner) + size.bits + 4 * 4 + 8
        prepare = partial(_noisy_lif, size, dtype, device)
        found.append(Case("noisy_lif", size, name, prepare, moved, streams=True, drawn=drawn))
        # Scores out; weights, a scale and the pass's number in.
        moved = item * drawn + 4 * size.rows + 4 + 8
        prepare = partial(_weighted_score, size, dtype, device)
        found.append(Case("weighted_score", size, name, prepare, moved, streams=True, drawn=drawn))
        moved = item * drawn + size.bits
        prepare = partial(_unpack_bits, size, dtype, device)
        found.append(Case("unpack_bits", size, name, prepare, moved, streams=True, drawn=drawn))
    moved = 4 * size.rows + 4 * size.inner + 8
    prepare = partial(_sigma_gradient, size, device)
    found.append(Case("sigma_gradient", size, "float32", prepare, moved, drawn=drawn))
    for inner in sorted({min(size.inner, 256), size.inner}):
        small = Size(size.steps, size.rows, inner, size.replicas)
        found.append(_linear_case(small, device, signs=False))
    return [*found, _linear_case(size, device, signs=True)]


def _linear_case(size: Size, device: torch.device, signs: bool) -> Case:
    products = size.rows * size.inner**2
    return Case(
        "linear_sign_gradient" if signs else "linear_gradient",
        size,
        "float32",
        partial(_linear, size, device, signs),
        size.bits + 4 * size.rows + 4 * size.inner * (size.inner + 1) + 8,
        drawn=size.numbers * -(-size.inner // _TILE),
        flops=0 if signs else 2 * size.steps * products,
        popcounts=-(-size.steps // 32) * products if signs else 0,
    )


def _noisy_lif(size: Size, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    half, one = torch.full((1,), 0.5, device=device), torch.ones(1, device=device)
    return partial(
        noisy_lif,
        torch.randn(size.steps, size.rows, size.inner, device=device).to(dtype),
        None,
        spike_bits.empty(size.steps, (size.rows, size.inner), device),
        decay=half,
        gain=half,
        threshold=one,
        sigma=half,
        **_stream(size, device),
        rest=0.0,
        v_reset=0.0,
        reset="hard",
        delayed=False,
        or_equal=True,
        steps=size.steps,
        first_step=0,
        slot=0,
        wants_membranes=False,
    )


def _weighted_score(size: Size, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    return partial(
        weighted_score,
        torch.randn(size.rows, device=device),
        torch.ones(1, device=device),
        **_stream(size, device),
        inner=size.inner,
        steps=size.steps,
        first_step=0,
        dtype=dtype,
    )


def _unpack_bits(size: Size, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    shape = (spike_bits.planes(size.steps), size.rows, size.inner)
    bits = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return partial(unpack_bits, bits, 0, size.steps, dtype)


def _sigma_gradient(size: Size, device: torch.device) -> Callable[[], object]:
    return partial(
        sigma_gradient,
        torch.randn(size.rows, device=device),
        **_stream(size, device),
        inner=size.inner,
        steps=size.steps,
        first_step=0,
    )


def _linear(size: Size, device: torch.device, signs: bool) -> Callable[[], object]:
    shape = (spike_bits.planes(size.steps), size.rows, size.inner)
    scale = {} if signs else {"scale": torch.ones(1, device=device)}
    return partial(
        linear_sign_gradient if signs else linear_gradient,
        torch.randint(256, shape, dtype=torch.uint8, device=device),
        torch.randn(size.rows, device=device),
        **scale,
        **_stream(size, device),
        outputs=size.inner,
        steps=size.steps,
        first_step=0,
    )


def _stream(size: Size, device: torch.device) -> dict[str, Any]:
    """Whose noise it is."""
    return {
        "passes": torch.ones(1, dtype=torch.int64, device=device),
        "seed": 1,
        "layer": 0,
        "replicas": size.replicas,
        "antithetic": False,
    }
