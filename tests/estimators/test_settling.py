"""What a control variate explains, against its definition replica by replica."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nit_snn.dynamics.firing import Firing
from nit_snn.estimators.baselines import Sharing, mean_of_others
from nit_snn.estimators.control_coefficients import coefficients, explained
from nit_snn.estimators.credit import Known
from nit_snn.recording.orders import Order

SHARINGS = {
    "independent": (lambda c: {c}, Sharing()),
    "antithetic": (lambda c: {c % 4, c % 4 + 4}, Sharing(antithetic=True)),
}
REPLICAS, BATCH = 8, 3


def defined(g: Tensor, d: Tensor, own: list[set[int]]) -> tuple[Tensor, Tensor]:
    """The coefficients, (C, B, *), and what is explained of each loss less its baseline, (C, B).

    A coefficient is the mean of g over all replicas that share no noise with any that it meets.
    """
    everyone = set(range(REPLICAS))

    def mean(left_out: set[int]) -> Tensor:
        return g[sorted(everyone - left_out)].mean(0)

    def meets(c: Tensor, r: int) -> Tensor:
        return (c * d[r]).reshape(BATCH, -1).sum(1)

    factors = torch.stack([mean(own[r]) for r in range(REPLICAS)])
    explained = []
    for r in range(REPLICAS):
        others = sorted(everyone - own[r])
        of_others = [meets(mean(own[r] | own[o]), o) for o in others if everyone - own[r] - own[o]]
        baseline = sum(of_others) / len(others) if of_others else 0
        explained.append(meets(factors[r], r) - baseline)
    return factors, torch.stack(explained)


@pytest.mark.parametrize("name", SHARINGS)
def test_it_is_what_it_is_defined_as(name: str) -> None:
    torch.manual_seed(0)
    own, sharing = SHARINGS[name]
    groups = [own(r) for r in range(REPLICAS)]
    for shape in ((5,), (), (2, 3)):
        g, d = (torch.randn(REPLICAS, BATCH, *shape, dtype=torch.float64) for _ in range(2))
        wanted, of_losses = defined(g, d, groups)
        torch.testing.assert_close(mean_of_others(g, sharing), wanted)
        torch.testing.assert_close(explained(g, d, sharing), of_losses)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("name", SHARINGS)
def test_coefficients_of_a_layer(name: str, conditioned: bool) -> None:
    """Of spikes, and of what membranes carry on: (T, N, *) and a number of each row."""
    torch.manual_seed(0)
    own, sharing = SHARINGS[name]
    groups = [own(r) for r in range(REPLICAS)]
    shape = (REPLICAS, BATCH, 4, 5)
    g, w, wandering = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    level, noise = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    firing = Firing((noise > level).double(), level, noise)

    def of_rows(x: Tensor) -> Tensor:
        return x.movedim(2, 0).flatten(1, 2)

    told = Firing(*(of_rows(x) for x in (firing.spike, level, noise)))
    known = Known(of_rows(g))
    if conditioned:
        known = Known(of_rows(g), of_rows(w), of_rows(wandering))
    factors, found = coefficients(
        SimpleNamespace(firing=told), known, Order(REPLICAS, BATCH), sharing
    )
    wanted, of_losses = defined(g, firing.spike - torch.special.ndtr(-level), groups)
    if conditioned:
        of_losses = of_losses + defined(w, wandering, groups)[1]
    torch.testing.assert_close(factors, of_rows(wanted))
    torch.testing.assert_close(found, of_losses.flatten())
