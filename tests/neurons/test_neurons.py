"""The noisy neurons against the frameworks' own, and against the one-draw rule."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import utils
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.compat import has_more_nodes
from nit_snn.errors import SwapError
from nit_snn.neurons.snntorch import NoisyLeaky
from nit_snn.neurons.spikingjelly import NOISY, NoisyIFNode, NoisyLIFNode

# SpikingJelly before 2.0 writes some of the same sums in another order, in compiled functions.
SINCE_2 = hasattr(neuron.BaseNode, "materialize_states")
SAME = torch.equal if SINCE_2 else torch.allclose
SJ_OPTIONS: list[tuple[type, dict[str, Any]]] = [
    (neuron.IFNode, {"v_reset": 0.0}),
    (neuron.IFNode, {"v_reset": None}),
    (neuron.IFNode, {"v_reset": -0.3, "v_threshold": 0.7}),
    (neuron.LIFNode, {"v_reset": 0.0, "decay_input": True}),
    (neuron.LIFNode, {"v_reset": 0.0, "decay_input": False, "tau": 3.0}),
    (neuron.LIFNode, {"v_reset": None, "decay_input": True, "v_threshold": 0.6}),
    (neuron.LIFNode, {"v_reset": None, "decay_input": False}),
    (neuron.LIFNode, {"v_reset": 0.2, "decay_input": True, "detach_reset": True}),
    (neuron.ParametricLIFNode, {"v_reset": 0.0, "decay_input": True}),
    (neuron.ParametricLIFNode, {"v_reset": -0.1, "decay_input": False, "init_tau": 3.0}),
    (neuron.ParametricLIFNode, {"v_reset": None, "decay_input": True, "v_threshold": 0.4}),
    (neuron.ParametricLIFNode, {"v_reset": None, "decay_input": False}),
]
SNN_KINDS: list[tuple[type, dict[str, Any]]] = [
    (snn.Lapicque, {"beta": 0.8}),
    (snn.Lapicque, {"R": 2.0, "C": 3.0, "time_step": 0.5}),
    (snn.Synaptic, {"alpha": 0.9, "beta": 0.7}),
    (snn.Synaptic, {"alpha": 0.9, "beta": 0.7, "reset_delay": False}),
    (snn.Alpha, {"alpha": 0.9, "beta": 0.7}),
    (snn.RLeaky, {"beta": 0.7, "linear_features": 4}),
    (snn.RLeaky, {"beta": 0.7, "all_to_all": False, "V": 0.8, "reset_delay": False}),
    (snn.RSynaptic, {"alpha": 0.9, "beta": 0.7, "linear_features": 4}),
    (snn.RSynaptic, {"alpha": 0.9, "beta": 0.7, "all_to_all": False, "V": 0.8}),
]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    reset=st.sampled_from(["zero", "subtract", "none"]),
    sigma=st.sampled_from([0.0, 1e-30]),
    beta=st.floats(0, 1, width=32),
    threshold=st.floats(0.0625, 2, width=32),
    delay=st.booleans(),
    inhibition=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_leaky_without_noise_is_the_frameworks_own_bit_for_bit(
    seed: int,
    reset: str,
    sigma: float,
    beta: float,
    threshold: float,
    delay: bool,
    inhibition: bool,
) -> None:
    torch.manual_seed(seed)
    options = {"threshold": threshold, "reset_delay": delay, "inhibition": inhibition}
    plain = SnnTorchNet(reset, steps=6, **options)
    plain.lif1.beta.fill_(beta)
    noisy = swap_neurons(copy.deepcopy(plain), sigma=sigma)
    x = 4 * torch.randn(5, 4)
    spikes, membranes = plain.spikes_and_membranes(x)
    noisy_spikes, noisy_membranes = noisy.spikes_and_membranes(x)
    assert torch.equal(spikes, noisy_spikes)
    assert torch.equal(membranes, noisy_membranes)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    case=st.sampled_from(SJ_OPTIONS),
    sigma=st.sampled_from([0.0, 1e-30]),
    mode=st.sampled_from(["s", "m"]),
    store=st.booleans(),
)
def test_nodes_without_noise_are_the_frameworks_own_bit_for_bit(
    seed: int, case: tuple[type, dict[str, Any]], sigma: float, mode: str, store: bool
) -> None:
    torch.manual_seed(seed)
    plain = SpikingJellyNet(case[0], steps=6, mode=mode, store_v_seq=store, **case[1])
    noisy = swap_neurons(copy.deepcopy(plain), sigma=sigma)
    x = 4 * torch.randn(5, 4)
    assert torch.equal(plain.spikes(x), noisy.spikes(x))
    for i in (1, 3):
        assert SAME(plain.body[i].v, noisy.body[i].v)
        if store and (mode == "m" or SINCE_2):  # before, one step alone is not stored
            assert SAME(plain.body[i].v_seq, noisy.body[i].v_seq)
        else:
            assert getattr(plain.body[i], "v_seq", None) is None
            assert getattr(noisy.body[i], "v_seq", None) is None


@pytest.mark.parametrize(("kind", "options"), SNN_KINDS)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    reset=st.sampled_from(["zero", "subtract", "none"]),
    sigma=st.sampled_from([0.0, 1e-30]),
    threshold=st.floats(0.0625, 2, width=32),
)
def test_other_snntorch_neurons_without_noise_are_the_frameworks_own_bit_for_bit(
    kind: type, options: dict[str, Any], seed: int, reset: str, sigma: float, threshold: float
) -> None:
    """Spikes and every state, handed over by the caller or kept inside."""
    torch.manual_seed(seed)
    plain = kind(reset_mechanism=reset, threshold=threshold, **options)
    noisy = swap_neurons(copy.deepcopy(plain), sigma=sigma)
    currents = 3 * torch.randn(6, 5, 4)
    states = plain.reset_mem(), noisy.reset_mem()
    states = [s if isinstance(s, tuple) else (s,) for s in states]
    for current in currents:
        outputs = [net(current, *held) for net, held in zip((plain, noisy), states, strict=True)]
        for a, b in zip(*outputs, strict=True):  # a drift that a reset made 0 shows any noise
            assert torch.equal(a, b) or (sigma > 0 and torch.allclose(a, b, rtol=0, atol=1e-28))
        carries_spikes = kind in (snn.RLeaky, snn.RSynaptic)
        states = [out if carries_spikes else out[1:] for out in outputs]


@pytest.mark.parametrize(("kind", "options"), SNN_KINDS)
@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_the_noise_of_other_snntorch_neurons_enters_the_membrane_once(
    kind: type, options: dict[str, Any], reset: str
) -> None:
    """The membrane is the framework's from the same state, plus one draw; the rest is equal."""
    plain = kind(reset_mechanism=reset, **options)
    noisy = swap_neurons(copy.deepcopy(plain), sigma=0.5)
    held = tuple(torch.randn(2000, 4) for _ in noisy._states)
    current = torch.randn(2000, 4)
    expected = plain(current, *held)
    torch.manual_seed(3)
    noise = torch.randn(2000, 4)
    torch.manual_seed(3)
    found = noisy(current, *held)
    if options.get("reset_delay", True):
        torch.testing.assert_close(found[-1], expected[-1] + 0.5 * noise)
        assert torch.equal(found[0], (found[-1] > 1).float())
    for a, b in zip(found[1:-1], expected[1:-1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "options"), SNN_KINDS)
def test_swap_and_restore_give_back_the_other_snntorch_neurons(
    kind: type, options: dict[str, Any]
) -> None:
    plain = kind(reset_mechanism="zero", **options)
    net = nn.Sequential(copy.deepcopy(plain))
    keys = list(net.state_dict())
    swap_neurons(net, sigma=1.0)
    assert list(net.state_dict()) == keys
    copied = copy.deepcopy(net)
    assert copied[0].state_function.__self__ is copied[0]
    restore_neurons(net)
    assert type(net[0]) is kind
    current = torch.randn(5, 4)
    assert torch.equal(net[0](current)[0], plain(current)[0])


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_leaky_uses_one_draw_for_spike_reset_and_membrane(reset: str) -> None:
    """The returned membrane alone explains the spike, and the drift of the next step."""
    lif = NoisyLeaky(beta=0.9, reset_mechanism=reset, sigma=0.7)
    current, mem = torch.randn(2000, 2), None
    previous = torch.zeros(2000, 2)
    for _ in range(4):
        torch.manual_seed(1)
        noise = torch.randn(2000, 2)
        torch.manual_seed(1)
        spike, mem = lif(current, previous)
        assert torch.equal(spike, (mem > 1).float())
        fired = (previous > 1).float()
        kept = (1 - fired) * previous if reset == "zero" else previous
        drift = 0.9 * kept + current - (fired if reset == "subtract" else 0)
        torch.testing.assert_close(mem, drift + 0.7 * noise)
        previous = mem


@pytest.mark.parametrize(("kind", "options"), SJ_OPTIONS)
def test_node_uses_one_draw_for_spike_and_reset(kind: type, options: dict[str, Any]) -> None:
    """In both step modes, `v` after the reset and the spike come from one and the same membrane."""
    noisy = NOISY[kind]
    node = noisy(sigma=0.8, step_mode="m", store_v_seq=True, **options)
    x = torch.randn(5, 400, 3)
    spikes = node(x)
    previous = torch.full((400, 3), node.v_reset or 0.0)
    for t in range(5):
        v, spike = node.v_seq[t], spikes[t].bool()
        if node.v_reset is None:
            membrane = v + spike * node.v_threshold
            assert torch.equal(spike, membrane >= node.v_threshold) or torch.allclose(
                membrane[spike != (membrane >= node.v_threshold)], torch.tensor(node.v_threshold)
            )
        else:
            assert (v[spike] == node.v_reset).all()
            assert (v[~spike] < node.v_threshold).all()
        drift = node._charge(x[t], previous)
        quiet = ~spike
        assert 0.7 < ((v - drift)[quiet] / 0.8).abs().add(0.5).mean() < 1.5  # noise did go in
        previous = v
    assert torch.equal(node.v, node.v_seq[-1])


@pytest.mark.montecarlo
@pytest.mark.parametrize("mode", ["s", "m"])
def test_noise_level_of_both_families(mode: str) -> None:
    """Variance of the first membrane over 100,000 neurons; 5 standard errors, p < 6e-7."""
    node = NoisyIFNode(sigma=0.5, step_mode=mode, v_threshold=100.0)
    node(torch.zeros(100_000, 1) if mode == "s" else torch.zeros(1, 100_000, 1))
    _, mem = NoisyLeaky(beta=0.5, sigma=0.5)(torch.zeros(100_000, 1))
    for membrane in (node.v, mem):
        assert abs(membrane.var() / 0.25 - 1) < 5 * (2 / 100_000) ** 0.5


@pytest.mark.parametrize("train", [True, False])
def test_noise_is_on_in_training_and_in_inference(train: bool) -> None:
    net = swap_neurons(SnnTorchNet()).train(train)
    x = torch.randn(5, 4)
    assert not torch.equal(net(x), net(x))


def test_noise_off_for_a_whole_network_and_back_also_after_an_error() -> None:
    net = swap_neurons(SnnTorchNet())
    net.lif2.noise = False
    with pytest.raises(KeyError), noise_off(net):
        x = torch.randn(5, 4)
        assert torch.equal(net(x), net(x))
        raise KeyError
    assert net.lif1.noise and not net.lif2.noise


def test_global_seed_makes_inference_repeatable() -> None:
    net, x = swap_neurons(SnnTorchNet()), torch.randn(5, 4)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(net(x))
    assert torch.equal(*outputs)


def test_sigma_per_neuron_and_in_repr() -> None:
    lif = NoisyLeaky(beta=0.5, sigma=torch.tensor([0.0, 2.0]))
    _, mem = lif(torch.ones(50, 2))
    assert (mem[:, 0] == 1).all() and (mem[:, 1] != 1).all()
    assert "sigma=tensor(2,)" in repr(lif)
    assert "sigma=0.25" in repr(NoisyLIFNode(sigma=0.25)) and "tau=" in repr(NoisyLIFNode())


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_impossible_sigma(sigma: float) -> None:
    with pytest.raises(SwapError, match="finite and not negative"):
        NoisyLeaky(beta=0.5, sigma=sigma)


def test_signatures_are_the_frameworks_own() -> None:
    x = torch.randn(2, 3)
    spike, mem = NoisyLeaky(beta=0.5)(x)
    assert spike.shape == mem.shape == (2, 3)
    hidden = NoisyLeaky(beta=0.5, init_hidden=True)
    assert hidden(x).shape == (2, 3)
    assert len(NoisyLeaky(beta=0.5, init_hidden=True, output=True)(x)) == 2
    assert (hidden.reset_mem() == 0).all()
    with pytest.raises(TypeError, match="init_hidden"):
        hidden(x, x)


def test_isinstance_utilities_of_the_frameworks_still_work() -> None:
    net = nn.Sequential(nn.Linear(3, 2), snn.Leaky(beta=0.5, init_hidden=True))
    swap_neurons(net)
    net(torch.randn(4, 3))
    utils.reset(net)
    assert (net[1].mem == 0).all()
    jelly = swap_neurons(SpikingJellyNet(mode="s"))
    jelly.body(torch.randn(4, 4))
    functional.reset_net(jelly)
    assert jelly.body[1].v == 0.0
    functional.set_step_mode(jelly, "m")
    assert jelly.body(torch.randn(2, 4, 4)).shape == (2, 4, 3)


def test_surrogate_gradient_is_there_outside_of_a_recording() -> None:
    """STBP-N, the rival, is the same noisy network trained through its surrogate."""
    for net in (swap_neurons(SnnTorchNet(), 1.0), swap_neurons(SpikingJellyNet(), 1.0)):
        net(torch.randn(8, 4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_float64_network_runs_through() -> None:
    net = swap_neurons(SnnTorchNet().double())
    assert net(torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64
    assert net.lif1.sigma.dtype == torch.float64


def test_copy_and_pickle() -> None:
    """Only SpikingJelly's neurons can be pickled: snnTorch's own surrogates are closures."""
    leaky, jelly = swap_neurons(SnnTorchNet()), swap_neurons(SpikingJellyNet())
    x = torch.randn(2, 4)
    for net, twin in (
        (leaky, copy.deepcopy(leaky)),
        (jelly, copy.deepcopy(jelly)),
        (jelly, pickle.loads(pickle.dumps(jelly))),
    ):
        outputs = []
        for n in (net, twin):
            torch.manual_seed(0)
            outputs.append(n(x))
        assert torch.equal(*outputs)


def test_a_smooth_surrogate_in_non_spiking_mode_stays_smooth() -> None:
    node = NoisyIFNode(surrogate_function=surrogate.Sigmoid(spiking=False), sigma=0.1)
    assert 0 < node(torch.zeros(1)) < 0.5


def test_neurons_are_found_by_name_whatever_their_framework() -> None:
    import nit_snn.neurons as neurons

    assert neurons.NoisyLeaky is NoisyLeaky and neurons.NoisyLIFNode is NoisyLIFNode
    families = neurons._FAMILIES
    for name in neurons.__all__:
        if families.get(name) == "spikingjelly_more" and not has_more_nodes():
            with pytest.raises(ImportError, match=r"SpikingJelly 2\.0"):
                getattr(neurons, name)
        else:
            assert getattr(neurons, name).__name__ == name
    with pytest.raises(AttributeError, match="NoisyHodgkinHuxley"):
        neurons.NoisyHodgkinHuxley  # noqa: B018


@pytest.mark.parametrize(("kind", "options"), SNN_KINDS)
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_bfloat16_network_learns_with_every_neuron(
    kind: type, options: dict[str, Any], reset: str
) -> None:
    """snnTorch's resets are float32; they must not make the membranes so."""
    hidden = kind(reset_mechanism=reset, init_hidden=True, **options)
    net = nn.Sequential(nn.Linear(3, 4), hidden, nn.Linear(4, 2)).bfloat16()
    learner = NITLearner(swap_neurons(net, sigma=0.5), replicas=4)
    x = torch.randn(5, 3, dtype=torch.bfloat16)
    with learner.record():
        xr = learner.expand(x)
        out = net(xr) + net(xr)
    learner.backward(out.float().square().sum(1))
    assert net[0].weight.grad.dtype == torch.bfloat16
    assert net[0].weight.grad.abs().sum() > 0
