"""Certified radii against decisions whose probabilities are known exactly, or counted."""

from __future__ import annotations

import math

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import swap_neurons
from nit_snn.errors import ClassifierError
from nit_snn.robustness import (
    NoisyClassifier,
    certify_noise,
    certify_smoothing,
    sensitivity,
)


class Linear2(nn.Module):
    """Class 1 where `w x > 0`: a boundary at a known distance."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        side = x @ self.weight
        return torch.stack([-side, side], 1)


class Net(nn.Module):
    """Static images into one noisy layer, over several steps, and a readout of its spikes."""

    def __init__(self, framework: str = "snnTorch", skip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.framework, self.skip = framework, skip
        if framework == "snnTorch":
            self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 3)
            self.lif = snn.Leaky(beta=0.6, reset_mechanism="zero")
        else:
            self.fc1, self.fc2 = layer.Linear(6, 5), layer.Linear(5, 3)
            self.lif = neuron.LIFNode(tau=2.0)
            functional.set_step_mode(self, "m")
        swap_neurons(self, sigma=0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.framework != "snnTorch":
            functional.reset_net(self)
            return self.fc2(self.lif(self.fc1(x.expand(4, *x.shape)))).sum(0)
        membrane, out = self.lif.reset_mem(), torch.zeros(())
        for _ in range(4):
            spikes, membrane = self.lif(self.fc1(x), membrane)
            out = out + self.fc2(spikes)
        return out + (x[:, :3] if self.skip else 0.0)


def test_smoothing_finds_the_distance_to_a_plane() -> None:
    """For a plane the radius is its distance, exactly; the bound lies below, by little.

    40,000 votes at alpha = 0.001: of 200 points 0.2 lie above on average.
    """
    torch.manual_seed(0)
    weight = torch.tensor([3.0, 4.0]) / 5
    x = torch.randn(200, 2) * 0.3
    found = certify_smoothing(Linear2(weight), x, 0.25, draws=40_000)
    distance = (x @ weight).abs()
    told = found.prediction >= 0
    assert torch.equal(found.prediction[told], (x @ weight > 0).long()[told])
    assert (found.radius <= distance)[told].float().mean() > 0.98
    near = told & (distance < 0.7)  # farther than votes can tell
    assert near.sum() > 100
    assert (found.radius >= 0.85 * distance - 0.02)[near].all()
    assert found.accuracy((x @ weight > 0).long()) == told.float().mean()
    assert found.accuracy((x @ weight > 0).long(), 0.2) < found.accuracy((x @ weight > 0).long())


def test_one_step_of_one_neuron_is_certified_to_its_threshold() -> None:
    """`P(spike) = Phi((w x - 1) / sigma)`: half where `w x = 1`, at `|w x - 1| / |w|` from x."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 1, bias=False),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Linear(1, 2),
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0, 2.0]]))
        net[2].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net[2].bias.copy_(torch.tensor([0.5, -0.5]))
    classifier = NoisyClassifier(swap_neurons(net, sigma=0.7))
    x = torch.randn(100, 3) * 0.3
    moved = sensitivity(classifier, x[:1])
    assert moved.l2 == pytest.approx(3 / 0.7) and moved.linf == pytest.approx(5 / 0.7)
    drift = (x @ net[0].weight.detach().T)[:, 0] - 1
    for norm, size in (("l2", 3.0), ("linf", 5.0)):
        found = certify_noise(classifier, x, norm=norm, draws=20_000)
        told = found.prediction >= 0
        assert told.float().mean() > 0.9
        assert torch.equal(found.prediction[told], (drift > 0).long()[told])
        true = drift.abs() / size
        assert (found.radius <= true)[told].float().mean() > 0.98
        near = told & (drift.abs() < 1.5)
        assert (found.radius >= 0.85 * true - 0.02)[near].all()


@pytest.mark.parametrize("framework", ["snnTorch", "SpikingJelly"])
def test_several_steps_add_up(framework: str) -> None:
    """Over T steps of a static image the shift is `sqrt(T)` times that of one."""
    net = Net(framework)
    classifier = NoisyClassifier(net)
    gain = 1.0 if framework == "snnTorch" else 0.5
    moved = sensitivity(classifier, torch.rand(1, 6))
    weight = net.fc1.weight.detach()
    spectral = float(torch.linalg.matrix_norm(weight, ord=2))
    rows = float(torch.linalg.vector_norm(weight.abs().sum(1)))
    assert moved.l2 == pytest.approx(2 * gain * spectral / 0.5, rel=1e-4)
    assert moved.linf == pytest.approx(2 * gain * rows / 0.5, rel=1e-4)


def test_no_perturbation_within_a_radius_changes_the_majority() -> None:
    """The worst direction of a network of four steps, at 99% of the radius; 20,000 votes each.

    Were the bound not to hold, the share of votes would be below half for the certified class.
    """
    torch.manual_seed(1)
    net = Net()
    with torch.no_grad():
        net.fc1.weight *= 3
        net.fc2.bias.zero_()
    classifier, many = NoisyClassifier(net), NoisyClassifier(net, draws=2000, gradient="lr")
    x = torch.rand(12, 6)
    found = certify_noise(classifier, x, draws=20_000)
    assert (found.radius > 0).sum() >= 6
    labels = found.prediction.clamp(min=0)
    images = x.clone().requires_grad_()
    nn.functional.cross_entropy(many(images), labels, reduction="sum").backward()
    assert images.grad is not None
    direction = images.grad / images.grad.norm(dim=1, keepdim=True)
    with torch.no_grad():
        moved = x + 0.99 * found.radius[:, None].float() * direction
        rows = moved.repeat_interleave(20_000, 0)
        votes = classifier(rows).argmax(1).unflatten(0, (12, -1)) == labels[:, None]
    share = votes.float().mean(1)[found.radius > 0]
    assert (share > 0.5).all()
    # The tightest of them is not far from losing: the bound is no mere formality.
    assert share.min() < 0.9


def test_what_certifies_nothing_is_refused() -> None:
    x = torch.rand(2, 6)
    with pytest.raises(ClassifierError, match="on other ways"):
        certify_noise(NoisyClassifier(Net(skip=True)), x)
    with pytest.raises(ClassifierError, match="Each draw has to be a vote"):
        certify_noise(NoisyClassifier(Net(), draws=4), x)
    with pytest.raises(ClassifierError, match="repeat each other"):
        certify_noise(NoisyClassifier(Net(), seed=1), x)
    with pytest.raises(ClassifierError, match="repeat each other"):
        certify_smoothing(NoisyClassifier(Net(), seed=1), x, 0.1)
    with pytest.raises(ClassifierError, match="not affine"):
        certify_noise(NoisyClassifier(Net(), encode=lambda image: image.square()), x)
    with pytest.raises(ClassifierError, match="no noisy neuron"):
        sensitivity(NoisyClassifier(nn.Linear(6, 2)), x[:1])
    net = Net()
    with torch.no_grad():
        net.lif.sigma.zero_()
    with pytest.raises(ClassifierError, match="has to have noise"):
        sensitivity(NoisyClassifier(net), x[:1])
    with pytest.raises(ValueError, match="norm"):
        certify_noise(NoisyClassifier(Net()), x, norm="l1")
    with pytest.raises(ValueError, match="sigma"):
        certify_smoothing(Linear2(torch.ones(6)), x, 0.0)
    with pytest.raises(ValueError, match="alpha"):
        certify_smoothing(Linear2(torch.ones(6)), x, 1.0, alpha=2.0)


def test_an_undecided_image_gets_no_prediction() -> None:
    torch.manual_seed(0)
    found = certify_smoothing(Linear2(torch.ones(2)), torch.zeros(5, 2), 1.0, draws=1000)
    assert found.prediction.tolist() == [-1] * 5 and found.radius.tolist() == [0.0] * 5
    assert math.isclose(found.accuracy(torch.zeros(5)), 0.0)


def test_the_certificate_leaves_the_network_as_it_was() -> None:
    net = Net()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    certify_noise(NoisyClassifier(net), torch.rand(3, 6), draws=200)
    assert net.training and all(n._recorder is None for n in (net.lif,))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
