"""The operators as torch sees them: their schemas, their fakes, and what callers may give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host.runner import run_on_host
from torch import Tensor

from nit_snn.dynamics.kernels.launch import Launch, check_size
from nit_snn.dynamics.kernels.noisy_lif.op import launched, noisy_lif
from nit_snn.recording import bits as spike_bits

REST = {
    "seed": 3,
    "layer": 0,
    "replicas": 2,
    "antithetic": False,
    "rest": 0.0,
    "v_reset": 0.0,
    "reset": "soft",
    "delayed": True,
    "or_equal": False,
    "first_step": 0,
    "slot": 0,
}


def arguments(steps: int = 3, rows: int = 4, inner: int = 8) -> dict[str, Any]:
    torch.manual_seed(0)
    names = ("decay", "gain", "threshold", "sigma")
    return {
        "current": torch.randn(steps, rows, inner),
        "state": torch.randn(rows, inner),
        "bits": spike_bits.empty(steps, (rows, inner)),
        **{name: torch.full((1,), 0.7) for name in names},
        "passes": torch.tensor([1]),
        "steps": steps,
        "wants_membranes": True,
        **REST,
    }


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"bits": None},
        {"state": None},
        {"wants_membranes": False},
        {"first_replica": 3},
        {"bits": None, "state": None, "wants_membranes": False},
    ],
    ids=str,
)
def test_operator_is_sound(change: dict[str, Any]) -> None:
    torch.library.opcheck(noisy_lif, (), {**arguments(), **change})


def test_it_can_be_compiled_whole() -> None:
    given = arguments()

    @torch.compile(backend="eager", fullgraph=True)
    def twice(current: Tensor) -> Tensor:
        spikes, _, last = noisy_lif(**{**given, "current": current})
        more, _, _ = noisy_lif(**{**given, "current": current, "state": last, "first_step": 3})
        return torch.cat([spikes, more])

    given["bits"] = None
    first, _, last = noisy_lif(**given)
    second, _, _ = noisy_lif(**{**given, "state": last, "first_step": 3})
    assert torch.equal(twice(given["current"]), torch.cat([first, second]))


@pytest.mark.parametrize("real", [torch.float32, torch.float16])
def test_what_is_not_contiguous_or_not_aligned(real: torch.dtype) -> None:
    given = arguments()
    plain = launched(
        **{**given, "current": given["current"].to(real), "state": given["state"].to(real)},
        launch=run_on_host,
    )
    strided = torch.zeros(3, 4, 16, dtype=real)[..., ::2].copy_(given["current"])
    shifted = torch.zeros(4 * 8 + 1, dtype=real)[1:].view(4, 8).copy_(given["state"])
    bits = spike_bits.empty(3, (4, 8))
    found = launched(
        **{**given, "current": strided, "state": shifted, "bits": bits}, launch=run_on_host
    )
    for a, b in zip((*found, bits), (*plain, given["bits"]), strict=True):
        assert torch.equal(a, b)
    assert bits.any()


@pytest.mark.parametrize("shape", [(3, 0, 8), (3, 4, 0), (0, 4, 8)])
def test_nothing_is_launched_for_an_empty_batch(shape: tuple[int, ...]) -> None:
    def refuse(_: Launch) -> None:
        raise AssertionError

    given = arguments(*shape)
    spikes, membranes, last = launched(**given, launch=refuse)
    assert spikes.shape == membranes.shape == shape and torch.equal(last, given["state"])


@pytest.mark.parametrize(("rows", "inner"), [(2**32, 1), (1, 2**31)])
def test_more_than_the_counter_can_name_is_refused(rows: int, inner: int) -> None:
    message = f"fewer than 2\\^32 rows of at most 2\\^31 - 4 neurons, got {rows} rows of {inner}"
    with pytest.raises(ValueError, match=message):
        check_size(rows, inner)
    large = torch.empty(1, rows, inner, device="meta")
    with pytest.raises(ValueError, match=message):
        launched(**{**arguments(1), "current": large, "state": None, "bits": None})


def test_as_much_as_the_counter_can_name_is_not() -> None:
    check_size(2**32 - 1, 2**31 - 4)
