"""NAttack and EOT-PGD, on models where what they must find is known."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nit_snn import swap_neurons
from nit_snn.datasets.subset import load_subset
from nit_snn.robustness import EOTPGD, NAttack, NoisyClassifier

EPS = 0.1


class Linear(nn.Module):
    """Two classes; the best an attacker of class 0 can do is to move each pixel by the sign of w.

    With `noise`, every weight is drawn anew in each call, around the same mean.
    """

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(100).sign())
        self.noise = noise

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight + self.noise * torch.randn(100)
        return torch.stack([torch.zeros(len(images)), (images - 0.5).flatten(1) @ weight], 1)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of MNIST after a second of training, and 50 images."""
    torch.manual_seed(0)
    pixels, classes = load_subset("mnist")
    images, labels = torch.from_numpy(pixels)[:4050, None] / 255, torch.from_numpy(classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images[:4000]), labels[:4000].long()).backward()
        optimizer.step()
    return model, images[4000:], labels[4000:4050].long()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * (model(images).argmax(1) == labels).float().mean().item()


def assert_in_ball(attacked: Tensor, images: Tensor) -> None:
    assert (attacked - images).abs().max() <= EPS + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1


def test_nattack_succeeds_from_logits_alone(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = digits
    assert accuracy(model, images, labels) > 80
    attack = NAttack(model, eps=EPS, lr=0.1, border=0.02, iterations=30)
    attacked = attack(images, labels)
    assert_in_ball(attacked, images)
    assert accuracy(model, attacked, labels) < 20


def test_nattack_with_the_authors_border_hardly_moves_black_pixels(
    digits: tuple[nn.Module, Tensor, Tensor],
) -> None:
    _, images, labels = digits
    asked = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return digits[0](x)

    attacked = NAttack(Counted(), eps=EPS, iterations=10, samples=20, batch_size=300)(
        images, labels
    )
    moved = (attacked - images).abs()
    assert_in_ball(attacked, images)
    assert moved[images == 0].max() < 1e-4
    grey = (images > 0.2) & (images < 0.8)
    assert moved[grey].mean() > 1e-3
    assert sum(asked) == 50 * 10 * 20
    assert max(asked) <= 300


def test_nattack_leaves_an_image_alone_that_is_wrong_already() -> None:
    """The loss of all its samples is 0, so that none is better than another."""
    model = Linear()
    images = torch.full((4, 1, 10, 10), 0.5) + 0.3 * model.weight.detach().view(1, 1, 10, 10)
    attacked = NAttack(model, eps=EPS, iterations=5, samples=10)(
        images, torch.zeros(4, dtype=torch.long)
    )
    assert (attacked - images).abs().max() < 0.01  # the start, 1e-3 in z


def test_eot_pgd_finds_the_corner_of_the_ball() -> None:
    torch.manual_seed(0)
    model, images = Linear(), torch.full((4, 1, 10, 10), 0.5)
    labels = torch.tensor([0, 1, 0, 1])
    attack = EOTPGD(model, eps=EPS, alpha=0.02, steps=15, draws=1, restarts=1)
    attacked = attack(images, labels)
    assert_in_ball(attacked, images)
    direction = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None] * model.weight.detach()
    torch.testing.assert_close(attacked, images + EPS * direction.view_as(images))


def test_eot_pgd_needs_its_draws() -> None:
    """With weights that change by six times their size, a single draw tells little of the mean."""
    torch.manual_seed(0)
    model, images = Linear(noise=6.0), torch.full((8, 1, 10, 10), 0.5)
    labels = torch.zeros(8, dtype=torch.long)
    reached = {}
    for draws in (1, 60):
        attack = EOTPGD(model, eps=EPS, alpha=0.02, steps=10, draws=draws, restarts=1)
        moved = attack(images, labels) - images
        reached[draws] = (moved.flatten(1) @ model.weight).mean() / (100 * EPS)
    assert reached[60] > 0.6
    assert reached[1] < 0.5 * reached[60]


def test_eot_pgd_keeps_the_worst_of_its_starts_for_each_image() -> None:
    """The loss has two hills. The lower one, to the right, is found from most starts."""

    class Hills(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = (images.flatten(1)[:, 0] - 0.5) / EPS
            wrong = torch.where(x < -0.5, -x - 0.5, 0.2 * (x + 0.5))
            return torch.stack([torch.zeros_like(wrong), 10 * wrong], 1)

    torch.manual_seed(0)
    images, labels = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64, dtype=torch.long)
    options = {"eps": EPS, "steps": 20, "draws": 1, "judgements": 1}
    once, often = (EOTPGD(Hills(), restarts=r, **options)(images, labels) for r in (1, 20))
    assert 0.05 < (once < 0.45).float().mean() < 0.6
    assert (often < 0.45).float().mean() > 0.95


def test_attacks_run_in_eval_mode_and_put_training_mode_back() -> None:
    seen = []
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 3))
    model[1].eval()
    model[2].register_forward_hook(lambda m, *_: seen.append(m.training))
    images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    NAttack(model, iterations=1, samples=2)(images, labels)
    EOTPGD(model, steps=1, draws=1, restarts=1)(images, labels)
    assert not any(seen)
    assert [m.training for m in model] == [True, False, True]
    assert model[2].weight.grad is None


@pytest.mark.parametrize("gradient", ["surrogate", "lr"])
def test_they_take_a_noisy_classifier(gradient: str) -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 8), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(8, 3)
    )
    classifier = NoisyClassifier(swap_neurons(net), draws=4, gradient=gradient)
    images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    for attack in (
        NAttack(classifier, eps=EPS, iterations=2, samples=4),
        EOTPGD(classifier, eps=EPS, steps=2, draws=2, restarts=2),
    ):
        assert_in_ball(attack(images, labels), images)


def test_no_images_and_bad_numbers() -> None:
    model, nothing = Linear(), torch.zeros(0, 1, 10, 10)
    none = torch.zeros(0, dtype=torch.long)
    assert NAttack(model)(nothing, none).shape == nothing.shape
    assert EOTPGD(model, steps=1)(nothing, none).shape == nothing.shape
    with pytest.raises(ValueError, match="samples"):
        NAttack(model, samples=1)
    for name in ("steps", "draws", "restarts", "judgements"):
        with pytest.raises(ValueError, match=name):
            EOTPGD(model, **{name: 0})
