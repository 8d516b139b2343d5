"""What a control variate explains, against its definition replica by replica."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nit_snn.estimators.baselines import Sharing
from nit_snn.estimators.control_coefficients import Entry, settle

SHARINGS = {
    "independent": (lambda c: {c}, Sharing()),
    "antithetic": (lambda c: {c % 4, c % 4 + 4}, Sharing(antithetic=True)),
    "two point sets": (lambda c: set(range(4)) if c < 4 else {4, 5, 6, 7}, Sharing(point_sets=2)),
    "four point sets": (lambda c: {c - c % 2, c - c % 2 + 1}, Sharing(point_sets=4)),
}
REPLICAS, BATCH = 8, 3


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_BACKEND", request.param)


def defined(g: Tensor, d: Tensor, own: list[set[int]]) -> tuple[Tensor, Tensor]:
    """The coefficients, (C, B, *), and what is explained of each loss less its baseline, (C, B).

    A coefficient is the mean of g over all replicas that share no noise with any that it meets.
    """
    everyone = set(range(REPLICAS))

    def mean(left_out: set[int]) -> Tensor:
        return g[sorted(everyone - left_out)].mean(0)

    def meets(c: Tensor, r: int) -> Tensor:
        return (c * d[r]).flatten(1).sum(1)

    factors = torch.stack([mean(own[r]) for r in range(REPLICAS)])
    explained = []
    for r in range(REPLICAS):
        others = sorted(everyone - own[r])
        of_others = [meets(mean(own[r] | own[o]), o) for o in others if everyone - own[r] - own[o]]
        baseline = sum(of_others) / len(others) if of_others else 0
        explained.append(meets(factors[r], r) - baseline)
    return factors, torch.stack(explained)


@pytest.mark.parametrize("name", SHARINGS)
def test_it_is_what_it_is_defined_as(name: str, backend: None) -> None:
    torch.manual_seed(0)
    own, sharing = SHARINGS[name]
    g, d, w, u = (torch.randn(REPLICAS, BATCH, 5) for _ in range(4))
    entry = Entry(*(x.flatten(0, 1) for x in (d, g, w, u)))
    factors, explained = settle([entry], REPLICAS, sharing)
    groups = [own(r) for r in range(REPLICAS)]
    (wanted, spikes), (_, membranes) = defined(g, d, groups), defined(w, u, groups)
    torch.testing.assert_close(factors[0].unflatten(0, (REPLICAS, -1)), wanted)
    found = explained.unflatten(0, (REPLICAS, -1))
    torch.testing.assert_close(found, spikes + membranes, rtol=1e-4, atol=1e-4)


def test_rows_of_a_single_number(backend: None) -> None:
    """(N,), as a network without a dimension of neurons has them, is settled as (N, 1)."""
    torch.manual_seed(1)
    tensors = [torch.randn(12) for _ in range(4)]
    factors, explained = settle([Entry(*tensors)], 4, Sharing())
    wanted = settle([Entry(*(x[:, None] for x in tensors))], 4, Sharing())
    torch.testing.assert_close(factors[0][:, None], wanted[0][0])
    torch.testing.assert_close(explained, wanted[1])
