"""What is changed after a learner was attached, and what is half done when something raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, CarriedStateWarning, CheckpointError, RecordingError
from nit_snn.training.checkpoints import Checkpoints

X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


def network(reset: str = "zero") -> nn.Sequential:
    neuron = snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism=reset)
    return swap_neurons(nn.Sequential(nn.Linear(4, 6), neuron, nn.Linear(6, 3)))


def step(net: nn.Module, learner: NITLearner) -> None:
    with learner.record():
        losses = net(learner.expand(X)).sum(1)
    learner.backward(losses)


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"conditional": True, "credit": "none"}, "reset_delay", False),
        ({"credit": "readout", "residual": 1}, "inhibition", True),
        ({"conditional": True}, "inhibition", True),
    ],
)
def test_a_neuron_that_no_longer_suits_is_refused(
    options: dict[str, Any], name: str, value: Any
) -> None:
    net = network()
    learner = NITLearner(net, replicas=4, **options)
    step(net, learner)
    learner.reset()
    setattr(net[1], name, value)
    passes = learner.passes
    with pytest.raises(AttachError, match="biased in: 1"):
        step(net, learner)
    assert learner.passes == passes


def test_a_neuron_that_suits_as_well_goes_on() -> None:
    net = network()
    learner = NITLearner(net, replicas=4)
    net[1].reset_mechanism = "subtract"
    step(net, learner)


@pytest.mark.parametrize(
    ("name", "value"), [("conditional", True), ("baseline", "none"), ("credit", "time")]
)
def test_options_that_were_checked_stay(name: str, value: Any) -> None:
    net = network("subtract")
    learner = NITLearner(net, replicas=4)
    with pytest.raises(AttributeError, match=f"attach another with {name}="):
        setattr(learner, name, value)
    learner.on_nonfinite = "skip"
    learner.rule = "nit-s"
    step(net, learner)


def test_the_membranes_of_a_pass_that_raised_are_told_of() -> None:
    net = network()
    learner = NITLearner(net, replicas=4)
    with pytest.raises(KeyboardInterrupt), learner.record():
        net(learner.expand(X))
        raise KeyboardInterrupt
    with pytest.warns(CarriedStateWarning, match="1 started this pass"):
        step(net, learner)


def test_a_checkpoint_that_nobody_could_read_is_not_saved(tmp_path: Path) -> None:
    """And so it takes no good one's place."""
    net = network()
    checkpoints = Checkpoints(tmp_path, keep=1)
    good = checkpoints.save({"epoch": 1}, net=net)
    with pytest.raises(CheckpointError, match="progress must be a dict"):
        checkpoints.save([2], net=net)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no state_dict: epoch"):
        checkpoints.save({}, net=net, epoch=2)  # type: ignore[arg-type]
    assert checkpoints.paths == [good]
    found = checkpoints.newest()
    assert found is not None and found.progress == {"epoch": 1}
    with pytest.raises(TypeError, match="settings must be a dict"):
        Checkpoints(tmp_path, settings=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep must be an integer"):
        Checkpoints(tmp_path, keep=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["close", "disable", "load_state_dict"])
def test_what_would_end_a_pass_is_refused_inside(name: str) -> None:
    """And the pass is learned from as it would have been."""
    net, other = network(), network()
    other.load_state_dict(net.state_dict())
    learner, alone = (NITLearner(n, replicas=4, seed=0) for n in (net, other))
    arguments = (learner.state_dict(),) if name == "load_state_dict" else ()
    with learner.record():
        x = learner.expand(X)
        with pytest.raises(RecordingError, match=rf"{name}\(\) inside"):
            getattr(learner, name)(*arguments)
        losses = net(x).sum(1)
    learner.backward(losses)
    step(other, alone)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)
    getattr(learner, name)(*arguments)


def test_a_learner_can_be_closed_after_a_pass_that_raised() -> None:
    net = network()
    learner = NITLearner(net, replicas=4)
    with pytest.raises(KeyboardInterrupt), learner.record():
        raise KeyboardInterrupt
    learner.close()
    NITLearner(net, replicas=4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("passes", "x"),
        ("passes", -1),
        ("passes", 1.5),
        ("passes", True),
        ("on_nonfinite", "ignore"),
        ("sigma_bounds", (2.0, 1.0)),
        ("weight_bounds", 3),
    ],
)
def test_what_can_be_set_is_checked_when_it_is(name: str, value: Any) -> None:
    learner = NITLearner(network(), replicas=4, seed=0, weight_bounds=(-1.0, 1.0))
    before = getattr(learner, name)
    with pytest.raises(ValueError, match=name):
        setattr(learner, name, value)
    assert getattr(learner, name) == before
    learner.weight_bounds = (-2.0, 2.0)
    assert learner.weight_bounds == (-2.0, 2.0)


@pytest.mark.parametrize(("name", "value"), [("weight_bounds", (-1.0, 1.0)), ("replicas", 8)])
def test_what_would_have_no_effect_is_refused(name: str, value: Any) -> None:
    learner = NITLearner(network(), replicas=4)
    with pytest.raises(AttributeError, match=f"attach another with {name}="):
        setattr(learner, name, value)


@pytest.mark.parametrize("seed", [-(2**63), 2**63, 2**64 - 1])
def test_a_seed_of_64_bits_can_be_saved(seed: int) -> None:
    """With a sign or without, as `torch.initial_seed()` may be."""
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snn.Leaky(0.9)))
    learner = NITLearner(net, replicas=2, seed=seed)
    state = learner.state_dict()
    learner.close()
    other = NITLearner(net, replicas=2, seed=0)
    other.load_state_dict(state)
    assert other.seed == seed
    with other.record():
        net(other.expand(torch.rand(2, 4)))


def test_a_seed_without_a_sign_draws_what_the_signed_one_does() -> None:
    """Several processes tell each other the signed one."""
    drawn = []
    for seed in (2**64 - 5, -5):
        net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snn.Leaky(0.9, threshold=9.0)))
        learner = NITLearner(net, replicas=2, seed=seed)
        with learner.record():
            rows = learner.expand(torch.zeros(2, 3))
            drawn.append(net[1](rows)[1].detach())  # membranes: the threshold is out of the way
        learner.close()
    assert torch.equal(*drawn)
