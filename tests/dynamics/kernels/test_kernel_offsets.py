"""Offsets and thread numbers that 32 bits do not hold: the far end of tensors that are not there.

One row of a single replica has the noise of the last of 65,536 replicas if it is named so: what
the last block of the large grid makes is compared with the end of that row.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from host.runner import run_on_host
from host.sparse import LastBlock, sparse
from torch import Tensor

from nit_snn.dynamics.kernels.linear_gradient.op import launched as linear_gradient
from nit_snn.dynamics.kernels.linear_sign_gradient.op import launched as linear_sign_gradient
from nit_snn.dynamics.kernels.noisy_lif.op import launched as noisy_lif
from nit_snn.dynamics.kernels.sigma_gradient.op import launched as sigma_gradient
from nit_snn.dynamics.kernels.weighted_score.op import launched as weighted_score

STEPS, ROWS, INNER = 3, 2**16, 2**18 + 2**10
END = 4 * 256  # the neurons of the last block
_LEVELS = torch.rand(4, INNER, generator=torch.Generator().manual_seed(0)) + 0.1
NEURONS = {
    **dict(zip(("decay", "gain", "threshold", "sigma"), _LEVELS, strict=True)),
    "rest": 0.0,
    "v_reset": 0.0,
    "reset": "soft",
    "delayed": True,
    "or_equal": False,
}
PARAMETERS = {
    "passes": torch.tensor([1]),
    "seed": 3,
    "antithetic": False,
    "steps": STEPS,
    "first_step": 0,
}
LARGE = {**PARAMETERS, "layer": 2, "replicas": ROWS}
SMALL = {**LARGE, "replicas": 1, "first_replica": ROWS - 1}


@pytest.fixture(scope="module", autouse=True)
def _addresses() -> None:
    if sys.platform != "linux":
        pytest.skip("sparse memory is asked for as Linux has it")
    try:
        sparse((2**38,), torch.uint8)
    except OSError as error:
        pytest.skip(f"no addresses for sparse memory: {error}")


@pytest.fixture
def block() -> LastBlock:
    return LastBlock()


def test_the_grid_is_beyond_32_bits() -> None:
    assert ROWS * INNER > 2**33 and ROWS * (INNER // 4) > 2**32


def ends(block: LastBlock, *shape: int) -> tuple[Tensor, Tensor]:
    """(large, small): random at the end of the last row, zero elsewhere."""
    large = torch.empty(*shape, ROWS, INNER, device="meta")
    small = torch.zeros(*shape, 1, INNER)
    small[..., -END:] = torch.randn(*shape, 1, END)
    block.of(large)[..., -1, -END:] = small[..., 0, -END:]
    return large, small


def assert_same_end(block: LastBlock, large: Tensor, small: Tensor) -> None:
    found, wanted = block.of(large)[..., -1, -END:], small[..., 0, -END:]
    assert torch.equal(found, wanted) and found.any()


def test_noisy_lif(block: LastBlock) -> None:
    current, few = ends(block, STEPS)
    state, own = ends(block)
    bits = torch.empty(1, ROWS, INNER, dtype=torch.uint8, device="meta")
    single = torch.zeros(1, 1, INNER, dtype=torch.uint8)
    more: dict[str, Any] = {**NEURONS, "slot": 0, "wants_membranes": True}
    found = noisy_lif(current, state, bits, **LARGE, **more, launch=block)
    wanted = noisy_lif(few, own, single, **SMALL, **more, launch=run_on_host)
    for large, small in zip((*found, bits), (*wanted, single), strict=True):
        assert_same_end(block, large, small)


def last_weight(block: LastBlock) -> tuple[Tensor, Tensor]:
    """(large, small): 0.5 of the last row, and nothing of any other."""
    weight = torch.empty(ROWS, device="meta")
    block.of(weight)[-1] = 0.5
    return weight, torch.tensor([0.5])


def test_weighted_score(block: LastBlock) -> None:
    weight, own = last_weight(block)
    more = {"inner": INNER, "scale": torch.rand(INNER)}
    found = weighted_score(weight, **LARGE, **more, launch=block)
    wanted = weighted_score(own, **SMALL, **more, launch=run_on_host)
    assert_same_end(block, found, wanted)


def test_sigma_gradient(block: LastBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a part for each row."""
    monkeypatch.setattr("nit_snn.dynamics.kernels.launch._ENOUGH", 2**40)
    weight, own = last_weight(block)
    sums: list[Tensor] = []

    def launch(what: Any) -> None:
        sums.append(what.arguments[1])
        block(what)

    sigma_gradient(weight, inner=INNER, **LARGE, launch=launch)
    wanted = sigma_gradient(own, inner=INNER, **SMALL, launch=run_on_host)
    assert sums[0].shape == (ROWS, INNER)
    assert_same_end(block, sums[0], wanted[None])


@pytest.mark.parametrize("kernel", [linear_gradient, linear_sign_gradient])
def test_bits_of_a_late_step(kernel: Any) -> None:
    rows, inputs, late = 16, 256, 2**20
    given = {**PARAMETERS, "layer": 0, "replicas": 2, "outputs": 5, "weight": torch.randn(rows)}
    if kernel is linear_gradient:
        given["scale"] = torch.ones(1)
    bits = torch.randint(256, (1, rows, inputs), dtype=torch.uint8)
    long = sparse((late + 1, rows, inputs), torch.uint8)
    long[late] = bits[0]
    found, wanted = (
        kernel(b, slot=slot, **given, launch=run_on_host)
        for b, slot in ((long, 8 * late + 2), (bits, 2))
    )
    assert long[0].numel() * late >= 2**32 and torch.equal(found, wanted) and found.any()
