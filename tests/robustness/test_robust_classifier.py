"""NoisyClassifier: its gradients, its states, its noise, and the attacks of torchattacks on it.

The likelihood-ratio gradient is compared with the exact one, which shares no code with it: `oracle`
integrates over membrane densities and differentiates in the image. One call gives COPIES
independent estimates from DRAWS draws each, 163,840 rows; their mean is compared with the truth in
units of its own standard error, a t statistic with 39 degrees of freedom, of which |t| < 8 fails
by chance with probability below 1e-8 for each of three pixels. The estimate must also be sharp: the
standard error is below a tenth of the gradient.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracle
import oracle_memory
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from conftest import SnnTorchNet, SpikingJellyNet
from snntorch import surrogate as snn_surrogates
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based import surrogate as sj_surrogates
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, swap_neurons
from nit_snn.datasets.subset import load_subset
from nit_snn.errors import BiasWarning, ClassifierError, RecordingError
from nit_snn.inspect.audit import noise_density
from nit_snn.neurons import NoisyActivation
from nit_snn.robustness import NoisyClassifier

COPIES, DRAWS, STEPS = 40, 4_096, 3
SIGMA = (0.7, 0.9)
COTANGENT = np.array([1.0, -0.6])
TIME = {"conditional": True, "credit": "time"}


# --- the exact gradient -----------------------------------------------------------------------


class Tiny(nn.Module):
    """(N, 3) -> two hidden noisy neurons -> two output noisy neurons; spike counts, (N, 2).

    `skip` leads from the image to the output neurons, `direct` to the counts themselves.
    """

    def __init__(self, hidden: nn.Module, output: nn.Module, read: str = "counts") -> None:
        super().__init__()
        self.synapse1, self.neuron1 = nn.Linear(3, 2), hidden
        self.synapse2, self.neuron2 = nn.Linear(2, 2), output
        self.skip, self.direct = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.neuron1, neuron.BaseNode):
            functional.set_step_mode(self, "m")
            sequence = x.unsqueeze(0).expand(STEPS, -1, -1)
            current = self.synapse2(self.neuron1(self.synapse1(sequence))) + self.skip(sequence)
            return self.neuron2(current).sum(0) + self.direct(x)
        counts, membrane = torch.zeros(()), torch.zeros(())
        for _ in range(STEPS):
            first = self.neuron1(self.synapse1(x))
            second, *_, membrane = self.neuron2(self.synapse2(first[0]) + self.skip(x))
            counts = counts + second
        return (counts if self.read == "counts" else membrane) + self.direct(x)


@dataclass
class Case:
    """Hidden and output neurons in a framework and in the oracle."""

    neurons: Callable[[], tuple[nn.Module, nn.Module]]
    dynamics: tuple[Any, Any]
    read: str = "counts"
    skips: bool = False
    average: str = "logits"
    gain: float = 2.0
    options: dict[str, Any] = field(default_factory=dict)


def leaky(reset: str, **kw: Any) -> Case:
    return Case(
        lambda: tuple(snn.Leaky(beta=b, reset_mechanism=reset) for b in (0.75, 0.625)),
        tuple(oracle.Leaky(beta=b, reset=reset) for b in (0.75, 0.625)),
        **kw,
    )


def lif(v_reset: float | None, **kw: Any) -> Case:
    return Case(
        lambda: tuple(neuron.LIFNode(t, True, v_reset=v_reset) for t in (1.5, 2.5)),
        tuple(oracle.LIF(tau=t, decay_input=True, v_reset=v_reset) for t in (1.5, 2.5)),
        gain=4.0,  # of which tau takes its part
        **kw,
    )


CASES = {
    "leaky zero": leaky("zero"),
    "leaky zero, conditional": leaky("zero", options={"conditional": True}),
    "leaky subtract": leaky("subtract"),
    "leaky subtract, time credit": leaky("subtract", options=TIME),
    "leaky none, readout credit": leaky("none", options={"credit": "readout"}),
    "leaky subtract, membranes": leaky("subtract", read="membranes"),
    "leaky zero, skip connections": leaky("zero", skips=True),
    "leaky subtract, skip connections, time credit": leaky("subtract", skips=True, options=TIME),
    "leaky zero, probabilities": leaky("zero", average="probabilities"),
    "leaky subtract, probabilities, time credit": leaky(
        "subtract", average="probabilities", options=TIME
    ),
    "lif hard": lif(0.0),
    "lif soft": lif(None),
    "lif soft, conditional": lif(None, options={"conditional": True}),
    "lif soft, layers credit, conditional": lif(
        None, options={"credit": "layers", "conditional": True}
    ),
    "lif hard, time credit alone": lif(0.0, options={"credit": "time"}),
    "lif hard, skip connections": lif(0.0, skips=True),
    "lif hard, layers credit": lif(0.0, options={"credit": "layers"}),
}


def exact_gradient(case: Case, net: Tiny, x: np.ndarray) -> np.ndarray:
    """d<g, F>/dx, (3,), by quadrature and finite differences."""
    held = {n: p.detach().numpy() for n, p in net.named_parameters()}
    w1, b1, w2, b2 = (held[f"synapse{i}.{n}"] for i in (1, 2) for n in ("weight", "bias"))

    def of(loss: Any) -> tuple[float, np.ndarray]:
        network = oracle.Network(
            x=None,
            dynamics1=case.dynamics[0],
            dynamics2=case.dynamics[1],
            threshold=1.0,
            loss=loss,
            hidden_current=lambda theta: np.tile(w1 @ theta["x"] + b1, (STEPS, 1)),
            output_current=lambda theta, s: s @ w2.T + b2 + held["skip.weight"] @ theta["x"],
        )
        theta = {"x": x, "sigma1": np.array(SIGMA[0]), "sigma2": np.array(SIGMA[1])}
        return oracle.expected_loss(network, theta), oracle.gradient(network, theta)["x"]

    if case.average == "probabilities":

        def share(k: int) -> oracle.SpikeLoss:
            return oracle.SpikeLoss(lambda r: float(1 / np.exp(r.sum(1) - r.sum(1)[k]).sum()))

        found = [of(share(k)) for k in range(2)]
        return sum(g * slope / p for g, (p, slope) in zip(COTANGENT, found, strict=True))
    if case.read == "membranes":
        slope = of(oracle.MembraneLoss(lambda u: u @ COTANGENT))[1]
    else:
        slope = of(oracle.SpikeLoss(lambda r: float(r.sum(1) @ COTANGENT)))[1]
    return slope + held["direct.weight"].T @ COTANGENT


def assert_unbiased(estimates: Tensor, exact: np.ndarray) -> None:
    """COPIES estimates, (COPIES, *), against the truth, (*)."""
    error = estimates.std(0) / COPIES**0.5
    statistic = (estimates.mean(0) - torch.as_tensor(exact)) / error
    assert statistic.abs().max() < 8, statistic
    assert error.norm() < 0.1 * np.linalg.norm(exact), "too few samples to say anything"


def estimates_of(classifier: NoisyClassifier, x: Tensor) -> Tensor:
    """COPIES means over all estimates that the rows of one call make of one image."""
    copies = COPIES * (DRAWS // classifier.draws)
    images = x.expand(copies, *x.shape).clone().requires_grad_()
    cotangent = torch.as_tensor(COTANGENT).expand(copies, -1)
    found = torch.autograd.grad(classifier(images), images, cotangent)[0]
    return found.unflatten(0, (COPIES, -1)).mean(1)


def made(case: Case) -> tuple[Tiny, Tensor]:
    """The noisy network, and an image."""
    torch.manual_seed(1)
    net = Tiny(*case.neurons(), read=case.read).double()
    with torch.no_grad():
        net.synapse1.weight.mul_(case.gain)
        net.synapse2.weight.mul_(case.gain)
        for extra in (net.skip, net.direct):
            extra.weight.mul_(float(case.skips))
    swap_neurons(net, {"neuron1": SIGMA[0], "neuron2": SIGMA[1]})
    return net, torch.randn(3, dtype=torch.float64)


@pytest.mark.montecarlo
@pytest.mark.parametrize("name", CASES)
def test_lr_gradient_equals_the_exact_one(name: str) -> None:
    case = CASES[name]
    net, x = made(case)
    classifier = NoisyClassifier(
        net, draws=DRAWS, gradient="lr", average=case.average, **case.options
    )
    assert_unbiased(estimates_of(classifier, x), exact_gradient(case, net, x.numpy()))


@pytest.mark.montecarlo
@pytest.mark.parametrize(
    ("name", "draws"),
    [("leaky zero", 2), ("leaky zero", 3), ("leaky subtract, time credit", 4)],
)
def test_lr_gradient_has_no_bias_with_few_draws(name: str, draws: int) -> None:
    """A baseline that held the draw itself would take a share of 1 / draws of the gradient."""
    case = CASES[name]
    net, x = made(case)
    classifier = NoisyClassifier(net, draws=draws, gradient="lr", **case.options)
    assert_unbiased(estimates_of(classifier, x), exact_gradient(case, net, x.numpy()))


@pytest.mark.montecarlo
def test_lr_gradient_of_recurrent_neurons_with_synaptic_currents() -> None:
    """Two RSynaptic neurons, read by their spikes; a pixel enters at every step through alpha."""
    torch.manual_seed(2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.synapse = nn.Linear(3, 2)
            self.neuron = snn.RSynaptic(
                alpha=0.6, beta=0.7, linear_features=2, reset_mechanism="subtract"
            )

        def forward(self, x: Tensor) -> Tensor:
            return sum(self.neuron(self.synapse(x))[0] for _ in range(STEPS))

    net = swap_neurons(Net().double(), sigma=SIGMA[0])
    x = torch.randn(3, dtype=torch.float64)
    found = estimates_of(NoisyClassifier(net, draws=DRAWS, gradient="lr"), x)

    held = {n: p.detach().numpy() for n, p in net.named_parameters()}
    theta = {
        "weight": held["synapse.weight"],
        "bias": held["synapse.bias"],
        "recurrent.weight": held["neuron.recurrent.weight"],
        "recurrent.bias": held["neuron.recurrent.bias"],
        "alpha": np.array(0.6),
        "beta": np.array(0.7),
        "sigma": np.array(SIGMA[0]),
    }
    hidden = oracle_memory.Synaptic(reset="subtract")
    network = oracle_memory.Network(hidden, hidden, oracle.SpikeLoss(lambda r: 0.0))
    histories = np.array(list(np.ndindex(*(4,) * STEPS)))
    counts = np.stack([(histories // 2).sum(1), (histories % 2).sum(1)], -1)

    def expected(pixels: np.ndarray) -> float:
        law = oracle_memory.hidden_probabilities(network, theta, np.tile(pixels, (STEPS, 1)))
        return float(law @ (counts @ COTANGENT))

    steps = 1e-4 * np.eye(3)
    exact = np.array([expected(x.numpy() + s) - expected(x.numpy() - s) for s in steps]) / 2e-4
    assert_unbiased(found, exact)


@pytest.mark.montecarlo
def test_lr_gradient_through_an_encoder_a_convolution_and_an_activation() -> None:
    """One noisy step function behind a convolution: P(spike) = Phi((w x + b) / sigma)."""
    torch.manual_seed(3)
    convolution = nn.Conv1d(1, 2, 3).double()
    step = NoisyActivation(lambda v: (v > 0).double(), sigma=0.5)
    net = nn.Sequential(convolution, step, nn.Flatten())
    x = torch.randn(1, 3, dtype=torch.float64)
    classifier = NoisyClassifier(net, draws=DRAWS, gradient="lr", encode=lambda v: 2 * v - 0.1)
    weight = convolution.weight.detach().numpy()[:, 0]
    level = (weight @ (2 * x.numpy()[0] - 0.1) + convolution.bias.detach().numpy()) / 0.5
    density = np.exp(-0.5 * level**2) / np.sqrt(2 * np.pi) / 0.5
    exact = (COTANGENT * density) @ (2 * weight)
    assert_unbiased(estimates_of(classifier, x), exact[None])


def test_lr_mean_is_the_average_and_its_gradient_is_linear_in_the_cotangent() -> None:
    """Several backward passes through one forward, as attacks on one class after another make."""
    net = swap_neurons(SnnTorchNet().double(), sigma=0.5)
    classifier = NoisyClassifier(net, draws=8, gradient="lr", seed=5)
    images = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    logits = classifier(images)
    each = [torch.autograd.grad(logits[:, k].sum(), images, retain_graph=True)[0] for k in range(3)]
    weights = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    together = torch.autograd.grad(logits, images, weights.expand(6, 3))[0]
    torch.testing.assert_close(together, sum(w * g for w, g in zip(weights, each, strict=True)))
    assert together.abs().sum() > 0


def test_lr_gradient_of_an_image_does_not_depend_on_the_others() -> None:
    """Weights are per image: a cotangent of one image gives no other image a gradient."""
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    images = torch.rand(5, 4, requires_grad=True)
    logits = NoisyClassifier(net, draws=8, gradient="lr")(images)
    gradient = torch.autograd.grad(logits[2].sum(), images)[0]
    assert gradient[2].abs().sum() > 0
    assert gradient[[0, 1, 3, 4]].abs().sum() == 0


def test_lr_leaves_parameters_alone() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    net.lif1.set_sigma_learnable(True)
    net.fc1.bias.requires_grad_(False)
    before = {n: p.requires_grad for n, p in net.named_parameters()}
    classifier = NoisyClassifier(net, draws=4, gradient="lr")
    classifier(torch.rand(5, 4, requires_grad=True)).square().sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert {n: p.requires_grad for n, p in net.named_parameters()} == before
    assert not any("forward" in vars(m) for m in net.modules())


def test_lr_cannot_be_differentiated_twice() -> None:
    classifier = NoisyClassifier(swap_neurons(SnnTorchNet()), draws=4, gradient="lr")
    images = torch.rand(5, 4, requires_grad=True)
    cost = classifier(images).square().sum()
    gradient = torch.autograd.grad(cost, images, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_a_network_may_have_a_learner_too() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    learner = NITLearner(net, replicas=4)
    classifier = NoisyClassifier(net, draws=4, gradient="lr")
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    images = x.clone().requires_grad_()
    attacked = x + torch.autograd.grad(F.cross_entropy(classifier(images), y), images)[0].sign()
    with learner.record():
        xr, yr = learner.expand(attacked, y)
        losses = F.cross_entropy(net(xr), yr, reduction="none")
        with pytest.raises(RecordingError, match="inside"):
            classifier(x)
    learner.backward(losses)
    assert net.fc1.weight.grad.abs().sum() > 0


# --- surrogate gradients ----------------------------------------------------------------------


def spelled_out(net: nn.Module, images: Tensor, draws: int) -> Tensor:
    """Draw-major copies through the network itself, in its order of drawing noise."""
    return net(images.repeat(draws, *(1,) * (images.dim() - 1))).unflatten(0, (draws, -1))


@pytest.mark.parametrize("kind", [SnnTorchNet, SpikingJellyNet])
@pytest.mark.parametrize("noisy", [True, False])
def test_surrogate_gradient_is_that_of_autograd_on_the_same_noise(kind: type, noisy: bool) -> None:
    net = kind()
    if noisy:
        swap_neurons(net.double(), sigma=0.5)
    images = (2 * torch.rand(5, 4, dtype=next(net.parameters()).dtype)).requires_grad_()
    y = torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(7)
    logits = NoisyClassifier(net, draws=6)(images)
    found = torch.autograd.grad(F.cross_entropy(logits, y), images)[0]
    torch.manual_seed(7)
    expected = spelled_out(net, images, 6).mean(0)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(found, torch.autograd.grad(F.cross_entropy(expected, y), images)[0])
    assert found.abs().sum() > 0


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize(
    "surrogate",
    [
        snn_surrogates.atan(alpha=5.0),
        snn_surrogates.fast_sigmoid(slope=3),
        sj_surrogates.Sigmoid(alpha=2.0),
        sj_surrogates.PiecewiseQuadratic(alpha=0.5),
        noise_density(0.5),
    ],
    ids=["atan", "fast_sigmoid", "sigmoid", "quadratic", "density"],
)
def test_any_surrogate_takes_the_place_of_the_networks_own(surrogate: Any, noisy: bool) -> None:
    """In snnTorch's network, which is compared with one that was built with that surrogate."""
    torch.manual_seed(3)
    net, built = SnnTorchNet(), SnnTorchNet(spike_grad=surrogate)
    built.load_state_dict(net.state_dict())
    if noisy:
        swap_neurons(net, sigma=0.5)
        swap_neurons(built, sigma=0.5)
    own = net.lif1.spike_grad
    images = (2 * torch.rand(5, 4)).requires_grad_()
    gradients = []
    for classifier in (NoisyClassifier(net, surrogate=surrogate), NoisyClassifier(built)):
        torch.manual_seed(7)
        cost = classifier(images).square().sum()
        gradients.append(torch.autograd.grad(cost, images)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0
    assert net.lif1.spike_grad is own


@pytest.mark.parametrize("noisy", [True, False])
def test_a_surrogate_of_the_other_framework_in_spikingjelly(noisy: bool) -> None:
    torch.manual_seed(3)
    net = SpikingJellyNet().double()
    built = SpikingJellyNet(surrogate_function=sj_surrogates.ATan(alpha=5.0)).double()
    built.load_state_dict(net.state_dict())
    if noisy:
        swap_neurons(net, sigma=0.5)
        swap_neurons(built, sigma=0.5)
    images = (2 * torch.rand(5, 4, dtype=torch.float64)).requires_grad_()
    gradients = []
    for classifier in (
        NoisyClassifier(net, surrogate=snn_surrogates.atan(alpha=5.0)),
        NoisyClassifier(built),
    ):
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad(classifier(images).square().sum(), images)[0])
    torch.testing.assert_close(*gradients)
    assert isinstance(net.body[1].surrogate_function, nn.Module)


def test_a_surrogate_for_each_neuron_by_its_name() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    same = snn_surrogates.atan(alpha=5.0)
    images = torch.rand(5, 4, requires_grad=True)
    gradients = []
    for chosen in ({"lif1": same, "lif2": same}, same, {"lif1": noise_density(0.5), "lif2": same}):
        cost = NoisyClassifier(net, surrogate=chosen, seed=1)(images).square().sum()
        gradients.append(torch.autograd.grad(cost, images)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2])


def test_surrogate_gradient_reaches_parameters_as_in_any_module() -> None:
    net = swap_neurons(SnnTorchNet().double(), sigma=0.5)
    images, y = torch.rand(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(7)
    F.cross_entropy(NoisyClassifier(net, draws=3)(images), y).backward()
    found = net.fc1.weight.grad.clone()
    net.zero_grad()
    torch.manual_seed(7)
    F.cross_entropy(spelled_out(net, images, 3).mean(0), y).backward()
    torch.testing.assert_close(found, net.fc1.weight.grad)


# --- averages, noise, states ------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["surrogate", "lr"])
def test_average_of_probabilities(gradient: str) -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    images = torch.rand(5, 4)
    options = {"draws": 6, "gradient": gradient, "seed": 3}
    draws = []
    hook = net.register_forward_hook(lambda module, args, output: draws.append(output.detach()))
    found = NoisyClassifier(net, average="probabilities", **options)(images)
    means = NoisyClassifier(net, **options)(images)
    hook.remove()
    each = draws[0].unflatten(0, (6, 5))
    torch.testing.assert_close(found, each.softmax(-1).mean(0).log())
    torch.testing.assert_close(means, each.mean(0))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("gradient", ["surrogate", "lr"])
def test_noise_is_fresh_or_the_same_in_each_call(gradient: str) -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    images = torch.rand(5, 4)
    fresh = NoisyClassifier(net, draws=2, gradient=gradient)
    assert not torch.equal(fresh(images), fresh(images))
    torch.manual_seed(1)
    first = fresh(images)
    torch.manual_seed(1)
    assert torch.equal(first, fresh(images))
    fixed = NoisyClassifier(net, draws=2, gradient=gradient, seed=4)
    state = torch.get_rng_state()
    assert torch.equal(fixed(images), fixed(images))
    assert torch.equal(state, torch.get_rng_state())
    differentiated = fixed(images.clone().requires_grad_())
    torch.testing.assert_close(fixed(images), differentiated)
    with torch.no_grad():
        torch.testing.assert_close(fixed(images), differentiated)


def test_draws_are_independent_and_all_count() -> None:
    """The variance of the mean of 100 draws is that of one over 100, within 4 standard errors.

    A variance from 1,000 normal numbers has a relative standard error of sqrt(2 / 999), 4.5%, and
    so the ratio of two of 6.3%.
    """
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    images = torch.full((1000, 4), 0.5)
    one, many = (NoisyClassifier(net, draws=d)(images).var(0) for d in (1, 100))
    assert ((one / (100 * many)).log().abs() < 0.25).all()


def test_noise_off_is_the_plain_network() -> None:
    net = SnnTorchNet()
    plain = net(torch.ones(2, 4)).detach()
    swap_neurons(net, sigma=0.5)
    classifier = NoisyClassifier(net, noise=False)
    assert torch.equal(classifier(torch.ones(2, 4)), plain)
    assert net.lif1.noise  # the network's own switch is as it was
    with noise_off(net):
        assert torch.equal(NoisyClassifier(net)(torch.ones(2, 4)), plain)


class Hidden(nn.Module):
    """Networks whose neurons remember from call to call, and that nothing in them resets."""

    def __init__(self, framework: str) -> None:
        super().__init__()
        if framework == "snntorch":
            nodes = [snn.Leaky(beta=0.9, init_hidden=True), snn.Synaptic(alpha=0.8, beta=0.9)]
        else:
            nodes = [neuron.LIFNode(tau=2.0), neuron.IFNode()]
        self.first, self.second = nodes
        self.synapses = nn.ModuleList([nn.Linear(4, 6), layer.Linear(6, 3)])

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for _ in range(3):
            spikes = self.second(self.synapses[1](5 * self.first(self.synapses[0](9 * x))))
            outputs.append(spikes[0] if isinstance(spikes, tuple) else spikes)
        return torch.stack(outputs).sum(0)


@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize("gradient", ["surrogate", "lr", "plain"])
def test_no_call_knows_of_another(framework: str, gradient: str) -> None:
    """After other images, in another batch, and after a run of the network itself, the same noise
    gives the same logits; a copy can be made at any time."""
    net = Hidden(framework)
    if gradient != "plain":
        swap_neurons(net, sigma=0.5)
    kind = "lr" if gradient == "lr" else "surrogate"
    classifier = NoisyClassifier(net, draws=2, gradient=kind, seed=2)
    images = torch.rand(5, 4, requires_grad=True)
    first = classifier(images)
    assert first.abs().sum() > 0
    classifier(10 * torch.rand(3, 4, requires_grad=True))
    net(10 * torch.ones(10, 4))
    assert torch.equal(first, classifier(images))
    assert torch.equal(first, deepcopy(classifier)(images))
    first.sum().backward()
    assert images.grad.abs().sum() > 0


def test_it_is_an_ordinary_module() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    classifier = NoisyClassifier(net, draws=4, gradient="lr")
    assert next(n for n, _ in classifier.named_parameters()) == "net.fc1.weight"
    assert not classifier.eval().net.training
    doubled = deepcopy(classifier).to(torch.float64)
    images = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    logits = doubled(images)
    logits.sum().backward()
    assert logits.dtype == images.grad.dtype == torch.float64
    assert classifier(torch.rand(5, 4)).dtype == torch.float32
    assert doubled(torch.rand(0, 4, dtype=torch.float64)).shape == (0, 3)


@pytest.mark.parametrize("kind", [SnnTorchNet, SpikingJellyNet])
@pytest.mark.parametrize("gradient", ["surrogate", "lr"])
def test_without_a_gradient_the_logits_are_the_same(kind: type, gradient: str) -> None:
    classifier = NoisyClassifier(
        swap_neurons(kind(), sigma=0.5), draws=4, gradient=gradient, seed=1
    )
    images = torch.rand(5, 4)
    logits = classifier(images.clone().requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), logits)
    with torch.inference_mode():
        inferred = classifier(images), classifier(images.clone())
    torch.testing.assert_close(inferred, (logits, logits))


@pytest.mark.parametrize("options", [{}, TIME], ids=["plain", "time credit"])
def test_a_recorded_pass_is_freed_with_its_graph(options: dict[str, Any]) -> None:
    net = swap_neurons(SpikingJellyNet(), sigma=0.5)
    logits = NoisyClassifier(net, draws=4, gradient="lr", **options)(
        torch.rand(5, 4, requires_grad=True)
    )
    recorded = weakref.ref(logits.grad_fn.recorded)
    logits.sum().backward()
    assert recorded() is not None
    gc.disable()
    try:
        del logits
        assert recorded() is None
    finally:
        gc.enable()


def test_encoding_and_readout() -> None:
    """Time-first input of a network that returns spikes over time; an encoder with parameters."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, images: Tensor) -> Tensor:
            return (self.gain * images).flatten(1).unsqueeze(0).repeat(3, 1, 1)

    net = nn.Sequential(layer.Linear(4, 6), neuron.LIFNode(), layer.Linear(6, 3), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    swap_neurons(net, sigma=0.5)
    options = {"encode": Encoder(), "dim": 1, "readout": lambda spikes: spikes.sum(0)}
    images = torch.rand(5, 1, 2, 2, requires_grad=True)
    for gradient in ("surrogate", "lr"):
        classifier = NoisyClassifier(net, draws=4, gradient=gradient, **options)
        logits = classifier(images)
        assert logits.shape == (5, 3)
        assert torch.autograd.grad(logits.sum(), images)[0].abs().sum() > 0
        assert "encode.gain" in dict(classifier.named_parameters())


def test_the_front_is_computed_once_per_image() -> None:
    seen = []
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    real = F.linear

    def linear(x: Tensor, *args: Any) -> Tensor:
        seen.append(len(x))
        return real(x, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        NoisyClassifier(net, draws=7)(torch.rand(5, 4))
    assert seen == [5, 35, 35, 35]  # the image once, hidden spikes at each of three steps


def test_writing_to_a_current_in_place_disturbs_nothing() -> None:
    class InPlace(SnnTorchNet):
        def forward(self, x: Tensor) -> Tensor:
            total, mem = torch.zeros(()), self.lif1.reset_mem()
            for t in range(3):
                spikes, mem = self.lif1(self.fc1(x).mul_(t + 1.0), mem)
                total = total + self.fc2(spikes)
            return total

    torch.manual_seed(0)
    net = swap_neurons(InPlace().double(), sigma=0.5)
    images = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    logits = NoisyClassifier(net, draws=3)(images)
    torch.manual_seed(7)
    expected = spelled_out(net, images, 3).mean(0)
    torch.testing.assert_close(logits, expected)
    for found in zip(
        *(torch.autograd.grad(o.square().sum(), images) for o in (logits, expected)), strict=True
    ):
        torch.testing.assert_close(*found)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws"),
        ({"draws": True}, "draws"),
        ({"gradient": "exact"}, "gradient must be one of"),
        ({"average": "votes"}, "average must be one of"),
        ({"gradient": "lr", "draws": 1}, "at least 2"),
        ({"gradient": "lr", "draws": 4, "noise": False}, "noise=False"),
        ({"gradient": "lr", "draws": 4, "surrogate": noise_density(1.0)}, "leave surrogate out"),
        ({"gradient": "lr", "draws": 4, "credit": "guess"}, "credit must be one of"),
        ({"gradient": "lr", "draws": 4, "conditional": "auto"}, "True or False"),
        ({"credit": "readout"}, "belong to gradient='lr'"),
        ({"surrogate": {"lif1": noise_density(1.0)}}, "lif1, lif2"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        NoisyClassifier(swap_neurons(SnnTorchNet()), **options)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (SnnTorchNet(), "no noisy neuron"),
        (nn.Linear(4, 3), "no noisy neuron"),
        (nn.Sequential(NoisyActivation(torch.tanh), snn.Leaky(beta=0.5)), "not noisy"),
        (swap_neurons(SnnTorchNet(), sigma=0.0), "positive"),
    ],
    ids=["plain", "no neuron", "half noisy", "no level"],
)
def test_networks_without_enough_noise_are_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        NoisyClassifier(net, draws=4, gradient="lr")


def test_a_surrogate_for_nothing_is_refused() -> None:
    with pytest.raises(ClassifierError, match="no neuron with a surrogate"):
        NoisyClassifier(nn.Linear(4, 3), surrogate=noise_density(1.0))


def test_what_is_no_logits_is_refused() -> None:
    leaky_net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5))
    with pytest.raises(ClassifierError, match=r"got tuple.*readout"):
        NoisyClassifier(leaky_net)(torch.rand(5, 4))
    with pytest.raises(ClassifierError, match=r"\(5, K\), got \(3,\)"):
        NoisyClassifier(leaky_net, readout=lambda out: out[0].sum(0))(torch.rand(5, 4))
    with pytest.raises(ClassifierError, match="dim=2"):
        NoisyClassifier(leaky_net, dim=2)(torch.rand(5, 4))


def test_an_encoder_that_cuts_the_gradient_off_is_refused() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    for encode in (torch.Tensor.detach, lambda x: (x > 0.5).float()):
        classifier = NoisyClassifier(net, draws=4, gradient="lr", encode=encode)
        logits = classifier(torch.rand(5, 4, requires_grad=True))
        with pytest.raises(ClassifierError, match="No gradient reaches the images"):
            logits.sum().backward()


def test_batch_statistics_behind_the_noise_are_warned_of() -> None:
    net = nn.Sequential(
        nn.Linear(4, 6), snn.Leaky(beta=0.5, init_hidden=True), nn.BatchNorm1d(6), nn.Linear(6, 3)
    )
    classifier = NoisyClassifier(swap_neurons(net), draws=4, gradient="lr")
    with pytest.warns(BiasWarning, match="BatchNorm"):
        classifier(torch.rand(5, 4, requires_grad=True))
    classifier.eval()(torch.rand(5, 4, requires_grad=True)).sum().backward()


# --- attacks ----------------------------------------------------------------------------------


class Digits(nn.Module):
    """784-50-10 of Leaky neurons, four steps, a summed linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 50), nn.Linear(50, 10)
        self.lif = snn.Leaky(beta=0.5, reset_mechanism="zero")

    def forward(self, images: Tensor) -> Tensor:
        x, mem = images.flatten(1), self.lif.reset_mem()
        outputs = []
        for _ in range(4):
            spikes, mem = self.lif(self.fc1(x), mem)
            outputs.append(self.fc2(spikes))
        return torch.stack(outputs).sum(0)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A noisy network after a few seconds of NIT, and 200 images that it has not seen."""
    torch.manual_seed(0)
    pixels, classes = load_subset("mnist")
    images, labels = torch.from_numpy(pixels)[:, None] / 255, torch.from_numpy(classes).long()
    net = swap_neurons(Digits(), sigma=1.0)
    learner = NITLearner(net, replicas=16, credit="readout", residual=1, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for rows in torch.randperm(5000).split(100):
        optimizer.zero_grad()
        with learner.record():
            xr, yr = learner.expand(images[rows], labels[rows])
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        learner.backward(losses)
        optimizer.step()
    learner.close()
    return net, images[5000:5200], labels[5000:5200]


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent, by the mean of 32 draws."""
    with torch.no_grad():
        logits = NoisyClassifier(net, draws=32, average="probabilities")(images)
    return 100 * (logits.argmax(1) == labels).float().mean().item()


ATTACKED = {
    "surrogate": {"draws": 4},
    "atan": {"draws": 4, "surrogate": snn_surrogates.atan(alpha=2.0)},
    "lr": {"draws": 32, "gradient": "lr"},
    "lr, probabilities": {"draws": 32, "gradient": "lr", "average": "probabilities"},
    "lr, time credit": {"draws": 8, "gradient": "lr", **TIME},
}


@pytest.mark.parametrize("name", ATTACKED)
def test_torchattacks_runs_unchanged_and_moves_the_accuracy(name: str, digits: Any) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net, images, labels = digits
    clean = accuracy(net, images, labels)
    assert clean > 80
    classifier = NoisyClassifier(net, **ATTACKED[name])
    for attack, most in (
        (torchattacks.FGSM(classifier, eps=0.1), clean - 25),
        (torchattacks.PGD(classifier, eps=0.1, alpha=0.02, steps=15), clean - 50),
    ):
        attacked = attack(images, labels)
        assert (attacked - images).abs().max() <= 0.1 + 1e-6
        assert accuracy(net, attacked, labels) < most


def test_a_random_direction_of_the_same_size_is_harmless(digits: Any) -> None:
    net, images, labels = digits
    moved = (images + 0.1 * torch.randn_like(images).sign()).clamp(0, 1)
    assert accuracy(net, moved, labels) > accuracy(net, images, labels) - 10


def test_foolbox_runs_unchanged(digits: Any) -> None:
    foolbox = pytest.importorskip("foolbox")
    net, images, labels = digits
    classifier = NoisyClassifier(net, draws=8, gradient="lr").eval()
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1))
    _, attacked, _ = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.2)(
        model, images, labels, epsilons=0.1
    )
    assert accuracy(net, attacked, labels) < accuracy(net, images, labels) - 30


def test_art_runs_unchanged(digits: Any) -> None:
    estimators = pytest.importorskip("art.estimators.classification")
    evasion = pytest.importorskip("art.attacks.evasion")
    net, images, labels = digits
    classifier = estimators.PyTorchClassifier(
        NoisyClassifier(net, draws=8, gradient="lr"),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = evasion.ProjectedGradientDescentPyTorch(
        classifier, eps=0.1, eps_step=0.02, max_iter=10, verbose=False
    )
    attacked = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    assert accuracy(net, attacked, labels) < accuracy(net, images, labels) - 30


def test_autoattack_runs_unchanged(digits: Any) -> None:
    """Its randomised version; the package is called autoattack or pyautoattack."""
    try:
        from autoattack import AutoAttack
    except ImportError:
        AutoAttack = pytest.importorskip("pyautoattack").AutoAttack
    net, images, labels = digits
    classifier = NoisyClassifier(net, draws=4, gradient="lr").eval()
    attack = AutoAttack(classifier, eps=0.1, version="rand", device="cpu", seed=0)
    attack.apgd.n_iter, attack.apgd.eot_iter = 10, 2
    found = attack.run_standard_evaluation(images[:50], labels[:50])
    attacked = found[0] if isinstance(found, tuple) else found
    assert accuracy(net, attacked, labels[:50]) < accuracy(net, images[:50], labels[:50]) - 30
