"""swap_neurons and restore_neurons: what changes, and all that must not."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from spikingjelly.activation_based import functional, layer, neuron, rnn, surrogate
from torch import nn

from nit_snn import NITLearner, restore_neurons, swap_neurons
from nit_snn.errors import SwapError
from nit_snn.neurons.snntorch import NoisyLeaky
from nit_snn.neurons.spikingjelly import NoisyIFNode, NoisyLIFNode

# SpikingJelly has parallel neurons since 2.0.
PARALLEL = neuron.SlidingPSN(k=2) if hasattr(neuron, "SlidingPSN") else neuron.QIFNode()


class Nested(nn.Module):
    """Neurons in a Sequential, a ModuleList, a ModuleDict, deep inside, and one of them shared."""

    def __init__(self) -> None:
        super().__init__()
        shared = snn.Leaky(beta=0.5, learn_beta=True, init_hidden=True)
        self.sequence = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), shared))
        self.list = nn.ModuleList([snn.Leaky(beta=0.4), shared])
        self.dict = nn.ModuleDict({"node": neuron.IFNode()})
        self.plain_reference = [shared]


def test_every_container_and_shared_instances() -> None:
    net = Nested()
    shared = net.list[1]
    assert swap_neurons(net, sigma=0.5) is net
    assert type(net.list[0]) is NoisyLeaky
    assert type(net.dict["node"]) is NoisyIFNode
    assert net.sequence[1][1] is net.list[1] is net.plain_reference[0] is shared
    assert type(shared) is NoisyLeaky and shared.sigma == 0.5


def test_nothing_else_changes_and_restore_undoes_it() -> None:
    net = Nested().double().eval()
    net.sequence.train()
    keys, values = list(net.state_dict()), [v.clone() for v in net.state_dict().values()]
    parameters = list(net.parameters())
    names = {n: set(vars(m)) for n, m in net.named_modules()}
    modes = {n: m.training for n, m in net.named_modules()}
    kinds = {n: type(m) for n, m in net.named_modules()}
    swap_neurons(net)
    for step in ("swapped", "restored"):
        if step == "restored":
            assert restore_neurons(net) is net
        assert list(net.state_dict()) == keys
        assert all(map(torch.equal, net.state_dict().values(), values))
        assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
        assert {n: m.training for n, m in net.named_modules()} == modes
    assert {n: type(m) for n, m in net.named_modules()} == kinds
    assert {n: set(vars(m)) for n, m in net.named_modules()} == names
    assert "sigma" not in dict(net.named_buffers())


def test_restore_after_training_leaves_nothing_behind() -> None:
    net = SnnTorchNet()
    before = {n: set(vars(m)) for n, m in net.named_modules()}
    learner = NITLearner(swap_neurons(net), replicas=2)
    with learner.record():
        losses = net(learner.expand(torch.randn(3, 4))).sum(1)
    learner.backward(losses)
    learner.close()
    restore_neurons(net)
    # `reset` is what snnTorch's own forward leaves.
    assert {n: set(vars(m)) - {"reset"} for n, m in net.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_checkpoints_of_the_plain_network_load_strictly() -> None:
    plain, noisy = SnnTorchNet(), swap_neurons(SnnTorchNet())
    noisy.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(noisy.state_dict(), strict=True)


def test_a_neuron_that_is_the_network() -> None:
    lif = snn.Leaky(beta=0.5)
    assert type(swap_neurons(lif)) is NoisyLeaky
    assert type(restore_neurons(lif)) is snn.Leaky


def test_hooks_and_dtype_of_sigma_follow_the_network() -> None:
    net, calls = SnnTorchNet().to(torch.bfloat16), []
    net.lif1.register_forward_hook(lambda *_: calls.append(1))
    swap_neurons(net, sigma=0.3)
    assert net.lif1.sigma.dtype == torch.bfloat16
    net.double()(torch.randn(2, 4, dtype=torch.float64))
    assert calls and net.lif1.sigma.dtype == torch.float64


def test_reset_net_works_although_it_cached_the_modules_before_the_swap() -> None:
    net = SpikingJellyNet(mode="s")
    functional.reset_net(net)
    swap_neurons(net)
    net.body(torch.randn(2, 4))
    assert isinstance(net.body[1].v, torch.Tensor)
    functional.reset_net(net)
    assert net.body[1].v == 0.0
    assert isinstance(net.body[1], NoisyLIFNode)


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), "no spiking neuron"),
        (nn.Sequential(snn.LeakyParallel(2, 2)), r"0 \(LeakyParallel\)"),
        (nn.Sequential(snn.Leaky(beta=0.5), neuron.KLIFNode()), r"1 \(KLIFNode\)"),
        (nn.Sequential(layer.Linear(2, 2), PARALLEL), r"1 \((SlidingPSN|QIFNode)\)"),
        (nn.Sequential(snn.Leaky(beta=0.5), snn.SConv2dLSTM(1, 2, 3)), r"1 \(SConv2dLSTM\)"),
        (nn.Sequential(NoisyLeaky(beta=0.5)), r"0 \(NoisyLeaky\)"),
        (nn.Sequential(neuron.IFNode(), rnn.SpikingLSTM(2, 2, 1)), r"1 \(SpikingLSTM\)"),
        (nn.Sequential(neuron.IFNode(), surrogate.ATan()), r"1 \(ATan\)"),
    ],
    ids=[
        "none",
        "parallel",
        "klif",
        "psn",
        "sconv2dlstm",
        "already",
        "rnn",
        "surrogate as a layer",
    ],
)
def test_nothing_to_swap_is_an_error_that_lists_what_was_found(
    net: nn.Module, expected: str
) -> None:
    kinds = [type(m) for m in net.modules()]
    with pytest.raises(SwapError, match=expected):
        swap_neurons(net)
    assert [type(m) for m in net.modules()] == kinds


def test_a_bad_sigma_changes_nothing() -> None:
    net = SnnTorchNet()
    with pytest.raises(SwapError, match="sigma"):
        swap_neurons(net, sigma=-1.0)
    assert type(net.lif1) is snn.Leaky


def test_restore_refuses_where_there_is_nothing_or_a_learner() -> None:
    with pytest.raises(SwapError, match=r"lif1 \(Leaky\)"):
        restore_neurons(SnnTorchNet())
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with pytest.raises(SwapError, match=r"close\(\)"):
        restore_neurons(net)
    learner.close()
    restore_neurons(net)


def test_sigma_by_name() -> None:
    net = swap_neurons(SnnTorchNet(), sigma={"lif1": 0.5, "lif2": torch.tensor([1.0, 2.0, 3.0])})
    assert net.lif1.sigma == 0.5 and net.lif2.sigma.tolist() == [1.0, 2.0, 3.0]
    plain = SnnTorchNet()
    with pytest.raises(SwapError, match="names lif3; the neurons to swap are lif1, lif2"):
        swap_neurons(plain, sigma={"lif3": 1.0})
    assert type(plain.lif1) is snn.Leaky


def test_the_usual_noise_is_a_quarter_of_the_way_to_the_threshold() -> None:
    levels = torch.tensor([1.0, 2.0])
    net = nn.Sequential(
        snn.Leaky(beta=0.5, threshold=2.0),
        snn.Leaky(beta=0.5, threshold=levels),
        neuron.LIFNode(v_threshold=-50.0, v_reset=-70.0),
        neuron.IFNode(v_threshold=0.8, v_reset=None),
    )
    swap_neurons(net)
    found = [module.sigma for module in net]
    assert found[0] == 0.5 and torch.equal(found[1], levels / 4)
    assert found[2] == 5.0 and torch.isclose(found[3], torch.tensor(0.2))
    assert swap_neurons(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))[1].sigma == 1.0
    assert NoisyLeaky(beta=0.5, threshold=2.0).sigma == 0.5
