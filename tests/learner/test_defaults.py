"""What a learner does that was told nothing: which estimate it takes, and that it says so."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from conftest import SnnTorchNet, SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, LossError
from nit_snn.neurons import NoisyActivation

X, Y = torch.linspace(-1, 3, 20).view(5, 4), torch.tensor([0, 1, 2, 0, 1])


def spiking() -> nn.Sequential:
    """Gives out spikes, (N, 3)."""
    first, second = (snn.Leaky(beta=0.5, init_hidden=True) for _ in range(2))
    return swap_neurons(nn.Sequential(nn.Linear(4, 6), first, nn.Linear(6, 3), second), sigma=1.0)


def step(learner: NITLearner, loss: Any = None) -> list[Tensor]:
    """The gradients of one pass from reset membranes."""
    learner.reset()
    learner.net.zero_grad()
    with learner.record():
        xr, yr = learner.expand(X, Y)
        out = learner.net(xr)
    learner.backward(F.cross_entropy(out, yr, reduction="none") if loss is None else loss(out))
    return [p.grad.clone() for p in learner.parameters()]


def wrong(out: Tensor) -> Tensor:
    """A loss that has no derivative."""
    return (out.argmax(1) != 0).float()


@pytest.mark.parametrize("net", [SnnTorchNet, SpikingJellyNet, spiking])
def test_one_replica_and_the_credit_of_layers(net: Any, capsys: Any) -> None:
    learner = NITLearner(swap_neurons(net(), sigma=1.0) if net is not spiking else net())
    assert learner.replicas == 1 and learner.credit == "auto"
    for _ in range(3):
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in step(learner))
    assert learner.replicas == 1 and set(learner.residual_weights.values()) == {0.0}
    said = "credit='layers', residual=0, replicas=1 (biased, with hardly any variance)"
    assert said in repr(learner)
    assert capsys.readouterr().err == f"nit_snn: {said}\n"


def test_several_replicas_weigh_the_residual(capsys: Any) -> None:
    learner = NITLearner(spiking(), replicas=8, seed=0)
    for _ in range(5):
        step(learner)
    assert all(0 <= weight <= 1 for weight in learner.residual_weights.values())
    assert list(learner.residual_weights) == ["1", "3"]
    assert "credit='layers', residual=auto, replicas=8" in repr(learner)
    assert capsys.readouterr().err.count("residual=auto") == 1


def test_a_loss_without_a_derivative_falls_back_to_the_plain_likelihood_ratio(capsys: Any) -> None:
    """After the first pass, which has learned from its own noise, too."""
    learner = NITLearner(spiking(), seed=0)
    assert all(g.abs().sum() > 0 for g in step(learner, wrong))
    assert learner.replicas == 16
    for _ in range(2):
        assert all(g.abs().sum() > 0 for g in step(learner, wrong))
    said = "credit='none', residual=1, replicas=16 (unbiased)"
    assert said in repr(learner) and learner.credit == "auto"
    assert capsys.readouterr().err == f"nit_snn: {said}\n"


def test_after_the_fall_back_it_is_the_estimate_that_one_can_ask_for() -> None:
    net = spiking()
    learner = NITLearner(net, replicas=4, seed=0)
    found = [step(learner, wrong) for _ in range(2)]
    learner.close()
    asked = NITLearner(net, replicas=4, credit="none", seed=0)
    expected = [step(asked, wrong) for _ in range(2)]
    for own, other in zip(found, expected, strict=True):  # of the first pass, too
        for a, b in zip(own, other, strict=True):
            torch.testing.assert_close(a, b)


def test_a_loss_that_loses_its_derivative_later_changes_the_choice(capsys: Any) -> None:
    learner = NITLearner(spiking(), seed=0)
    step(learner)
    assert all(g.abs().sum() > 0 for g in step(learner, wrong))
    assert learner.replicas == 16
    first, second = capsys.readouterr().err.splitlines()
    assert "credit='layers'" in first and "credit='none'" in second


def test_an_empty_batch_settles_nothing(capsys: Any) -> None:
    learner = NITLearner(spiking(), seed=0)
    with learner.record():
        out = learner.net(learner.expand(X[:0]))
    learner.backward(out.sum(1))
    assert learner.replicas == 1 and capsys.readouterr().err == ""
    step(learner)
    assert learner.replicas == 1 and "credit='layers'" in repr(learner)


def test_activations_get_the_plain_likelihood_ratio() -> None:
    net = nn.Sequential(nn.Linear(4, 3), NoisyActivation(nn.Identity()))
    learner = NITLearner(net)
    assert learner.replicas == 16
    assert "credit='none', residual=1" in repr(learner)
    assert all(g.abs().sum() > 0 for g in step(learner))


def test_forward_only_learns_its_feedback() -> None:
    learner = NITLearner(spiking(), forward_only=True)
    assert learner.replicas == 1
    assert "credit='feedback', residual=0" in repr(learner)


def test_the_sign_rule_takes_the_plain_likelihood_ratio_and_goes_back() -> None:
    learner = NITLearner(spiking(), rule="nit-s")
    assert learner.replicas == 16 and "credit='none'" in repr(learner)
    step(learner)
    learner.rule = "nit"
    assert learner.replicas == 1 and "credit='layers'" in repr(learner)
    step(learner)


@pytest.mark.parametrize("loss", [None, wrong])
def test_a_saved_choice_is_made_again(loss: Any, capsys: Any) -> None:
    net = spiking()
    learner = NITLearner(net, seed=0)
    step(learner, loss)
    state, shown, expected = learner.state_dict(), repr(learner), step(learner, loss)
    learner.close()
    capsys.readouterr()
    resumed = NITLearner(net, seed=1)
    resumed.load_state_dict(state)
    assert repr(resumed) == shown
    assert all(map(torch.equal, step(resumed, loss), expected))
    assert capsys.readouterr().err == ""


def test_measured_weights_are_saved() -> None:
    net = spiking()
    learner = NITLearner(net, replicas=4, seed=0)
    for _ in range(3):
        step(learner)
    state, weights, expected = learner.state_dict(), learner.residual_weights, step(learner)
    learner.close()
    resumed = NITLearner(net, replicas=4, seed=1)
    resumed.load_state_dict(state)
    assert resumed.residual_weights == weights
    assert all(map(torch.equal, step(resumed), expected))


@pytest.mark.parametrize(
    ("credit", "residual"),
    [("readout", 0), ("readout", 1), ("readout", "auto"), ("layers", 1), ("time", 1)],
)
def test_a_credit_that_was_asked_for_needs_a_loss_with_a_graph(credit: str, residual: Any) -> None:
    learner = NITLearner(spiking(), replicas=4, credit=credit, residual=residual)
    with learner.record():
        out = learner.net(learner.expand(X))
    with pytest.raises(LossError, match="needs a loss with a derivative"):
        learner.backward(wrong(out))
    assert all(p.grad is None for p in learner.parameters())
    assert all(g.isfinite().all() for g in step(learner))


@pytest.mark.parametrize("credit", ["auto", "readout", "layers", "time"])
@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("make", [SnnTorchNet, SpikingJellyNet])
def test_a_loss_on_membranes_has_a_gradient(credit: str, replicas: int, make: type) -> None:
    """The credit reads them; what it leaves out is a bias, not an error."""
    net = swap_neurons(make())
    learner = NITLearner(net, replicas=replicas, credit=credit)
    with learner.record():
        out = net(learner.expand(X))
        if make is SpikingJellyNet:
            out = out + net.body[3].v
    learner.backward(out.square().sum(1))
    found = [p.grad for p in net.parameters()]
    assert all(g.isfinite().all() for g in found if g is not None)
    assert found[2].abs().sum() > 0
    if credit != "readout" or replicas > 1:
        assert found[0].abs().sum() > 0


@pytest.mark.parametrize("credit", ["none", "readout", "layers", "time"])
@pytest.mark.parametrize("conditional", [False, True])
def test_equal_losses_give_a_gradient_of_exactly_zero(credit: str, conditional: bool) -> None:
    """Also if they have a graph, and a credit looks for what they owe to the spikes."""
    learner = NITLearner(
        spiking(), replicas=4, credit=credit, conditional=conditional, learn_sigma=True, seed=0
    )
    for _ in range(2):
        found = step(learner, lambda out: 0 * out.sum(1) + 0.3)
        assert all((g == 0).all() for g in found)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"credit": "all"}, "credit must be one of"),
    ({"credit": None}, "credit must be one of"),
    ({"credit": "layers", "residual": -0.1}, "residual must be between 0 and 1"),
    ({"credit": "layers", "residual": 1.5}, "residual must be between 0 and 1"),
    ({"credit": "layers", "residual": float("nan")}, "residual must be between 0 and 1"),
    ({"credit": "layers", "residual": "all"}, "residual must be between 0 and 1"),
    ({"credit": "none", "residual": 0}, "would scale the gradient"),
    ({"credit": "none", "replicas": 1}, "at least 2"),
    ({"credit": "layers", "residual": 1, "replicas": 1}, "at least 2"),
    ({"credit": "layers", "residual": 1, "replicas": 2, "antithetic": True}, "at least 4"),
    ({"credit": "readout", "forward_only": True}, "needs a backward pass"),
    ({"credit": "layers", "residual": 1, "baseline": "batch-mean"}, "leave-one-out"),
    ({"credit": "layers", "residual": 0.5, "per_step_losses": True}, "only if residual=0"),
    ({"credit": "time", "residual": 1, "shard": "replicas"}, "in one process"),
    ({"credit": "layers", "residual": 0, "rule": "nit-s"}, "needs residual=1"),
    ({"recompute": True, "conditional": True}, "recompute=True keeps nothing"),
    ({"shard": "samples", "replicas": "auto"}, "differently in each process"),
    ({"forward_only": 1}, "True or False"),
    ({"per_step_losses": "yes"}, "True or False"),
    ({"noise_reuse": "table"}, "True or False"),
    ({"recompute": "bits"}, "recompute must be one of"),
    ({"conditional": "pathwise"}, "conditional must be one of"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda x: str(x)[:60])
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(spiking(), **{"replicas": 4, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"replicas": 1},
        {"replicas": 1, "credit": "time", "residual": 0},
        {"replicas": 2, "antithetic": True},
        {"replicas": 4, "baseline": "none"},
        {"replicas": 4, "credit": "layers", "residual": 0, "baseline": "batch-mean"},
        {"replicas": 4, "credit": "layers", "rule": "nit-s"},
        {"replicas": 4, "credit": "time", "residual": 1, "conditional": False},
        {"replicas": 4, "credit": "none", "residual": 1},
        {"replicas": 4, "credit": "none", "residual": "auto"},
    ],
    ids=str,
)
def test_options_that_go_together(options: dict[str, Any]) -> None:
    learner = NITLearner(spiking(), **options)
    for _ in range(2):
        assert all(g.isfinite().all() for g in step(learner))


def test_losses_of_each_step_with_the_credit_alone() -> None:
    """A credit follows the sum of the losses; the residual would need them apart."""
    net = swap_neurons(SpikingJellyNet())
    found = []
    for apart in (True, False):
        options = {"credit": "layers", "residual": 0, "per_step_losses": apart, "seed": 0}
        learner = NITLearner(net, replicas=2, **options)
        net.zero_grad()
        with learner.record():
            spikes = net.spikes(learner.expand(X))
        losses = (spikes.sin() + spikes).sum(2)
        learner.backward(losses if apart else losses.sum(0))
        found.append([p.grad.clone() for p in net.parameters()])
        learner.close()
    for a, b in zip(*found, strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b)
