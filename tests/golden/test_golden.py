"""The gradients of `cases.py` are those that commit 7aa0648 gave, before the core was rebuilt."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, Case, run
from record import FILE

from nit_snn import NITLearner

#: Relative to the largest entry of each tensor. In float32 steps one by one differ from a sequence
#: by up to 2.4e-6 here, float32 from float64 with the same noise by 2.5e-6, and a processor without
#: vector instructions by 3.0e-6, its noise being another in the last digits. In float64 none of
#: these is beyond 1.8e-14.
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, np.ndarray]]:
    """By case and parameter."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FILE) as file:
        for name in file.files:
            case, parameter = name.split("/")
            found.setdefault(case, {})[parameter] = file[name]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_are_those_of_before(
    case: Case,
    kept: dict[str, dict[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", "torch")
    found = {name: value.numpy() for name, value in run(case, NITLearner).items()}
    expected = kept[case.name]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        largest = float(np.nanmax(np.abs(value)))
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=TOLERANCES[str(value.dtype)] * largest, err_msg=name
        )


def test_the_file_holds_these_cases_alone(kept: dict[str, dict[str, np.ndarray]]) -> None:
    assert sorted(kept) == sorted(case.name for case in CASES)
