"""Boxes for noise levels and weights (the projection onto Omega)."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from conftest import SnnTorchNet
from torch.optim.optimizer import register_optimizer_step_post_hook

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError

X = torch.linspace(-1, 2, 24).view(6, 4)


def test_weights_are_put_back_into_their_box_after_each_step() -> None:
    net = swap_neurons(SnnTorchNet(learn_beta=True), sigma=0.5)
    net.fc1.bias.requires_grad_(False).fill_(3.0)
    learner = NITLearner(net, replicas=2, weight_bounds=(-0.2, 0.1), learn_sigma=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    optimizer.step()
    for name in ("fc1.weight", "fc2.weight", "fc2.bias", "lif1.beta"):
        assert -0.2 <= net.get_parameter(name).min() <= net.get_parameter(name).max() <= 0.1
    assert (net.fc1.bias == 3).all()  # frozen: left alone
    assert net.lif1.sigma == 0.5  # it has a box of its own
    learner.close()
    net.fc1.weight.data.fill_(5.0)
    optimizer.step()
    assert (net.fc1.weight == 5).all()


def test_without_a_box_weights_are_free() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    net.fc1.weight.data.fill_(50.0)
    torch.optim.SGD(learner.parameters(), lr=0.0).step()
    assert (net.fc1.weight == 50).all()


def test_the_hook_does_not_keep_a_learner_alive() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2, weight_bounds=(-0.1, 0.1))
    del learner
    gc.collect()
    net.fc1.weight.data.fill_(5.0)
    torch.optim.SGD(net.parameters(), lr=0.0).step()
    assert (net.fc1.weight == 5).all()


def test_learners_come_and_go_while_an_optimizer_steps() -> None:
    """As in another thread, which may be anywhere in its step: here among torch's own hooks."""

    def attach() -> NITLearner:
        return NITLearner(swap_neurons(SnnTorchNet()), replicas=2, weight_bounds=(-0.1, 0.1))

    first, later = attach(), []

    def during(*_: object) -> None:
        later.append(attach())
        first.close()
        later[0].close()

    handle = register_optimizer_step_post_hook(during)
    try:
        optimizer = torch.optim.SGD(first.parameters(), lr=0.0)
        for _ in range(2):
            optimizer.step()
    finally:
        handle.remove()
    assert len(later) == 2
    torch.nn.init.constant_(later[1].net.fc1.weight, 5.0)
    torch.optim.SGD(later[1].parameters(), lr=0.0).step()
    assert (later[1].net.fc1.weight == 0.1).all()


@pytest.mark.parametrize("options", [{"weight_bounds": (-9.0, 9.0)}, {"learn_sigma": True}])
def test_a_step_leaves_what_its_optimizer_does_not_hold_alone(options: dict[str, Any]) -> None:
    """Another learner's pass, which waits for its gradient, and parameters that do not learn."""
    nets = [swap_neurons(SnnTorchNet()) for _ in range(2)]
    learners = [NITLearner(net, replicas=2, **options) for net in nets]
    with learners[1].record():
        out = nets[1](learners[1].expand(X))
    versions = [p._version for p in learners[1].parameters()]
    torch.optim.SGD(learners[0].parameters(), lr=1.0).step()
    assert [p._version for p in learners[1].parameters()] == versions
    learners[1].backward(out.square().sum(1))


def test_a_shared_noise_level_stays_one_number_and_gets_the_sum() -> None:
    gradients = {}
    for learn in (True, "shared"):
        torch.manual_seed(0)
        net = swap_neurons(SnnTorchNet(), sigma=0.7)
        learner = NITLearner(net, replicas=4, seed=5, learn_sigma=learn)
        with learner.record():
            out = net(learner.expand(X))
        learner.backward(out.square().sum(1))
        gradients[learn] = net.lif1.sigma.grad
    assert gradients[True].shape == (6,)
    assert gradients["shared"].shape == ()
    torch.testing.assert_close(gradients[True].sum(), gradients["shared"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bounds": (1.0, 1.0)}, "smallest < largest"),
        ({"learn_sigma": "layer"}, "learn_sigma must be"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(SnnTorchNet()), replicas=2, **options)
