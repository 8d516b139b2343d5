"""The contract of NITLearner: what it writes, what it refuses, and what it leaves alone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from conftest import SnnTorchNet, SpikingJellyNet
from torch import nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import (
    AttachError,
    BiasWarning,
    CheckpointError,
    LossError,
    NonFiniteLossError,
    RecordingError,
    UnreachedParameterWarning,
)

X, Y = torch.linspace(-1, 3, 20).view(5, 4), torch.tensor([0, 1, 2, 0, 1])


def learned(net: nn.Module, loss: Any = None, **options: Any) -> list[torch.Tensor | None]:
    """Gradients of one recorded pass with a seed of its own."""
    options = {"replicas": 4, "credit": "none", "seed": 3, **options}
    learner = NITLearner(net, **options)
    with learner.record():
        xr, yr = learner.expand(X, Y)
        out = net(xr)
    learner.backward(F.cross_entropy(out, yr, reduction="none") if loss is None else loss(out))
    learner.close()
    gradients = [p.grad for p in net.parameters()]
    net.zero_grad()
    return gradients


def test_the_three_lines_of_the_readme_write_into_grad() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=1.0)
    learner = NITLearner(net, replicas=16)
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)
    before = copy.deepcopy(net.state_dict())
    optimizer.zero_grad()
    with learner.record():
        xr, yr = learner.expand(X, Y)
        losses = F.cross_entropy(net(xr), yr, reduction="none")
    mean = learner.backward(losses)
    optimizer.step()
    assert mean.shape == () and not mean.requires_grad
    torch.testing.assert_close(mean, losses.mean())
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_gradients_are_added_as_backward_does() -> None:
    net = swap_neurons(SnnTorchNet())
    once = [g.clone() for g in learned(net)]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    learner = NITLearner(net, replicas=4, credit="none", seed=3)
    with learner.record():
        xr, yr = learner.expand(X, Y)
        losses = F.cross_entropy(net(xr), yr, reduction="none")
    learner.backward(losses)
    for p, g in zip(net.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, g + 1)


def test_expand_is_replica_major_in_any_dimension() -> None:
    learner = NITLearner(swap_neurons(SnnTorchNet()), replicas=3)
    x = torch.arange(4).view(2, 2)
    assert learner.expand(x).tolist() == [[0, 1], [2, 3]] * 3
    assert learner.expand(x, dim=1).tolist() == [[0, 1] * 3, [2, 3] * 3]
    pair = learner.expand(x, torch.tensor([7, 8]))
    assert isinstance(pair, tuple) and pair[1].tolist() == [7, 8] * 3


def test_expand_never_aliases_its_input() -> None:
    learner = NITLearner(swap_neurons(SnnTorchNet()), replicas=1, baseline="batch-mean")
    x = torch.zeros(2, 2)
    learner.expand(x).add_(1)
    assert (x == 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), TypeError, "nothing"),
        (([1, 2],), TypeError, "int, int"),
        ((torch.ones(2), torch.ones(3)), ValueError, "2, 3"),
        ((torch.tensor(1.0),), ValueError, "dim=0"),
    ],
)
def test_expand_refuses(arguments: tuple[Any, ...], error: type, message: str) -> None:
    learner = NITLearner(swap_neurons(SnnTorchNet()), replicas=2)
    with pytest.raises(error, match=message):
        learner.expand(*arguments)


@pytest.mark.parametrize("family", [SnnTorchNet, SpikingJellyNet])
@pytest.mark.parametrize("antithetic", [False, True])
def test_stored_noise_and_noise_drawn_again_give_the_same_gradient(
    family: type, antithetic: bool
) -> None:
    net = swap_neurons(family())
    stored = learned(net, antithetic=antithetic, recompute=False)
    again = learned(net, antithetic=antithetic, recompute=True)
    assert all(map(torch.equal, stored, again))


def test_antithetic_pairs_reach_the_neurons() -> None:
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5)))
    learner = NITLearner(net, replicas=4, antithetic=True)
    with learner.record():
        _, mem = net(learner.expand(X))
    noise = (mem - net[0](learner.expand(X))).view(4, 5, 3)
    torch.testing.assert_close(noise[:2], -noise[2:])


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: (out.argmax(1) == 0).float(),
        lambda out: out.argmax(1) == 0,
        lambda out: np.asarray([float(row.max() > 1) for row in out.numpy()]),
        lambda out: [round(float(row.sum())) for row in out],
        lambda out: out.square().sum(1).double(),
    ],
    ids=["0-1", "bool", "numpy", "list of ints", "float64"],
)
def test_losses_of_any_kind(loss: Any) -> None:
    gradients = learned(swap_neurons(SnnTorchNet(), sigma=1.0), loss)
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_writes_nothing(bad: float) -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with learner.record():
        losses = net(learner.expand(X)).sum(1)
    losses[7] = bad
    with pytest.raises(NonFiniteLossError, match="row 7"):
        learner.backward(losses)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((), "reduction='none'"),
        ((5,), "reduction='none'"),
        ((2, 5), "reduction='none'"),
        ((10, 3), r"losses\.mean\(1\)"),
        ((10, 3, 2), r"flatten\(1\)\.mean\(1\)"),
    ],
)
def test_losses_of_the_wrong_shape(shape: tuple[int, ...], remedy: str) -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with learner.record():
        net(learner.expand(X))
    with pytest.raises(LossError, match=rf"\(10,\).*{remedy}"):
        learner.backward(torch.zeros(shape))
    learner.backward(torch.zeros(10))  # the recording is still there


def test_backward_needs_one_recorded_pass() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with pytest.raises(RecordingError, match="Nothing was recorded"):
        learner.backward(torch.zeros(10))
    with learner.record():
        losses = net(learner.expand(X)).sum(1)
        with pytest.raises(RecordingError, match=r"after the record"):
            learner.backward(losses)
    learner.backward(losses)
    with pytest.raises(RecordingError, match="Nothing was recorded"):
        learner.backward(losses)
    with learner.record():
        pass
    with pytest.raises(RecordingError, match="Nothing was recorded"):
        learner.backward(losses)


def test_record_refuses_what_would_lose_gradients_silently() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with learner.record(), torch.no_grad(), pytest.raises(RecordingError, match="no_grad"):
        net(learner.expand(X))
    with noise_off(net), learner.record(), pytest.raises(RecordingError, match="noise_off"):
        net(learner.expand(X))
    with learner.record(), pytest.raises(RecordingError, match=r"lif1.*multiple of 2.*expand"):
        net(X)
    with learner.record(), pytest.raises(RecordingError, match="nested"), learner.record():
        pass


def test_an_error_in_the_forward_pass_leaves_no_trace() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with pytest.raises(KeyError), learner.record():
        net(learner.expand(X))
        raise KeyError
    assert "forward" not in vars(net.fc1) and net.lif1._recorder is None
    with pytest.raises(RecordingError, match="Nothing was recorded"):
        learner.backward(torch.zeros(10))


def test_input_changed_in_place_is_noticed() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    xr = learner.expand(X)
    with learner.record():
        losses = net(xr).sum(1)
    xr.mul_(2)
    with pytest.raises(RecordingError, match="fc1 was changed in place"):
        learner.backward(losses)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "positive integer"),
        ({"replicas": 2.0}, "positive integer"),
        ({"replicas": 1, "credit": "none"}, "at least 2"),
        ({"replicas": 2, "credit": "none", "antithetic": True}, "at least 4"),
        ({"replicas": 3, "antithetic": True, "baseline": "none"}, "even"),
        ({"replicas": 2, "baseline": "median"}, "leave-one-out"),
        ({"replicas": 2, "rule": "stdp"}, "nit"),
        ({"replicas": 2, "route": "scenic"}, "general"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(SnnTorchNet()), **options)


def test_networks_it_cannot_be_attached_to() -> None:
    with pytest.raises(AttachError, match="swap_neurons"):
        NITLearner(SnnTorchNet(), replicas=2)
    half = nn.Sequential(swap_neurons(snn.Leaky(beta=0.5)), snn.Leaky(beta=0.5))
    with pytest.raises(AttachError, match=r"1 \(Leaky\)"):
        NITLearner(half, replicas=2)
    with pytest.raises(AttachError, match="positive in: lif1, lif2"):
        NITLearner(swap_neurons(SnnTorchNet(), sigma=0.0), replicas=2)


def test_a_neuron_or_a_noise_level_that_comes_later_is_noticed() -> None:
    net = nn.Sequential(nn.Linear(4, 3), swap_neurons(snn.Leaky(beta=0.5, init_hidden=True)))
    learner = NITLearner(net, replicas=2)
    net.append(snn.Leaky(beta=0.5, init_hidden=True))
    with pytest.raises(AttachError, match=r"after the learner.*2 \(Leaky\)"), learner.record():
        pass
    del net[2]
    net[1].sigma.zero_()
    with pytest.raises(AttachError, match="positive in: 1"), learner.record():
        pass


@pytest.mark.parametrize("bad", [None, "losses", torch.zeros(10, dtype=torch.complex64)])
def test_losses_that_are_no_numbers(bad: Any) -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with learner.record():
        net(learner.expand(X))
    with pytest.raises(LossError, match="losses must be"):
        learner.backward(bad)


def test_half_precision_losses_are_weighed_in_float32() -> None:
    net = swap_neurons(SnnTorchNet())
    full = learned(net, lambda out: out.sum(1).half().float())
    half = learned(net, lambda out: out.sum(1).half())
    for a, b in zip(full, half, strict=True):
        torch.testing.assert_close(a, b)


def test_a_sigma_that_does_not_fit_is_named() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=torch.ones(6))
    learner = NITLearner(net, replicas=2)
    with learner.record(), pytest.raises(RecordingError, match=r"lif2 has shape \(6,\)"):
        net.lif2(net.fc2(learner.expand(torch.zeros(5, 6))))


def test_one_learner_at_a_time() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with pytest.raises(AttachError, match="lif1"):
        NITLearner(net, replicas=2)
    NITLearner(copy.deepcopy(net), replicas=2)
    learner.close()
    second = NITLearner(net, replicas=2)
    with pytest.raises(RecordingError, match="closed"), learner.record():
        pass
    del second  # a learner that nobody holds any more does not stand in the way
    NITLearner(net, replicas=2)


def test_close_and_restore_give_the_plain_network_back() -> None:
    plain = SnnTorchNet()
    net = swap_neurons(copy.deepcopy(plain))
    learned(net)
    restore_neurons(net)
    assert torch.equal(net(X), plain(X))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_disable_and_enable() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    learner.disable()
    with learner.record():
        losses = net(learner.expand(X)).sum(1)
    torch.testing.assert_close(learner.backward(losses), losses.mean())
    assert all(p.grad is None for p in net.parameters()) and learner.passes == 0
    learner.enable()
    with learner.record():
        losses = net(learner.expand(X)).sum(1)
    learner.backward(losses)
    assert all(p.grad is not None for p in net.parameters())


def test_reset_clears_membranes_of_this_network_only() -> None:
    hidden = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5, init_hidden=True))
    other, net = (swap_neurons(copy.deepcopy(hidden)) for _ in range(2))
    jelly = swap_neurons(SpikingJellyNet(mode="s"))
    other(X), net(X), jelly.body(X)
    NITLearner(net, replicas=2).reset()
    NITLearner(jelly, replicas=2).reset()
    assert (net[1].mem == 0).all() and jelly.body[1].v == 0.0
    assert (other[1].mem != 0).any()


def test_a_resumed_learner_draws_the_same_noise() -> None:
    net = swap_neurons(SnnTorchNet())

    def step(learner: NITLearner) -> list[torch.Tensor]:
        net.zero_grad()
        with learner.record():
            losses = net(learner.expand(X)).sum(1)
        learner.backward(losses)
        return [p.grad.clone() for p in net.parameters()]

    learner = NITLearner(net, replicas=4)
    first, saved, second = step(learner), learner.state_dict(), step(learner)
    learner.close()
    resumed = NITLearner(net, replicas=4)
    resumed.load_state_dict(saved)
    assert all(map(torch.equal, step(resumed), second))
    assert not any(map(torch.equal, first, second))


def test_a_foreign_state_is_refused() -> None:
    learner = NITLearner(swap_neurons(SnnTorchNet()), replicas=4)
    with pytest.raises(CheckpointError, match=r"lacks.*seed"):
        learner.load_state_dict({"passes": 1})
    with pytest.raises(CheckpointError, match="replicas: saved 8, here 4"):
        learner.load_state_dict({**learner.state_dict(), "replicas": 8})


def test_recording_leaves_the_global_generator_to_the_user() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    before = torch.get_rng_state()
    with learner.record():
        net(learner.expand(X))
    assert torch.equal(before, torch.get_rng_state())


def test_an_empty_batch_changes_nothing() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with learner.record():
        losses = net(learner.expand(X[:0])).sum(1)
    assert learner.backward(losses) == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in net.parameters())


def test_a_parameter_that_nothing_reaches_is_named_once() -> None:
    net = swap_neurons(SnnTorchNet(learn_threshold=True, reset_delay=False))
    with pytest.warns(UnreachedParameterWarning) as caught:
        learned(net)
    assert len(caught) == 1  # when attached, and not again after the first estimate
    assert "lif1.threshold (it resets without delay" in str(caught[0].message)
    assert all(net.get_parameter(f"lif{i}.threshold").grad is None for i in (1, 2))
    with pytest.warns(UnreachedParameterWarning, match="beta .snnTorch computes R and C from it"):
        NITLearner(swap_neurons(snn.Lapicque(beta=0.5, learn_beta=True)), replicas=2)
    head = nn.Sequential(swap_neurons(snn.Leaky(beta=0.5, init_hidden=True)), nn.Linear(4, 2))
    with pytest.warns(UnreachedParameterWarning, match=r"1\.weight, 1\.bias"):
        learned(head, lambda out: (out[:, 0] > 0).float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned(swap_neurons(SnnTorchNet()))


def test_a_quantised_synaptic_current_is_refused() -> None:
    """Rounding has no derivative, and no noise enters what is rounded."""
    net = nn.Sequential(snn.Synaptic(alpha=0.9, beta=0.5, state_quant=torch.round))
    with pytest.raises(AttachError, match=r"0 \(its synaptic current is quantised\)"):
        NITLearner(swap_neurons(net), replicas=2)


def test_batch_statistics_behind_noise_are_named() -> None:
    def build() -> nn.Sequential:
        return swap_neurons(
            nn.Sequential(
                nn.BatchNorm1d(4),
                snn.Leaky(beta=0.5, init_hidden=True),
                nn.BatchNorm1d(4),
                snn.Leaky(beta=0.5, init_hidden=True, output=False),
            )
        )

    with pytest.warns(BiasWarning, match=r"layer: 2\. "):
        learned(build(), lambda out: out.sum(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned(build().eval(), lambda out: out.sum(1))


def test_frozen_parameters_stay_without_gradient() -> None:
    net = swap_neurons(SnnTorchNet())
    net.fc1.requires_grad_(False)
    net.fc2.bias.requires_grad_(False)
    gradients = learned(net)
    assert [g is None for g in gradients] == [True, True, False, True]
    learner = NITLearner(net, replicas=2)
    assert [p.shape for p in learner.parameters()] == [net.fc2.weight.shape]


def test_repr_names_options_and_layers() -> None:
    learner = NITLearner(swap_neurons(SnnTorchNet()), replicas=2, seed=5)
    assert "replicas=2" in repr(learner) and "seed=5" in repr(learner) and "lif2" in repr(learner)
