"""What attacks, judgements and certificates refuse, each before anything is attacked or changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import BiasWarning, ClassifierError, LossError, RecordingError
from nit_snn.robustness import (
    EOTPGD,
    AdversarialExpand,
    Certificate,
    Defender,
    NAttack,
    NoisyClassifier,
    Verdict,
    adaptive,
    certify_noise,
    certify_smoothing,
    check,
    loss_of_mean,
    mcnemar,
    paper,
    sensitivity,
    trades,
    worst_by_chance,
)
from nit_snn.robustness.protocols import attacked

IMAGES = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1])


def network() -> nn.Sequential:
    """4-6-3, one noisy layer, a linear readout."""
    neuron = snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism="zero")
    return swap_neurons(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), neuron, nn.Linear(6, 3)))


class NaNs(nn.Module):
    """A model that has gone wrong."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3), float("nan"))


class ThresholdedSkip(nn.Module):
    """The image reaches the logits past the noise, on a way that has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 6), snn.Leaky(beta=0.5, init_hidden=True)
        self.readout = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        out: Tensor = self.readout(self.lif(self.fc(x))) + 10 * (x[:, :3] > 0.5).float()
        return out


class NormsFirst(nn.Module):
    """All layers are registered before the neurons; the second norm runs behind the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.fc2, self.norm2 = nn.Linear(6, 3), nn.BatchNorm1d(3)
        self.lif1 = snn.Leaky(beta=0.5, init_hidden=True)
        self.lif2 = snn.Leaky(beta=0.5, init_hidden=True)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.lif2(self.norm2(self.fc2(self.lif1(self.norm1(self.fc1(images))))))
        return out


class NeuronFirst(nn.Module):
    """The neuron is registered before the norm, which runs before any noise."""

    def __init__(self) -> None:
        super().__init__()
        self.lif, self.fc = snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.lif(self.norm(self.fc(images)))
        return out


# --- certificates -----------------------------------------------------------------------------


def test_a_classifier_without_noise_certifies_nothing() -> None:
    classifier = NoisyClassifier(network(), noise=False)
    with pytest.raises(ClassifierError, match="noise=False"):
        certify_noise(classifier, IMAGES, draws=20, select=5)


def test_a_way_past_the_noise_is_found_without_a_derivative() -> None:
    classifier = NoisyClassifier(swap_neurons(ThresholdedSkip()))
    with pytest.raises(ClassifierError, match="other ways"):
        sensitivity(classifier, IMAGES[:1])
    assert sensitivity(NoisyClassifier(network()), IMAGES[:1]).l2 > 0


def test_nan_votes_for_nothing() -> None:
    with pytest.raises(ClassifierError, match="hold NaN"):
        certify_smoothing(NaNs(), IMAGES, 0.5, draws=20)
    with pytest.raises(ValueError, match="NaN or infinite"):
        certify_smoothing(network(), IMAGES * float("nan"), 0.5, draws=20)
    with pytest.raises(ValueError, match="NaN or infinite"):
        certify_noise(NoisyClassifier(network()), IMAGES * float("nan"), draws=20)


def test_a_seed_inside_of_a_model_is_found() -> None:
    inside = nn.Sequential(NoisyClassifier(network(), seed=0))
    with pytest.raises(ClassifierError, match="With a seed"):
        certify_smoothing(inside, IMAGES, 0.5, draws=20)


def test_a_recording_is_left_alone() -> None:
    net = network()
    learner = NITLearner(net, replicas=4, seed=0)
    with learner.record():
        x = learner.expand(IMAGES)
        with pytest.raises(RecordingError, match="recording"):
            sensitivity(NoisyClassifier(net), IMAGES[:1])
        losses = net(x).sum(1)
    learner.backward(losses)
    assert net[1].weight.grad is not None


def test_certified_accuracy_wants_a_label_for_each_image() -> None:
    found = Certificate(torch.tensor([0, 1, -1]), torch.ones(3), torch.tensor([1.0, 1.0, 0.0]))
    assert found.accuracy(torch.tensor([0, 1, -1])) == pytest.approx(2 / 3)  # one abstains
    for labels in (torch.tensor([0]), torch.tensor([[0], [1], [2]])):
        with pytest.raises(ValueError, match="a label for each of 3 images"):
            found.accuracy(labels)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda c: certify_noise(c.net, IMAGES), TypeError, "NoisyClassifier"),
        (lambda c: certify_noise(c, IMAGES[:0]), ValueError, "One image"),
        (lambda c: sensitivity(c, IMAGES), ValueError, "One image"),
        (lambda c: certify_smoothing(c, IMAGES, float("inf")), ValueError, "finite"),
        (lambda c: certify_smoothing(c, IMAGES, 0.5, batch_size=0), ValueError, "batch_size"),
        (lambda c: certify_smoothing(c, IMAGES, 0.5, draws=1.5), ValueError, "draws"),
        (lambda c: certify_smoothing(c, IMAGES.long(), 0.5), ValueError, "floating point"),
        (lambda c: certify_smoothing(len, IMAGES, 0.5), TypeError, "Module"),
    ],
)
def test_certificates_refuse(call: Callable[[Any], Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call(NoisyClassifier(network()))


# --- attacks, judgements ----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [paper, adaptive])
@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "told"),
    [
        (IMAGES * float("nan"), LABELS, {}, ValueError, "NaN or infinite"),
        ((IMAGES * 255).byte(), LABELS, {}, ValueError, "floating point"),
        (IMAGES.tolist(), LABELS, {}, TypeError, "tensor"),
        (IMAGES, LABELS.tolist(), {}, TypeError, "tensor"),
        (IMAGES, LABELS.float(), {}, ValueError, "integers"),
        (IMAGES, LABELS - 1, {}, ValueError, "from 0 to 2, got -1 to 1"),
        (IMAGES, LABELS + 1, {}, ValueError, "from 0 to 2, got 1 to 3"),
        (IMAGES, LABELS, {"eps": -0.1}, ValueError, "eps"),
        (IMAGES, LABELS, {"eps": float("nan")}, ValueError, "eps"),
        (IMAGES, LABELS, {"steps": 0}, ValueError, "steps"),
        (IMAGES, LABELS, {"samples": 1}, ValueError, "samples"),
        (IMAGES, LABELS, {"iterations": 1.5}, ValueError, "iterations"),
    ],
)
def test_protocols_refuse_before_they_attack(
    protocol: Any, images: Any, labels: Any, options: Any, error: type[Exception], told: str
) -> None:
    defender = Defender(network())
    before = torch.get_rng_state()
    with pytest.raises(error, match=told):
        protocol(defender, images, labels, **options)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options", [{"queries": 0}, {"apgd_steps": 0}, {"seed": None}, {"query_draws": 0}, {"draws": 0}]
)
def test_the_adaptive_protocol_refuses_first(options: dict[str, Any]) -> None:
    defender = Defender(network())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=next(iter(options))):
        adaptive(defender, IMAGES, LABELS, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_is_no_defender() -> None:
    with pytest.raises(TypeError, match="Defender"):
        paper(network(), IMAGES, LABELS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Module"):
        adaptive(Defender(network()), IMAGES, LABELS, twin="twin")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Module"):
        NoisyClassifier("net")  # type: ignore[arg-type]


def test_labels_of_32_bits_are_labels() -> None:
    attack = EOTPGD(NoisyClassifier(network()), steps=1, draws=1, restarts=1, judgements=1)
    assert attack(IMAGES, LABELS.int()).shape == IMAGES.shape
    tried = NAttack(NoisyClassifier(network()), iterations=1, samples=2)
    assert tried(IMAGES, LABELS.byte()).shape == IMAGES.shape


@pytest.mark.parametrize("attack", [EOTPGD, NAttack])
def test_attacks_refuse(attack: Any) -> None:
    model = NoisyClassifier(network())
    for eps in (-0.1, float("nan"), "x"):
        with pytest.raises(ValueError, match="eps"):
            attack(model, eps=eps)
    made = attack(model)
    with pytest.raises(ValueError, match="between 0 and 1"):
        made(2 + IMAGES, LABELS)
    with pytest.raises(ValueError, match="NaN"):
        made(IMAGES * float("nan"), LABELS)
    with pytest.raises(ValueError, match="integers"):
        made(IMAGES, LABELS[:2])


def test_a_judge_wants_a_label_for_each_image() -> None:
    defender = Defender(network())
    for labels in (LABELS[:1], LABELS[:, None]):  # both would be broadcast
        with pytest.raises(ValueError, match="a label for each of 5 images"):
            defender.right(IMAGES, labels)
    with pytest.raises(ValueError, match="judgements"):
        worst_by_chance(defender, IMAGES, LABELS, 1.5)  # type: ignore[arg-type]


def test_logits_that_are_nan_are_told_wrong() -> None:
    assert not Defender(NaNs()).right(IMAGES, torch.zeros(5, dtype=torch.long)).any()


def test_checks_that_did_not_finish_are_not_noted() -> None:
    """A check that is missing looks like one that passed."""

    def stumble(images: Tensor) -> Tensor:
        asked.append(len(images))
        if len(asked) > 10:
            raise KeyboardInterrupt
        return images

    asked: list[int] = []
    settings = {"steps": 1, "draws": 1, "eps": 0.1, "nattack": [1, 2]}
    verdict = Verdict("paper", 0.0, settings=settings)
    defender = Defender(network(), encode=stumble)
    with pytest.raises(KeyboardInterrupt):
        check(verdict, defender, IMAGES, LABELS, epsilons=(0.1,))
    assert not verdict.checks
    for epsilons in ((), (0.2, 0.1), (float("nan"),)):
        with pytest.raises(ValueError, match=r"eps|radii"):
            check(verdict, Defender(network()), IMAGES, LABELS, epsilons=epsilons)


def test_mcnemar_compares_what_is_right() -> None:
    with pytest.raises(ValueError, match="True or False"):
        mcnemar(torch.tensor([3, 1]), torch.tensor([2, 1]))


# --- training ---------------------------------------------------------------------------------


def test_adversarial_training_refuses() -> None:
    net = network()
    learner = NITLearner(net, replicas=4)
    for options in ({"steps": 1.5}, {"alpha": float("nan")}, {"eps": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            AdversarialExpand(learner, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="NITLearner"):
        AdversarialExpand(net)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="integers"):
        AdversarialExpand(learner)(IMAGES, LABELS[:2])
    logits = torch.zeros(6, 3)
    with pytest.raises(ValueError, match=r"C = 4, got \(6, 3\)"):
        loss_of_mean(logits, torch.zeros(6, dtype=torch.long), 4)
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        trades(logits, logits[:1], torch.zeros(6, dtype=torch.long))


def learn(net: nn.Module) -> None:
    learner = NITLearner(net, replicas=4, seed=0, credit="none")
    with learner.record():
        x, y = learner.expand(IMAGES.flatten(1), LABELS)
        losses = nn.functional.cross_entropy(net(x)[:, :3], y, reduction="none")
    learner.backward(losses)
    learner.close()


def test_batch_statistics_are_named_by_the_order_in_which_layers_run() -> None:
    with pytest.warns(BiasWarning, match=r"layer: norm2\. "):
        learn(swap_neurons(NormsFirst()))
    with pytest.warns(BiasWarning, match=r"layer: norm2\. "):
        classifier = NoisyClassifier(swap_neurons(NormsFirst()), draws=4, gradient="lr")
        classifier(IMAGES.flatten(1).requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(swap_neurons(NeuronFirst()))
    net = swap_neurons(NormsFirst())
    with pytest.warns(BiasWarning):
        learn(net)
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(
    "losses", ["abc", torch.zeros(20).to_sparse(), torch.zeros(20, device="meta")]
)
@pytest.mark.parametrize("enabled", [True, False])
def test_losses_without_numbers_are_refused(losses: Any, enabled: bool) -> None:
    net = network()
    learner = NITLearner(net, replicas=4)
    if not enabled:
        learner.disable()
    with learner.record():
        net(learner.expand(IMAGES))
    with pytest.raises(LossError, match="losses must be"):
        learner.backward(losses)


def test_a_dimension_is_no_truth_value() -> None:
    with pytest.raises(ValueError, match="dim=True"):
        NITLearner(network(), replicas=4).expand(IMAGES, dim=True)


class NaNsAbove(nn.Module):
    """Logits that favour the first class, and are NaN for images that are bright."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).mean(1, keepdim=True)
        logits = torch.cat([2 - bright, bright, 0 * bright], 1)
        return logits.masked_fill(bright > 0.55, float("nan"))


@pytest.mark.parametrize(
    "attack",
    [
        EOTPGD(NaNsAbove(), eps=0.1, alpha=0.05, steps=5, draws=1, judgements=2),
        NAttack(NaNsAbove(), eps=0.1, iterations=20, samples=20),
    ],
)
def test_an_attack_that_makes_logits_nan_has_won(attack: Any) -> None:
    """The worst point that stays a number raises the loss by less, and the class is right there."""
    torch.manual_seed(0)
    images = torch.full((3, 1, 2, 2), 0.5)
    labels = torch.zeros(3, dtype=torch.long)
    defender = Defender(NaNsAbove())
    assert defender.right(images, labels).all()
    found = attack(images, labels)
    assert torch.isfinite(found).all() and (found - images).abs().max() <= 0.1 + 1e-6
    if isinstance(attack, EOTPGD):  # the other stops where it is: what it keeps is a mean
        assert not defender.right(found, labels).any()


def test_pixels_that_an_attack_made_nan_are_as_they_were() -> None:
    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
    found = attacked(lambda x, y: torch.full_like(x, float("nan")), images, labels, eps=0.1)
    assert torch.equal(found, images)
