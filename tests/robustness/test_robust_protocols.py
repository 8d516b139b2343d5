"""Attacks by name, both protocols, and the checks that tell a masked network from a robust one."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import swap_neurons
from nit_snn.errors import ClassifierError
from nit_snn.inspect.audit import rectangle
from nit_snn.robustness import (
    Defender,
    Verdict,
    adaptive,
    check,
    compare,
    gradients,
    paper,
    paper_attacks,
)

pytest.importorskip("torchattacks")
SMALL: dict[str, Any] = {
    "steps": 8,
    "draws": 4,
    "restarts": 1,
    "apgd_steps": 5,
    "queries": 20,
    "iterations": 3,
    "samples": 6,
}


def images_and_labels(count: int = 48) -> tuple[Tensor, Tensor]:
    """Two classes of 12 x 12 images: the brighter half of the image is the class."""
    torch.manual_seed(5)
    labels = torch.arange(count) % 2
    images = 0.3 * torch.rand(count, 1, 12, 12)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 6 * label : 6 * label + 6] += 0.25
    return images.clamp(0, 1), labels


class Net(nn.Module):
    """Spiking in both layers; the readout is the rate of the output neurons."""

    def __init__(self, scale: float = 1.0, noise: bool = True) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fc1, self.fc2 = layer.Linear(144, 12), layer.Linear(12, 2)
        self.lif1, self.lif2 = (neuron.LIFNode(tau=2.0, decay_input=False) for _ in range(2))
        functional.set_step_mode(self, "m")
        with torch.no_grad():  # half of the hidden neurons look left, half right
            side = torch.ones(1, 12, 12)
            side[:, :, :6] = -1
            sign = torch.tensor([1.0, -1.0]).repeat(6)
            self.fc1.weight.copy_(sign[:, None] * side.flatten() / 20 * scale)
            self.fc1.bias.fill_(0.5)
            self.fc2.weight.copy_(torch.stack([-sign, sign]) / 3 * scale)
            self.fc2.bias.fill_(0.5)
        if noise:
            swap_neurons(self, sigma=0.3)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        x = x.flatten(1)
        return self.lif2(self.fc2(self.lif1(self.fc1(x.expand(4, *x.shape))))).mean(0)


def in_the_ball(attacked: Tensor, images: Tensor, eps: float) -> bool:
    inside = (attacked - images).abs().max() <= eps + 1e-6
    return bool(inside and attacked.min() >= 0 and attacked.max() <= 1)


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD", "MIM", "NAttack", "DIM", "TIM"])
def test_the_attacks_of_the_paper(name: str) -> None:
    """In the ball, and worse for a smooth network than noise of the same size."""
    torch.manual_seed(0)
    images, labels = images_and_labels()
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad():
        model[1].weight.copy_(Net(noise=False).fc2.weight @ Net(noise=False).fc1.weight)
    attack = paper_attacks(model, eps=0.1, iterations=20, samples=20)[name]
    attacked = attack(images, labels)
    assert attacked.shape == images.shape and in_the_ball(attacked, images, 0.1)
    noise = (images + 0.1 * torch.randn_like(images).sign()).clamp(0, 1)
    losses = [F.cross_entropy(model(x), labels) for x in (images, noise, attacked)]
    assert losses[2] > losses[1] and losses[2] > losses[0]


def test_momentum_and_transforms_are_those_of_the_paper() -> None:
    attacks = paper_attacks(nn.Linear(1, 1))
    assert [type(attacks[n]).__name__ for n in ("BIM", "MIM", "DIM")] == [
        "BIM",
        "MIFGSM",
        "DIFGSM",
    ]
    for name in ("MIM", "DIM"):
        attack: Any = attacks[name]
        assert (attack.eps, attack.alpha, attack.steps, attack.decay) == (0.1, 0.01, 15, 0.9)
    own: Any = attacks["NAttack"]
    assert (own.iterations, own.samples) == (50, 100)


def test_every_gradient_that_a_network_has() -> None:
    assert list(gradients(Defender(nn.Linear(3, 2)))) == ["own"]
    noisy = gradients(Defender(Net()))
    assert noisy["LR"] == {"gradient": "lr", "conditional": True, "credit": "time"}
    assert {"own", "rectangle", "atan 2", "density 1"} < set(noisy)
    assert "LR" not in gradients(Defender(Net(noise=False)))
    assert "LR" not in gradients(Defender(Net(), noise=False))
    soft = nn.Sequential(
        nn.Flatten(), nn.Linear(144, 4), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(4, 2)
    )
    found = gradients(Defender(swap_neurons(soft, sigma=0.3)))["LR"]
    images, labels = images_and_labels(4)
    classifier = Defender(soft).classifier(draws=4, **found)
    x = images.requires_grad_()
    F.cross_entropy(classifier(x), labels).backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize("protocol", ["paper", "adaptive"])
def test_the_worst_case_is_no_better_than_any_attack(protocol: str) -> None:
    images, labels = images_and_labels()
    defender = Defender(Net(), draws=8)
    torch.manual_seed(0)
    if protocol == "paper":
        verdict = paper(defender, images, labels, iterations=2, samples=4)
        assert list(verdict.attacks) == ["FGSM", "BIM", "PGD", "MIM", "NAttack", "DIM", "TIM"]
    else:
        twin = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
        verdict = adaptive(defender, images, labels, twin=twin, **SMALL)
        assert {"EOT-PGD, LR", "APGD-CE, on survivors", "transfer from a twin"} < set(
            verdict.attacks
        )
    assert verdict.clean > 90
    assert verdict.worst <= min(verdict.attacks.values()) <= verdict.clean + 10
    assert verdict.worst == pytest.approx(100 * float(verdict.robust.float().mean()), abs=1e-2)
    assert verdict.row("NIT")["worst"] == verdict.worst


def test_an_adaptive_attack_on_few_is_an_attack_on_all() -> None:
    """What survives nothing costs nothing: an image that was lost stays lost."""
    images, labels = images_and_labels(16)
    verdict = adaptive(Defender(Net(), draws=4), images, labels, eps=0.9, **SMALL)
    assert verdict.worst == 0.0 and verdict.attacks["Square, on survivors"] == 0.0


def test_the_same_seed_gives_the_same_verdict() -> None:
    images, labels = images_and_labels(16)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(adaptive(Defender(Net(), draws=2), images, labels, **SMALL).attacks)
    assert found[0] == found[1]


@pytest.mark.full
def test_masked_gradients_are_told_from_robustness() -> None:
    """Weights ten times as large leave the rectangle almost empty: the paper's attack sees nothing.

    Such a network looks robust by the paper's protocol at any eps, and its check says so; the
    same attack with a density wide enough finds its way, and no check fails.
    """
    images, labels = images_and_labels()
    torch.manual_seed(0)
    masked = Defender(Net(scale=60.0), draws=4)
    verdict = paper(masked, images, labels, iterations=2, samples=4)
    check(verdict, masked, images, labels, epsilons=(0.1, 0.3, 1.0))
    assert verdict.clean > 90 and min(verdict.attacks["BIM"], verdict.attacks["PGD"]) > 60
    assert "falls to zero" in verdict.masked
    honest = Defender(Net(), draws=4)
    verdict = adaptive(honest, images, labels, **SMALL)
    check(verdict, honest, images, labels, epsilons=(0.1, 0.3, 1.0))
    assert verdict.masked == []
    assert set(verdict.checks) == {"falls to zero", "steps", "draws", "black box"}
    curve = verdict.checks["falls to zero"]["curve"]
    assert curve[0]["accuracy"] > 90 and curve[-1]["accuracy"] < 5


def verdict(protocol: str, right: int, images: int = 100, eps: float = 0.1) -> Verdict:
    told = torch.arange(images) < right
    return Verdict(protocol, 100.0, worst=100 * right / images, robust=told, settings={"eps": eps})


@pytest.mark.parametrize(("left", "masked"), [(60, []), (50, []), (40, ["stronger attack"])])
def test_a_protocol_that_another_one_belies_is_masked(left: int, masked: list[str]) -> None:
    ours = verdict("paper", 60)
    compare(ours, verdict("adaptive", left))  # of 100 images, 14.1 points may be chance
    assert ours.masked == masked
    assert ours.checks["stronger attack"]["worst"] == left


@pytest.mark.parametrize("other", [{"images": 90}, {"eps": 0.2}])
def test_verdicts_about_other_things_are_not_compared(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at one eps and on the same images"):
        compare(verdict("paper", 60), verdict("adaptive", 50, **other))


def test_a_network_without_spikes_is_judged_as_well() -> None:
    images, labels = images_and_labels(16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    verdict = adaptive(Defender(net), images, labels, **SMALL)
    assert verdict.settings["draws"] == 1 and "EOT-PGD, own" in verdict.attacks
    assert (
        paper(Defender(net), images, labels, iterations=2, samples=4).settings["surrogate"]
        == "none"
    )


def test_a_defender_leaves_the_network_as_it_was() -> None:
    net = Net()
    net.train()
    images, labels = images_and_labels(6)
    right = Defender(net, draws=3).right(images, labels, rows=6)
    assert right.shape == (6,) and net.training and net.lif1._recorder is None
    assert Defender(net).right(images[:0], labels[:0]).shape == (0,)
    with pytest.raises(ClassifierError, match="draws"):
        Defender(net, draws=0).classifier()


def test_the_rectangle() -> None:
    x = torch.tensor([-1.1, -0.9, 0.9, 1.1], requires_grad=True)
    spikes = rectangle(2.0)(x)
    spikes.sum().backward()
    assert spikes.tolist() == [0, 0, 1, 1]
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.5, 0.5, 0.0]


def test_what_cannot_be_attacked_is_refused() -> None:
    images, labels = images_and_labels(4)
    defender = Defender(Net())
    verdict = paper(defender, images, labels, iterations=1, samples=2)
    for wrong, told in (
        ((images.flatten(1), labels), "Grey images"),
        ((images.expand(-1, 3, -1, -1), labels), "Grey images"),
        ((images, labels[:2]), "Grey images"),
        ((images * 255, labels), "between 0 and 1"),
        ((images[:0], labels[:0]), "There must be images"),
    ):
        with pytest.raises(ValueError, match=told):
            paper(defender, *wrong)
        with pytest.raises(ValueError, match=told):
            adaptive(defender, *wrong)
        with pytest.raises(ValueError, match=told):
            check(verdict, defender, *wrong)
