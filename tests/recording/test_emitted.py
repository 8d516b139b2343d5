"""Spikes between two layers are kept as bits, and anything else as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.recording.packed_spikes import PackedSpikes
from nit_snn.recording.synapse_call import SynapseCall


def record(net: nn.Module, x: Tensor, **options: object) -> tuple[NITLearner, list[SynapseCall]]:
    """One pass, and the calls of synapses that it remembers, in order."""
    learner = NITLearner(net, replicas=4, credit="none", seed=0, **options)
    with learner.record():
        net(learner.expand(x))
    return learner, sources_of(learner)


def sources_of(learner: NITLearner) -> list[SynapseCall]:
    trace = learner._session.recorder.trace
    inputs = [i for layer in trace.active for s in layer.segments for i in s.inputs]
    return [i.source for i in inputs if i.source is not None]


def test_spikes_of_single_steps_share_their_bytes() -> None:
    net = swap_neurons(SnnTorchNet(steps=10))
    _, sources = record(net, torch.rand(5, 4))
    hidden = [s.activity for s in sources if s.name == "fc2"]
    assert len(hidden) == 10 and all(isinstance(a, PackedSpikes) for a in hidden)
    memory = {a.bits.data_ptr(): a.bits.nbytes for a in hidden}
    # A byte per neuron, row and eight steps; memory is taken for eight steps, then for 16.
    assert list(memory.values()) == [20 * 6, 2 * 20 * 6]
    assert isinstance(next(s.activity for s in sources if s.name == "fc1"), Tensor)


def test_spikes_of_a_sequence_are_packed_as_one() -> None:
    net = swap_neurons(SpikingJellyNet(steps=9))
    _, sources = record(net, torch.rand(5, 4))
    packed = [s.activity for s in sources if isinstance(s.activity, PackedSpikes)]
    assert [a.bits.shape for a in packed] == [(2, 20, 6)]
    assert packed[0].shape == (9, 20, 6)


class Between(nn.Module):
    """Two dense layers with something done to the spikes between them."""

    def __init__(self, change: Callable[[Tensor], Tensor], **options: object) -> None:
        super().__init__()
        self.change = change
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lif1, self.lif2 = (snn.Leaky(beta=0.8, **options) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        states = [self.lif1.reset_mem(), self.lif2.reset_mem()]
        total = torch.zeros(())
        for _ in range(3):
            spikes, states[0] = self.lif1(self.fc1(x), states[0])
            spikes, states[1] = self.lif2(self.fc2(self.change(spikes)), states[1])
            total = total + spikes
        return total


@pytest.mark.parametrize(
    ("change", "packs"),
    [
        (lambda s: s, True),
        (lambda s: s.view(-1, 2, 3).flatten(1), True),
        (lambda s: 0.5 * s, False),
        (lambda s: s.clamp_(0, 0.5), False),  # in place, before it is used
        (lambda s: s.view(-1, 6).t().contiguous().t(), False),
        (lambda s: s.flip(0), False),
    ],
    ids=["as it is", "reshaped", "scaled", "in place", "transposed", "shuffled"],
)
def test_only_what_a_neuron_emitted_is_packed(
    change: Callable[[Tensor], Tensor], packs: bool
) -> None:
    _, sources = record(swap_neurons(Between(change)), torch.rand(5, 4))
    hidden = [s.activity for s in sources if s.name == "fc2"]
    assert [isinstance(a, PackedSpikes) for a in hidden] == [packs] * 3


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_graded_spikes_are_not_bits(factor: float) -> None:
    net = swap_neurons(Between(lambda s: s, graded_spikes_factor=factor))
    _, sources = record(net, torch.rand(5, 4))
    hidden = [s.activity for s in sources if s.name == "fc2"]
    assert [isinstance(a, PackedSpikes) for a in hidden] == [factor == 1.0] * 3


def test_a_neuron_that_emits_something_else_is_not_packed() -> None:
    def half(x: Tensor) -> Tensor:
        return 0.5 * (x > 0).to(x.dtype)

    net = swap_neurons(Between(lambda s: s, spike_grad=half))
    _, sources = record(net, torch.rand(5, 4))
    assert not any(isinstance(s.activity, PackedSpikes) for s in sources)


@pytest.mark.parametrize("mode", ["snntorch", "m", "s"])
def test_gradients_are_those_of_the_local_graph(mode: str) -> None:
    """The general route keeps no bits, so it says what they should."""
    found = []
    for route in ("auto", "general"):
        torch.manual_seed(1)
        net = SnnTorchNet(steps=11) if mode == "snntorch" else SpikingJellyNet(steps=11, mode=mode)
        learner = NITLearner(
            swap_neurons(net).double(), replicas=4, credit="none", seed=3, route=route
        )
        with learner.record():
            out = net(learner.expand(torch.rand(5, 4, dtype=torch.float64)))
        learner.backward(out.square().sum(1))
        found.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
