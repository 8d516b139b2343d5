"""Sobol points, layer-wise injection, causal credit, and replicas chosen by the learner.

That the estimates are unbiased against exact gradients is in `test_unbiased`, except for the
layer-wise one, which has another objective and is compared here.
"""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, LossError
from nit_snn.training.replicas import ReplicaController, signal_and_noise

X = torch.linspace(-1, 2, 24).view(6, 4)


def estimates(net: nn.Module, passes: int, layer: str, **options: Any) -> Tensor:
    """Gradients of one layer's weights in `passes` passes, (passes, *)."""
    learner = NITLearner(net, seed=4, **options)
    found = []
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            losses = net(learner.expand(X)).tanh().sum(1)
        learner.backward(losses)
        found.append(net.get_submodule(layer).weight.grad.flatten().clone())
    learner.close()
    return torch.stack(found)


@pytest.mark.montecarlo
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(("layer", "other"), [("fc1", "lif2"), ("fc2", "lif1")])
def test_layer_wise_noise_follows_the_loss_with_noise_in_that_layer_alone(
    layer: str, other: str, antithetic: bool
) -> None:
    """400 passes of 8 replicas a layer against 400 with 8 replicas and next to no noise in the
    other layer: each mean within 5 standard errors of the other's (24 weights, p < 1e-4)."""
    torch.manual_seed(0)
    net = swap_neurons(SnnTorchNet(), sigma=0.8)
    found = estimates(net, 400, layer, replicas=16, layerwise=True, antithetic=antithetic)
    net.get_submodule(other).sigma.fill_(1e-6)
    expected = estimates(net, 400, layer, replicas=8)
    error = ((found.var(0) + expected.var(0)) / 400).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() <= 5 * error).all()
    assert error.norm() < 0.3 * expected.mean(0).norm()


def test_layer_wise_noise_with_learned_levels_and_the_sign_rule_counts_noisy_rows_only() -> None:
    """Rows without noise would add `sign(0)` and `0^2 - 1`: they must not."""
    for options in ({"rule": "nit-s"}, {"learn_sigma": True}):
        torch.manual_seed(0)
        net = swap_neurons(SnnTorchNet(), sigma=0.8)
        learner = NITLearner(net, replicas=8, layerwise=True, baseline="none", seed=2, **options)
        with learner.record():
            net(learner.expand(X))
        rows = torch.zeros(8, 6)
        rows[1::2] = 1.0  # a loss in replicas of the second layer alone
        learner.backward(rows.flatten())
        assert (net.fc1.weight.grad == 0).all()
        assert (net.fc2.weight.grad != 0).any()
        if "learn_sigma" in options:
            assert (net.lif1.sigma.grad == 0).all()
            assert (net.lif2.sigma.grad != 0).any()


def test_causal_credit_by_hand() -> None:
    """One neuron layer without memory: step t's bias gradient is its score times later losses."""
    net = swap_neurons(SnnTorchNet(reset="none").double(), sigma=0.5)
    learner = NITLearner(net, replicas=4, seed=3, causal=True)
    x = X.double()
    with learner.record():
        net(learner.expand(x))
    losses = torch.rand(3, 24, dtype=torch.float64)
    mean = learner.backward(losses)
    torch.testing.assert_close(mean, losses.sum(0).mean())
    advantages = (
        losses.view(3, 4, 6)
        - (losses.view(3, 4, 6).sum(1, keepdim=True) - losses.view(3, 4, 6)) / 3
    )
    expected = torch.zeros(6, dtype=torch.float64)
    for t in range(3):
        noise, _ = learner._source.next(4, [torch.device("cpu")])
        noise = noise.draw((24, 6), torch.float64, index=0, layer=0, call=t, layers=2)
        later = advantages[t:].sum(0).flatten() / 24
        expected += (later[:, None] * noise / 0.5).sum(0)
    torch.testing.assert_close(net.fc1.bias.grad, expected)


@pytest.mark.montecarlo
def test_causal_credit_has_the_same_mean_and_less_variance() -> None:
    """600 passes each, output spikes of every step as its loss: means within 5 standard errors
    (p < 1e-4), the variance lower by a tenth or more."""
    found = {}
    for causal in (True, False):
        torch.manual_seed(0)
        net = swap_neurons(SpikingJellyNet(steps=5), sigma=0.8)
        learner = NITLearner(net, replicas=8, seed=7, causal=causal)
        gradients = []
        for _ in range(600):
            net.zero_grad()
            with learner.record():
                losses = net.spikes(learner.expand(X)).sum(2)
            learner.backward(losses if causal else losses.sum(0))
            gradients.append(net.body[0].weight.grad.flatten().clone())
        found[causal] = torch.stack(gradients)
    error = ((found[True].var(0) + found[False].var(0)) / 600).sqrt()
    assert ((found[True].mean(0) - found[False].mean(0)).abs() <= 5 * error).all()
    assert found[True].var(0).sum() < 0.9 * found[False].var(0).sum()


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.ones(24), r"shape \(T, 24\)"),
        (torch.ones(3, 12), r"shape \(T, 24\)"),
        (torch.ones(2, 24), "of 2 time steps, but lif1 made 3 steps"),
        (torch.full((3, 24), float("nan")), "NaN"),
    ],
    ids=["no time", "rows", "steps", "nan"],
)
def test_causal_losses_that_do_not_fit(losses: Tensor, message: str) -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=4, causal=True)
    with learner.record():
        net(learner.expand(X))
    with pytest.raises(LossError, match=message):
        learner.backward(losses)
    assert all(p.grad is None for p in net.parameters())


def test_signal_and_noise_by_hand() -> None:
    share = torch.tensor([[[1.0], [5.0]], [[3.0], [5.0]]])  # 2 replicas, 2 samples
    signal, noise = signal_and_noise(share)
    assert noise == pytest.approx((2 + 0) / 2)
    assert signal == pytest.approx((4 - 2 / 2 + 25) / 2)


def test_more_noise_asks_for_more_replicas_within_the_bounds() -> None:
    def after(signal: float, noise: float, target: float = 1.0) -> int:
        return ReplicaController((4, 64), target).next(signal, noise)

    assert [after(1.0, noise) for noise in (0.0, 1.0, 8.0, 33.0, 1000.0)] == [4, 4, 8, 32, 64]
    assert after(1.0, 8.0, target=4.0) == 32
    assert after(-1.0, 8.0) == 64


def auto_run(target: float, stop: int | None = None) -> list[int]:
    """The replicas of 8 passes; at `stop` the run is resumed from a saved state."""
    torch.manual_seed(0)
    x = torch.randn(100, 4)
    net = swap_neurons(SnnTorchNet(steps=1), sigma=1.0)
    net.fc1.requires_grad_(False)  # the output layer, whose membranes are the loss, knows best
    options: dict[str, Any] = {
        "replicas": "auto",
        "replica_bounds": (4, 32),
        "target_snr": target,
    }
    learner, chosen = NITLearner(net, seed=1, **options), []
    for step in range(8):
        if step == stop:
            state = learner.state_dict()
            learner.close()
            learner = NITLearner(net, seed=9, **options)
            learner.load_state_dict(state)
        chosen.append(learner.replicas)
        with learner.record():
            out = net(learner.expand(x))
        assert len(out) == 100 * chosen[-1]
        learner.backward(out[:, 0])
    return chosen


def test_replicas_follow_the_target_and_resume_with_the_run() -> None:
    assert auto_run(target=1000.0) == [32] * 8
    few = auto_run(target=1e-3)
    assert few[0] == 32  # the most, as long as nothing is known
    assert few[-1] == 4
    between = auto_run(target=4.0)
    assert 4 < between[-1] < 32
    assert auto_run(target=4.0, stop=4) == between


def test_a_neuron_of_two_sizes_is_measured_too() -> None:
    fc1, fc2, lif = nn.Linear(4, 4), nn.Linear(4, 2), snn.Leaky(beta=0.5)
    net = swap_neurons(nn.ModuleList([fc1, fc2, lif]))
    learner = NITLearner(net, replicas="auto", seed=1)
    with learner.record():
        spike, _ = lif(fc1(learner.expand(torch.randn(5, 4))), lif.reset_mem())
        spike, _ = lif(fc2(spike), torch.zeros(5 * learner.replicas, 2))
    learner.backward(spike.sum(1))
    assert fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"conditional": "pathwise"}])
def test_what_is_measured_is_what_is_learned(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shares of the rows in the gradient of a drift add up to that of the bias."""
    seen: list[Any] = []
    monkeypatch.setattr(ReplicaController, "update", lambda _, shares: seen.extend(shares))
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas="auto", seed=1, **options)
    spikes = []
    mem1, mem2 = net.lif1.reset_mem(), net.lif2.reset_mem()
    with learner.record():
        x = learner.expand(torch.randn(10, 4))
        for _ in range(3):
            spk1, mem1 = net.lif1(net.fc1(x), mem1)
            spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
            spikes.append(spk2.sum(1))
    losses = torch.stack(spikes)
    learner.backward(losses if options.get("causal") else losses.sum(0))
    rows = 10 * learner.replicas
    for share, layer in zip(seen, (net.fc1, net.fc2), strict=True):
        torch.testing.assert_close(share.flatten(0, 1).sum(0) / rows, layer.bias.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sobol": True, "antithetic": True}, "neither antithetic"),
        ({"sobol": True, "layerwise": True}, "nor layerwise"),
        ({"sobol": True, "replicas": 6}, "power of two of at least 4"),
        ({"sobol": True, "replicas": 2}, "power of two of at least 4"),
        ({"sobol": True, "replicas": 1, "baseline": "none"}, "at least 2"),
        ({"layerwise": True, "replicas": 5}, "multiple of 2"),
        ({"layerwise": True, "replicas": 2}, "at least 2 for each"),
        ({"layerwise": True, "antithetic": True, "replicas": 6}, "multiple of 4"),
        ({"layerwise": True, "control": "readout"}, "Choose one"),
        ({"layerwise": True, "replicas": "auto"}, "fixed number"),
        ({"causal": True, "control": "network"}, "control='none' only"),
        ({"replicas": "auto", "replica_bounds": (3, 8)}, "powers of two"),
        ({"replicas": "auto", "target_snr": 0.0}, "target_snr"),
        ({"replicas": "many"}, "positive integer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(SnnTorchNet()), **{"replicas": 8, **options})
