"""AdversarialExpand: where attacked images lie, what made them, what is left alone; TRADES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import ClassifierError, RecordingError
from nit_snn.robustness import AdversarialExpand, NoisyClassifier, loss_of_mean, trades

TIME: dict[str, Any] = {"conditional": True, "credit": "time"}


class Torch(nn.Module):
    """snnTorch: step by step, states kept by the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.synapse, self.readout = nn.Linear(6, 16), nn.Linear(16, 3)
        self.neuron = snn.Leaky(beta=0.5, reset_mechanism="zero")

    def forward(self, x: Tensor) -> Tensor:
        membrane, spikes = self.neuron.reset_mem(), []
        for _ in range(4):
            spike, membrane = self.neuron(self.synapse(x), membrane)
            spikes.append(spike)
        return self.readout(torch.stack(spikes)).mean(0)


class Jelly(nn.Module):
    """SpikingJelly: all steps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.synapse, self.readout = layer.Linear(6, 16), layer.Linear(16, 3)
        self.neuron = neuron.LIFNode(tau=2.0, decay_input=False, v_reset=0.0)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.readout(self.neuron(self.synapse(x.expand(4, *x.shape)))).mean(0)


def made(build: Callable[[], nn.Module] = Jelly, **options: Any) -> NITLearner:
    """A learner whose network's logits depend on the images by about as much as on the noise."""
    torch.manual_seed(3)
    net = build()
    with torch.no_grad():
        net.synapse.weight.mul_(3)
        net.readout.weight.mul_(4)
    swap_neurons(net, sigma=0.5)
    return NITLearner(net, **{"replicas": 4, "residual": 1, "seed": 5, **TIME, **options})


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(40, 6), torch.randint(3, (40,))


@pytest.mark.parametrize("build", [Torch, Jelly])
@pytest.mark.parametrize("steps", [1, 3])
def test_attacked_images_lie_in_the_ball_and_between_the_bounds(
    build: Callable[[], nn.Module], steps: int, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    expand = AdversarialExpand(made(build), eps=0.3, steps=steps)
    attacked, targets = expand(x, y)
    assert attacked.shape == (160, 6)
    assert torch.equal(targets, y.repeat(4))
    assert torch.equal(attacked[:40], attacked[120:])  # replicas of one and the same attack
    assert not attacked.requires_grad
    moved = (attacked - x.repeat(4, 1)).abs()
    assert 0.29 < moved.max() <= 0.3 + 1e-6
    assert attacked.min() == 0  # the attack reaches them
    assert attacked.max() == 1


@pytest.mark.parametrize("build", [Torch, Jelly])
def test_it_raises_the_loss_more_than_random_noise_of_the_same_size(
    build: Callable[[], nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    learner = made(build)
    judge = NoisyClassifier(learner.net, draws=400)

    def loss(images: Tensor) -> float:
        with torch.no_grad():
            return F.cross_entropy(judge(images), y).item()

    random = (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)
    attacked = AdversarialExpand(learner, eps=0.1, steps=3).attack(x, y)
    assert loss(attacked) > loss(x) + 0.05
    assert loss(attacked) - loss(x) > 3 * abs(loss(random) - loss(x))


def test_it_goes_along_the_sign_of_the_classifiers_gradient(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    x = 0.2 + 0.6 * x  # so that no bound is met
    learner = made()
    expand = AdversarialExpand(learner, eps=0.1, steps=1, draws=8, alpha=0.01)
    torch.manual_seed(7)
    attacked = expand.attack(x, y)
    torch.manual_seed(7)
    start = (x - 0.1) + ((x + 0.1) - (x - 0.1)) * torch.rand_like(x)
    leaf = start.clone().requires_grad_()
    model = NoisyClassifier(learner.net, draws=8, gradient="lr", **TIME)
    F.cross_entropy(model(leaf), y, reduction="sum").backward()
    inside = (start + 0.001 * leaf.grad.sign() - x).abs() < 0.1
    assert inside.float().mean() > 0.9
    moved = (attacked - start)[inside]
    torch.testing.assert_close(moved, 0.001 * leaf.grad.sign()[inside], atol=1e-7, rtol=0)


def test_a_seed_repeats_it(batch: tuple[Tensor, Tensor]) -> None:
    expand = AdversarialExpand(made(), eps=0.1)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(expand.attack(*batch))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_eps_can_grow(batch: tuple[Tensor, Tensor]) -> None:
    expand = AdversarialExpand(made(), eps=0.0)
    assert torch.equal(expand.attack(*batch), batch[0])
    expand.eps = 0.2
    assert (expand.attack(*batch) - batch[0]).abs().max() > 0.19
    with pytest.raises(ValueError, match="eps"):
        expand.eps = -0.1


def test_the_learner_is_left_alone(batch: tuple[Tensor, Tensor]) -> None:
    """The gradient of a given batch is the same to the bit, whatever was attacked before."""
    x, y = batch
    gradients = []
    for attacks in (0, 2):
        learner = made()
        learner.net.train()
        expand = AdversarialExpand(learner)
        for _ in range(attacks):
            expand.attack(x, y)
        assert learner.passes == 0
        assert all(p.grad is None for p in learner.parameters())
        assert all(p.requires_grad for p in learner.net.synapse.parameters())
        assert all(module.training for module in learner.net.modules())
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(learner.net(xr), yr, reduction="none")
        learner.backward(losses)
        assert learner.passes == 1
        gradients.append([p.grad for p in learner.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.full
@pytest.mark.parametrize("build", [Torch, Jelly])
def test_it_trains_a_network_that_withstands_more(build: Callable[[], nn.Module]) -> None:
    """One pixel tells the class by a wide margin, five by 0.1 each, which eps = 0.15 turns."""
    torch.manual_seed(0)
    y = torch.randint(2, (400,))
    side = 2.0 * y[:, None] - 1
    wide = 0.5 + 0.4 * side * torch.where(torch.rand(400, 1) < 0.9, 1.0, -1.0)
    x = torch.cat([wide, (0.5 + 0.1 * side).expand(-1, 5)], 1)
    right = {}
    for trained in ("clean", "attacked"):
        learner = made(build)
        expand = AdversarialExpand(learner, eps=0.15, steps=2)
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.03)
        for _ in range(60):
            optimizer.zero_grad()
            xr, yr = (expand if trained == "attacked" else learner.expand)(x, y)
            with learner.record():
                losses = F.cross_entropy(learner.net(xr), yr, reduction="none")
            learner.backward(losses)
            optimizer.step()
        attacked = AdversarialExpand(learner, eps=0.15, steps=10).attack(x, y)
        judge = NoisyClassifier(learner.net, draws=50)
        right[trained] = (judge(attacked).argmax(1) == y).float().mean().item()
    assert right["attacked"] > 0.75
    assert right["attacked"] > right["clean"] + 0.3


def test_encoded_input(batch: tuple[Tensor, Tensor]) -> None:
    """A time-first network that does not expand its input itself."""

    class Encoded(Jelly):
        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            return self.readout(self.neuron(self.synapse(x))).mean(0)

    def encode(x: Tensor) -> Tensor:
        return x.expand(4, *x.shape)

    found = []
    for build, options in ((Jelly, {}), (Encoded, {"encode": encode, "dim": 1})):
        expand = AdversarialExpand(made(build), **options)
        torch.manual_seed(1)
        found.append(expand(*batch)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps"),
        ({"eps": float("nan")}, ValueError, "eps"),
        ({"steps": 0}, ValueError, "steps"),
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds"),
        ({"draws": 1}, ClassifierError, "draws"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdversarialExpand(made(), **options)


def test_images_out_of_bounds(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    expand = AdversarialExpand(made())
    with pytest.raises(ValueError, match="bounds"):
        expand(x - 0.5, y)
    AdversarialExpand(made(), bounds=(-0.5, 0.5))(x - 0.5, y)


def test_not_inside_a_recording(batch: tuple[Tensor, Tensor]) -> None:
    learner = made()
    expand = AdversarialExpand(learner)
    with pytest.raises(RecordingError, match="before"), learner.record():
        expand(*batch)


def test_trades_is_what_it_says() -> None:
    clean, attacked = torch.randn(7, 5), torch.randn(7, 5)
    labels = torch.randint(5, (7,))
    p, q = clean.softmax(1), attacked.softmax(1)
    expected = -p[range(7), labels].log() + 3 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(trades(clean, attacked, labels, beta=3.0), expected)


def test_trades_gradient_of_a_learner_is_unbiased(batch: tuple[Tensor, Tensor]) -> None:
    """Two passes in one recording: the sharp estimate agrees with the plain one.

    Of 20 estimates each the means are compared in units of their standard errors.
    """
    x, y = (t[:3] for t in batch)
    attacked = 1 - x
    found = []
    for options in (TIME, {"conditional": False, "credit": "none"}):
        learner = made(replicas=1000, **options)
        estimates = []
        for _ in range(20):
            learner.net.zero_grad()
            with learner.record():
                xr, ar, yr = learner.expand(x, attacked, y)
                losses = trades(learner.net(xr), learner.net(ar), yr, beta=2.0)
            learner.backward(losses)
            estimates.append(learner.net.synapse.weight.grad.flatten().clone())
        stacked = torch.stack(estimates)
        found.append((stacked.mean(0), stacked.var(0) / len(stacked)))
    (sharp, small), (plain, wide) = found
    assert small.sum().sqrt() < 0.2 * sharp.norm()
    assert small.sum() < 0.2 * wide.sum()
    assert ((sharp - plain) / (small + wide).sqrt()).abs().max() < 6


def test_loss_of_mean_is_that_of_the_mean_by_autograd() -> None:
    logits = torch.randn(4 * 7, 5, requires_grad=True)
    labels = torch.randint(5, (7,))
    losses = loss_of_mean(logits, labels.repeat(4), replicas=4)
    assert losses.shape == (28,)
    expected = F.cross_entropy(logits.unflatten(0, (4, 7)).mean(0), labels, reduction="none")
    torch.testing.assert_close(losses.unflatten(0, (4, 7)).mean(0), expected)
    assert losses.unflatten(0, (4, 7)).std(0).min() > 0.01  # which a learner compares
    (found,) = torch.autograd.grad(losses.mean(), logits)
    (exact,) = torch.autograd.grad(expected.mean(), logits)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("build", [Torch, Jelly])
def test_loss_of_mean_gives_a_learner_the_gradient_of_the_mean(
    build: Callable[[], nn.Module],
) -> None:
    """For one image the gradient in it is that in the first layer's biases through its weights."""
    x = torch.rand(1, 6)
    learner = made(build, replicas=4000)
    with torch.no_grad():
        learner.net.readout.weight.mul_(4)  # for draws that differ
        y = NoisyClassifier(learner.net, draws=4000)(x).argmax(1)
    with learner.record():
        xr, yr = learner.expand(x, y)
        losses = loss_of_mean(learner.net(xr), yr, replicas=4000)
    learner.backward(losses)
    found = learner.net.synapse.bias.grad @ learner.net.synapse.weight
    leaf = x.clone().requires_grad_()
    model = NoisyClassifier(learner.net, draws=4000, gradient="lr", **TIME)
    F.cross_entropy(model(leaf), y).backward()
    assert (found.detach() - leaf.grad[0]).norm() < 0.05 * leaf.grad.norm()
