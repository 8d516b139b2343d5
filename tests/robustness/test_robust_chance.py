"""What luck does to a worst case, and that an evaluation leaves a network's mode alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nit_snn.robustness import Defender, adaptive, check, paper, paper_attacks, worst_by_chance

SMALL: dict[str, Any] = {
    "steps": 2,
    "draws": 2,
    "restarts": 1,
    "apgd_steps": 2,
    "queries": 4,
    "iterations": 1,
    "samples": 2,
}


class Coin(nn.Module):
    """Right with probability p, whatever the image; images are of class 0."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        right = (torch.rand(len(images)) < self.p).float() + 0 * images.flatten(1).sum(1)
        return torch.stack([right, 1 - right], 1) + self.weight


def zeros(count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 4, 4), torch.zeros(count, dtype=torch.long)


@pytest.mark.parametrize("judgements", [1, 8])
def test_a_coin_is_right_as_often_as_coins_are(judgements: int) -> None:
    torch.manual_seed(0)
    found = worst_by_chance(Defender(Coin(0.9)), *zeros(4000), judgements)
    expected = 0.9**judgements
    assert abs(found / 100 - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_without_noise_luck_plays_no_part() -> None:
    torch.manual_seed(0)
    images, labels = zeros(50)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    defender = Defender(net)
    once = 100 * defender.right(images, labels).float().mean().item()
    assert worst_by_chance(defender, images, labels, 5) == pytest.approx(once, abs=1e-3)


def test_random_numbers_go_on_as_before_and_no_judgement_is_an_error() -> None:
    images, labels = zeros(10)
    before = torch.get_rng_state()
    worst_by_chance(Defender(Coin(0.5)), images, labels, 3)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="judgements"):
        worst_by_chance(Defender(Coin(0.5)), images, labels, 0)


def test_what_no_attack_can_harm_falls_by_chance_alone() -> None:
    """No attack moves a coin, yet the worst of 8 judgements is far below each of them."""
    pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    images, labels = zeros(1500)
    verdict = paper(Defender(Coin(0.9)), images, labels, iterations=1, samples=2)
    assert min(verdict.attacks.values()) > 86 and verdict.worst < 50
    assert abs(verdict.worst - verdict.worst_by_chance) < 6
    assert verdict.row("coin")["worst_by_chance"] == verdict.worst_by_chance


@pytest.mark.parametrize("modes", [(False, False), (True, False), (True, True)])
def test_every_module_keeps_its_mode(modes: tuple[bool, bool]) -> None:
    """torchattacks calls train() on a whole model after it has attacked."""
    pytest.importorskip("torchattacks")
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 3))
    net.training, net[1].training = modes
    expected = [m.training for m in net.modules()]
    images, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    defender = Defender(net)
    verdict = paper(defender, images, labels, iterations=1, samples=2)
    assert [m.training for m in net.modules()] == expected
    check(verdict, defender, images, labels, epsilons=(0.1,))
    assert [m.training for m in net.modules()] == expected
    adaptive(defender, images, labels, **SMALL)
    assert [m.training for m in net.modules()] == expected


def test_a_network_in_eval_mode_stays_there_under_a_single_attack() -> None:
    pytest.importorskip("torchattacks")
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    paper_attacks(Defender(net).classifier())["FGSM"](images, labels)
    assert not any(m.training for m in net.modules())
