"""McNemar's test of two networks on the same images."""

from __future__ import annotations

import itertools
from math import comb

import pytest
import torch

from nit_snn.robustness import Paired, mcnemar


def told(ours: int, theirs: int, both: int = 5, neither: int = 3) -> list[torch.Tensor]:
    """Outcomes by how many images there are of each kind."""
    first = [True] * (ours + both) + [False] * (theirs + neither)
    second = [False] * ours + [True] * (both + theirs) + [False] * neither
    return [torch.tensor(first), torch.tensor(second)]


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product((0, 1, 4, 9), (0, 2, 9))))
def test_p_is_how_likely_so_uneven_a_split_is(ours: int, theirs: int) -> None:
    """By counting: of all 2^n ways to split, those that are no likelier than what was found."""
    n = ours + theirs
    as_rare = sum(comb(n, k) for k in range(n + 1) if comb(n, k) <= comb(n, ours))
    found = mcnemar(*told(ours, theirs))
    assert found == Paired(ours, theirs, pytest.approx(as_rare / 2**n))


def test_images_that_both_or_neither_tell_say_nothing() -> None:
    assert mcnemar(*told(7, 2, both=0, neither=0)) == mcnemar(*told(7, 2, both=40, neither=30))


@pytest.mark.parametrize("shapes", [((4,), (5,)), ((2, 2), (2, 2))])
def test_other_images_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="the same images"):
        mcnemar(*(torch.ones(shape, dtype=torch.bool) for shape in shapes))
