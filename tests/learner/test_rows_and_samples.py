"""Losses that couple samples, and samples of several rows, against finite differences.

The truth is the derivative of the expected loss along one direction, from two runs with the same
noise. Estimates are averages over many replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import LossError

STEPS, SIZE, HIDDEN, SAMPLES, PARTS = 2, 3, 4, 3, 2
Y = torch.tensor([0, 1, 1])


class Net(nn.Module):
    """Two noisy layers; `between` acts on the first one's spikes, `behind` on the second one's."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda s: s) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.lif1 = nn.Linear(SIZE, HIDDEN), snn.Leaky(beta=0.7)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, HIDDEN), snn.Leaky(beta=0.7)
        self.fc3 = nn.Linear(HIDDEN, 2)
        self.between, self.direction = between, list[Tensor]()
        for layer in (self.fc1, self.fc2, self.fc3):
            layer.weight.data *= 2
        self.fc3.weight.data *= 2
        swap_neurons(self, sigma=0.6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        scores, total = 0, 0
        for _ in range(STEPS):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, mem2 = self.lif2(self.fc2(self.between(spikes)), mem2)
            scores, total = scores + self.fc3(spikes), total + spikes
        return scores, total


def mean_of_parts(order: str) -> Callable[[Tensor], Tensor]:
    """(N, *) to (C * B, *), the mean over the parts of a sample."""
    if order == "flatten":
        return lambda s: s.unflatten(0, (-1, PARTS)).mean(1)
    if order == "cat":
        return lambda s: s.unflatten(0, (PARTS, -1)).mean(0)
    return lambda s: s.unflatten(0, (-1, PARTS, SAMPLES)).mean(1).flatten(0, 1)


def truth(net: Net, loss: Callable[[int], Tensor], replicas: int = 20_000) -> Estimate:
    """The derivative of the expected loss along `net.direction`, and its standard error.

    Args:
        loss: From a number of replicas to the loss of each, (replicas,).
    """
    found = []
    for sign in (0.1, -0.1):
        shifted(net, sign)
        torch.manual_seed(7)
        with torch.no_grad():
            found.append(loss(replicas))
        shifted(net, -sign)
    each = (found[0] - found[1]) / 0.2
    return each.mean().item(), (each.std() / replicas**0.5).item()


def shifted(net: Net, step: float) -> None:
    for weight, direction in zip((net.fc1.weight, net.fc2.weight), net.direction, strict=True):
        weight.data += step * direction


def along(net: Net) -> float:
    pairs = zip((net.fc1.weight, net.fc2.weight), net.direction, strict=True)
    return sum(float((weight.grad * direction).sum()) for weight, direction in pairs)


Estimate = tuple[float, float]
Losses = Callable[[NITLearner], tuple[Any, Any]]


def aim(net: Net, losses: Losses, per_step: bool) -> None:
    """Along the gradient, about, there is most to see."""
    options = {"credit": "layers", "residual": 0, "per_step_losses": per_step}
    learner = NITLearner(net, replicas=200, seed=5, **options)
    with learner.record():
        own, shared = losses(learner)
    learner.backward(own, shared=shared)
    learner.close()
    norm = torch.cat([w.grad.flatten() for w in (net.fc1.weight, net.fc2.weight)]).norm()
    net.direction = [w.grad / norm for w in (net.fc1.weight, net.fc2.weight)]


def estimated(
    net: Net,
    losses: Losses,
    passes: int = 10,
    replicas: int = 1000,
    **options: Any,
) -> Estimate:
    """The mean of estimates along `net.direction`, and its standard error."""
    aim(net, losses, options.get("per_step_losses", False))
    learner = NITLearner(net, replicas=replicas, seed=0, **options)
    found = []
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            own, shared = losses(learner)
        learner.backward(own, shared=shared)
        found.append(along(net))
    learner.close()
    values = torch.tensor(found)
    return values.mean().item(), (values.std() / passes**0.5).item()


def check(found: Estimate, expected: Estimate) -> None:
    (mean, error), (true, noise) = found, expected
    assert abs(mean - true) < 4 * (error**2 + noise**2) ** 0.5 + 0.02 * abs(true), (found, expected)
    assert error + noise < 0.12 * abs(true), (found, expected)


X = torch.rand(SAMPLES, SIZE, generator=torch.Generator().manual_seed(5)) + 0.3
PATCHES = torch.rand(SAMPLES, PARTS, SIZE, generator=torch.Generator().manual_seed(6)) + 0.3
ESTIMATORS = {
    "none": {"credit": "none"},
    "layers": {"credit": "layers", "residual": 1},
    "readout": {"credit": "readout", "residual": 1},
    "conditional": {"credit": "none", "conditional": True},
    "antithetic": {"credit": "layers", "residual": 1, "antithetic": True},
}
#: One of each kind in every run, all of them in the full one.
FEW = ("none", "layers")
EACH = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[] if name in FEW else pytest.mark.full)
        for name, options in ESTIMATORS.items()
    ],
)


def penalty(total: Tensor, replicas: int) -> Tensor:
    """Not linear in the mean over the samples: (C,)."""
    return 2 * (total.unflatten(0, (replicas, -1)).flatten(1).mean(1) - 0.1).square()


@EACH
def test_a_term_of_all_samples_is_charged_whole(options: dict[str, Any]) -> None:
    net = Net()

    def both(scores: Tensor, total: Tensor, y: Tensor, replicas: int) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(scores, y, reduction="none"), penalty(total, replicas)

    def losses(learner: NITLearner) -> tuple[Tensor, Tensor]:
        xr, yr = learner.expand(X, Y)
        return both(*net(xr), yr, learner.replicas)

    def sampled(replicas: int) -> Tensor:
        own, shared = both(*net(X.repeat(replicas, 1)), Y.repeat(replicas), replicas)
        return own.view(replicas, -1).mean(1) + shared

    check(estimated(net, losses, **options), truth(net, sampled))


def contrastive(scores: Tensor, replicas: int) -> Tensor:
    """In-batch softmax: every sample of a replica against all others, (C,)."""
    z = scores.unflatten(0, (replicas, -1))
    similar = z @ z.transpose(1, 2)
    target = torch.arange(z.shape[1]).roll(1).expand(replicas, -1)
    return (
        F.cross_entropy(similar.flatten(0, 1), target.flatten(), reduction="none")
        .view(replicas, -1)
        .mean(1)
    )


def mixed(spikes: Tensor) -> Tensor:
    """A graph layer over the samples of each replica."""
    rows = spikes.unflatten(0, (-1, SAMPLES))
    graph = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.4, 0.0, 0.6]])
    return (graph @ rows).flatten(0, 1)


@EACH
@pytest.mark.parametrize("kind", ["contrastive", "graph"])
def test_one_loss_for_each_replica(kind: str, options: dict[str, Any]) -> None:
    net = Net(mixed) if kind == "graph" else Net()

    def loss(scores: Tensor, replicas: int) -> Tensor:
        if kind == "contrastive":
            return contrastive(scores, replicas)
        y = Y.repeat(replicas)
        return F.cross_entropy(scores, y, reduction="none").view(replicas, -1).mean(1)

    def losses(learner: NITLearner) -> tuple[Tensor, None]:
        return loss(net(learner.expand(X))[0], learner.replicas), None

    def sampled(replicas: int) -> Tensor:
        return loss(net(X.repeat(replicas, 1))[0], replicas)

    check(estimated(net, losses, **options), truth(net, sampled))


@EACH
@pytest.mark.parametrize(
    ("order", "where"),
    [
        ("flatten", "behind"),
        ("cat", "between"),
        pytest.param("cat before", "between", marks=pytest.mark.full),
        pytest.param("flatten", "between", marks=pytest.mark.full),
        pytest.param("cat", "behind", marks=pytest.mark.full),
        ("cat before", "behind"),
    ],
)
def test_samples_of_several_rows(order: str, where: str, options: dict[str, Any]) -> None:
    """Averaged behind the neurons, or between them, so that layers have k rows and one."""
    fold = mean_of_parts(order)
    net = Net(fold) if where == "between" else Net()

    def rows(x: Tensor) -> Tensor:
        if order == "cat":
            return torch.cat(x.unbind(1))
        return x.flatten(0, 1)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        scores = net(x)[0]
        return F.cross_entropy(fold(scores) if where == "behind" else scores, y, reduction="none")

    def losses(learner: NITLearner) -> tuple[Tensor, None]:
        if order == "cat before":
            xr = learner.expand(torch.cat(PATCHES.unbind(1)))
            return loss(xr, learner.expand(Y)), None
        xr, yr = learner.expand(PATCHES, Y)
        return loss(rows(xr), yr), None

    def sampled(replicas: int) -> Tensor:
        if order == "cat before":
            x = torch.cat(PATCHES.unbind(1)).repeat(replicas, 1)
        else:
            x = rows(PATCHES.repeat(replicas, 1, 1))
        return loss(x, Y.repeat(replicas)).view(replicas, -1).mean(1)

    if options.get("antithetic") and order == "cat":
        with pytest.raises(LossError, match="each other's noise"):
            estimated(net, losses, **options)
        return
    check(estimated(net, losses, **options), truth(net, sampled))


def gradients(net: Net, own: Tensor, shared: Tensor | None, **options: Any) -> dict[str, Tensor]:
    """Of one pass, from given numbers for losses."""
    learner = NITLearner(net, seed=3, **{"replicas": 6, "credit": "none", **options})
    net.zero_grad()
    with learner.record():
        net(learner.expand(PATCHES.double()).flatten(0, 1))
    learner.backward(own, shared=shared)
    learner.close()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "nit-s"},
        {"learn_sigma": True},
        {"conditional": True, "learn_sigma": True},
        {"antithetic": True},
        {"baseline": "batch-mean"},
        {"per_step_losses": True},
        {"per_step_losses": True, "rule": "nit-s", "learn_sigma": True},
        {"recompute": True},
        {"route": "general"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Nothing shows")
def test_a_shared_term_is_a_loss_of_each_replica(options: dict[str, Any]) -> None:
    """Estimates are linear in the losses, so both parts add up, exactly, under every option."""
    net = Net(mean_of_parts("flatten")).double()
    torch.manual_seed(8)
    steps = (STEPS,) if options.get("per_step_losses") else ()
    own, shared = torch.rand(*steps, 6 * SAMPLES).double(), torch.rand(*steps, 6).double()
    together = gradients(net, own, shared, **options)
    apart = [gradients(net, each, None, **options) for each in (own, shared)]
    assert {"fc1.weight", "fc2.bias"} <= together.keys()
    for name, found in together.items():
        torch.testing.assert_close(found, apart[0][name] + apart[1][name])
        assert found.abs().max() > 0


def steps_of(net: Net, x: Tensor) -> Tensor:
    """The output layer's spikes at each step, (T, N, *)."""
    found: list[Tensor] = []
    handle = net.lif2.register_forward_hook(lambda *args: found.append(args[2][0]))
    net(x)
    handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("credit", ["none", "layers"])
def test_a_shared_term_of_each_step(credit: str) -> None:
    """The noise of a step is charged with the term's later steps; the credit has no residual."""
    net = Net()

    def both(spikes: Tensor, replicas: int) -> tuple[Tensor, Tensor]:
        own = torch.stack([(t + 1) * s.sum(1) for t, s in enumerate(spikes)])
        return own, torch.stack([penalty(s, replicas) for s in spikes])

    def losses(learner: NITLearner) -> tuple[Tensor, Tensor]:
        return both(steps_of(net, learner.expand(X)), learner.replicas)

    def sampled(replicas: int) -> Tensor:
        own, shared = both(steps_of(net, X.repeat(replicas, 1)), replicas)
        return own.sum(0).view(replicas, -1).mean(1) + shared.sum(0)

    options = {"credit": "none"} if credit == "none" else {"credit": "layers", "residual": 0}
    found = estimated(net, losses, per_step_losses=True, **options)
    expected = truth(net, sampled)
    if credit == "none":
        check(found, expected)
    else:  # biased, but by no more than any cheap estimate
        assert 0.5 < found[0] / expected[0] < 2


def test_a_shared_term_teaches_a_noise_level() -> None:
    """By differences along the first layer's level, a number of its own for each neuron."""
    net = Net()
    found = []
    for shift in (0.1, -0.1):
        net.lif1.sigma.fill_(0.6 + shift)
        torch.manual_seed(7)
        with torch.no_grad():
            scores, total = net(X.repeat(40_000, 1))
            own = F.cross_entropy(scores, Y.repeat(40_000), reduction="none")
        found.append(own.view(-1, SAMPLES).mean(1) + 20 * penalty(total, 40_000))
    each = (found[0] - found[1]) / 0.2
    expected = each.mean().item(), (each.std() / 200).item()
    net.lif1.sigma.fill_(0.6)
    learner = NITLearner(net, replicas=2000, seed=0, credit="none", learn_sigma=True)
    estimates = []
    for _ in range(12):
        net.zero_grad()
        with learner.record():
            xr, yr = learner.expand(X, Y)
            scores, total = net(xr)
            own = F.cross_entropy(scores, yr, reduction="none")
        learner.backward(own, shared=20 * penalty(total, learner.replicas))
        estimates.append(net.lif1.sigma.grad.sum())
    values = torch.stack(estimates)
    error = (values.std() / len(values) ** 0.5).item()
    apart = abs(values.mean().item() - expected[0])
    assert apart < 4 * (error**2 + expected[1] ** 2) ** 0.5 + 0.02 * abs(expected[0])
    assert error < 0.25 * abs(expected[0])


@pytest.mark.parametrize("order", ["flatten", "cat"])
def test_a_batch_mean_of_samples_of_several_rows(order: str) -> None:
    fold = mean_of_parts(order)
    net = Net()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        rows = torch.cat(x.unbind(1)) if order == "cat" else x.flatten(0, 1)
        return (fold(net(rows)[1]).sum(1) - 2 * y).square()

    def losses(learner: NITLearner) -> tuple[Tensor, None]:
        return loss(*learner.expand(PATCHES, Y)), None

    def sampled(replicas: int) -> Tensor:
        x, y = PATCHES.repeat(replicas, 1, 1), Y.repeat(replicas)
        return loss(x, y).view(replicas, -1).mean(1)

    found = estimated(net, losses, credit="none", baseline="batch-mean", passes=15)
    check(found, truth(net, sampled))
