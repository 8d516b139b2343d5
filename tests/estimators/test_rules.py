"""NIT-S by its formula, learned noise levels, and conditioning on the spike."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from scipy.stats import norm
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from nit_snn import NITLearner, restore_neurons, swap_neurons
from nit_snn.dynamics.firing import normal_hazard
from nit_snn.dynamics.lif import sign
from nit_snn.errors import AttachError, RecordingError
from nit_snn.neurons import NoisyActivation
from nit_snn.noise.streams import ReplicaNoise
from nit_snn.training import projection

SEED, REPLICAS, BATCH = 3, 4, 5
X = torch.tensor([[-1.0, 0.0, 0.5, 2.0]]) * torch.arange(1.0, BATCH + 1).unsqueeze(1)


def one_pass(net: nn.Module, **options: Any) -> tuple[Tensor, Tensor]:
    """Records one pass; returns hidden spikes (T, C * B, 6) and leave-one-out losses (C * B,)."""
    spikes: list[Tensor] = []
    handle = net.lif1.register_forward_hook(lambda m, i, o: spikes.append(o[0].clone()))
    learner = NITLearner(net, replicas=REPLICAS, credit="none", seed=SEED, **options)
    with learner.record():
        losses = net(learner.expand(X)).tanh().sum(1)
    learner.backward(losses)
    learner.close()
    handle.remove()
    by_replica = losses.view(REPLICAS, BATCH)
    others = (by_replica.sum(0) - by_replica) / (REPLICAS - 1)
    return torch.stack(spikes), (by_replica - others).flatten()


def noise_of(layer: int, width: int, steps: int = 3) -> Tensor:
    """The noise that the first pass of a learner with this seed draws, (T, C * B, width)."""
    source = ReplicaNoise(SEED, REPLICAS)
    shape = (REPLICAS * BATCH, width)
    return torch.stack(
        [source.draw(shape, index=0, layer=layer, call=t, layers=2) for t in range(steps)]
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_nit_s_is_the_formula_of_the_paper(recompute: bool) -> None:
    """`A * sum_t sign(eps_t) * sign(x_j(t))`: input by its sign, sign(0) = 1, spikes as +-1."""
    net = swap_neurons(SnnTorchNet(), sigma=0.7)
    spikes, advantage = one_pass(net, rule="nit-s", recompute=recompute)
    weight = advantage / (REPLICAS * BATCH)
    xr = X.repeat(REPLICAS, 1)
    signs = torch.where(xr >= 0, 1.0, -1.0)
    eps1, eps2 = (torch.where(noise_of(i, n) >= 0, 1.0, -1.0) for i, n in ((0, 6), (1, 3)))
    expected = {
        "fc1.weight": torch.einsum("n,tni,nj->ij", weight, eps1, signs),
        "fc1.bias": torch.einsum("n,tni->i", weight, eps1),
        "fc2.weight": torch.einsum("n,tni,tnj->ij", weight, eps2, 2 * spikes - 1),
        "fc2.bias": torch.einsum("n,tni->i", weight, eps2),
    }
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_nit_is_the_formula_of_the_paper() -> None:
    """`A * sum_t eps_t / sigma * x_j(t)`, and `A * sum_t (eps_t^2 - 1) / sigma` (Eq. 8)."""
    net = swap_neurons(SnnTorchNet(), sigma=0.7)
    spikes, advantage = one_pass(net, learn_sigma=True)
    weight = advantage / (REPLICAS * BATCH)
    eps1, eps2 = noise_of(0, 6), noise_of(1, 3)
    expected = {
        "fc1.weight": torch.einsum("n,tni,nj->ij", weight, eps1, X.repeat(REPLICAS, 1)) / 0.7,
        "fc2.weight": torch.einsum("n,tni,tnj->ij", weight, eps2, spikes) / 0.7,
        "lif1.sigma": torch.einsum("n,tni->i", weight, eps1**2 - 1) / 0.7,
        "lif2.sigma": torch.einsum("n,tni->i", weight, eps2**2 - 1) / 0.7,
    }
    for name, gradient in expected.items():
        found = net.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_signs() -> None:
    assert sign(torch.tensor([-0.0, 0.0])).tolist() == [1, 1]
    assert sign(torch.tensor([-2.0, 3.0])).tolist() == [-1, 1]


def test_the_rule_changes_without_attaching_again() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=REPLICAS, rule="nit-s")
    learner.rule = "nit"
    saved = learner.state_dict()
    learner.rule = "nit-s"
    learner.load_state_dict(saved)
    assert learner.rule == "nit"
    with pytest.raises(AttachError, match="nit-s"):
        learner.rule = "sgd"


def test_hazard_against_scipy_in_both_tails() -> None:
    a = torch.linspace(-12, 9, 400)
    expected = torch.from_numpy(norm.pdf(a.double()) / norm.sf(a.double()))
    torch.testing.assert_close(normal_hazard(a).double(), expected, rtol=1e-5, atol=1e-30)


def test_sigma_is_one_per_neuron_or_per_channel_and_an_optimizer_holds_it_before() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), snn.Leaky(beta=0.5, init_hidden=True), nn.Flatten(), nn.Linear(12, 2)
    )
    net.append(snn.Leaky(beta=0.5, init_hidden=True))
    swap_neurons(net, sigma=0.5)
    learner = NITLearner(net, replicas=2, learn_sigma=True)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        learner.reset()
        with learner.record():
            losses = net(learner.expand(torch.randn(8, 1, 4, 4)))[:, 0]
        learner.backward(losses)
        optimizer.step()
    assert net[1].sigma.shape == (3, 1, 1) and net[4].sigma.shape == (2,)
    assert (net[1].sigma != 0.5).all()


def test_sigma_behind_a_linear_layer_over_tokens_is_one_per_feature() -> None:
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5)))
    learner = NITLearner(net, replicas=2, learn_sigma=True)
    for tokens in (7, 5):
        with learner.record():
            _, mem = net(learner.expand(torch.randn(6, tokens, 4)))
        learner.backward(mem.sum((1, 2)))
    assert net[1].sigma.shape == net[1].sigma.grad.shape == (3,)


def test_all_learners_share_one_optimizer_hook_that_holds_none_of_them() -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks as hooks

    first = NITLearner(swap_neurons(SnnTorchNet()), replicas=2, learn_sigma=True)
    installed, before = dict(hooks), len(projection._BOXES)
    second = NITLearner(swap_neurons(SnnTorchNet()), replicas=2, learn_sigma=True)
    assert len(projection._BOXES) == before + 1
    second.close()
    assert len(projection._BOXES) == before
    del first
    assert len(projection._BOXES) == before - 1
    assert dict(hooks) == installed


def test_a_sigma_given_per_neuron_keeps_its_shape() -> None:
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5)), torch.full((3,), 0.4))
    learner = NITLearner(net, replicas=2, learn_sigma=True)
    with learner.record():
        _, mem = net(learner.expand(X))
    learner.backward(mem.sum(1))
    assert net[1].sigma.grad.shape == (3,)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_learned_sigma_stays_within_its_bounds_after_each_step(optimizer: Any) -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    learner = NITLearner(net, replicas=2, credit="none", learn_sigma=True, sigma_bounds=(0.4, 0.6))
    step = optimizer(learner.parameters(), lr=100.0)
    with learner.record():
        losses = net(learner.expand(X)).sum(1)
    learner.backward(losses)
    step.step()
    sigmas = torch.cat([net.lif1.sigma, net.lif2.sigma])
    assert ((sigmas == 0.4) | (sigmas == 0.6)).all()


def test_learned_sigma_is_saved_and_loaded() -> None:
    net = swap_neurons(SnnTorchNet(), sigma=0.5)
    learner = NITLearner(net, replicas=2, learn_sigma=True)
    with learner.record():
        net(learner.expand(X))
    net.lif1.sigma.data.uniform_(0.2, 0.9)
    state = net.state_dict()
    assert {"lif1.sigma", "lif2.sigma"} < set(state)
    fixed = swap_neurons(SnnTorchNet())
    fixed.load_state_dict(state)
    assert torch.equal(fixed.lif1.sigma, net.lif1.sigma) and "lif1.sigma" not in fixed.state_dict()
    learning = swap_neurons(SnnTorchNet())
    NITLearner(learning, replicas=2, learn_sigma=True)
    learning.load_state_dict(state)
    assert torch.equal(learning.lif1.sigma, net.lif1.sigma)
    learner.close()
    NITLearner(net, replicas=2)  # a learner that does not learn sigma fixes it where it is
    assert torch.equal(net.lif1.sigma, state["lif1.sigma"])
    assert "lif1.sigma" not in net.state_dict()


def test_restore_forgets_a_learned_sigma() -> None:
    net = swap_neurons(SnnTorchNet())
    NITLearner(net, replicas=2, learn_sigma=True).close()
    assert "lif1.sigma" not in restore_neurons(net).state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_bounds": (0.0, 1.0)}, "0 < smallest"),
        ({"sigma_bounds": (2.0, 1.0)}, "0 < smallest"),
        ({"learn_sigma": True, "sigma_bounds": (2.0, 3.0)}, r"outside .* lif1, lif2"),
        ({"conditional": True, "recompute": True}, "keeps the membranes"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(SnnTorchNet()), replicas=2, **options)


def test_conditioning_refuses_a_loss_on_membranes() -> None:
    net = swap_neurons(SnnTorchNet())  # it returns summed membranes
    learner = NITLearner(net, replicas=2, credit="none", conditional=True)
    with learner.record(), pytest.raises(RecordingError, match="conditional=False"):
        net(learner.expand(X))
    lif = snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism="zero")
    hidden = swap_neurons(nn.Sequential(nn.Linear(4, 3), lif))
    learner = NITLearner(hidden, replicas=2, credit="none", conditional=True)
    with learner.record():
        hidden(learner.expand(X))
        with pytest.raises(RecordingError, match="read"):
            hidden[1].mem.sum()
        with pytest.raises(RecordingError, match="read"):
            hidden[1].mem.numpy()
        out = hidden(learner.expand(X))
    learner.backward(out.sum(1))
    hidden[1].mem.mean()  # the estimate is made: nothing can be biased any more
    copy.deepcopy(hidden).double()
    learner.close()
    assert restore_neurons(hidden)(torch.cat([X, X])).shape == (10, 3)


class SpikeCount(SnnTorchNet):
    """Counts output spikes; the membranes are carried on by the caller, as in the tutorials."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes = []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes).sum(0)


@pytest.mark.parametrize("net", [SnnTorchNet("subtract"), SpikingJellyNet(v_reset=None)])
def test_conditioning_takes_any_reset_but_no_loss_on_membranes(net: nn.Module) -> None:
    learner = NITLearner(swap_neurons(net), replicas=2, conditional=True)
    with learner.record():
        if isinstance(net, SnnTorchNet):  # it returns summed membranes
            with pytest.raises(RecordingError, match="conditional=False"):
                net(learner.expand(X))
            return
        out = net(learner.expand(X))
        node = next(m for m in net.modules() if isinstance(m, neuron.BaseNode))
        with pytest.raises(RecordingError, match="read"):
            node.v.sum()
    learner.backward(out.sum(1).detach())
    functional.detach_net(net)  # the estimate is made: nothing can be biased any more
    functional.reset_net(net)


def stochastic(distance: Tensor) -> Tensor:
    """Fires by chance, more often the farther the membrane is above the threshold."""
    return (torch.rand_like(distance) < distance.sigmoid()).float()


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (SnnTorchNet(reset_delay=False), "without delay"),
        (SnnTorchNet(inhibition=True), "inhibition"),
        (SnnTorchNet(state_quant=torch.round), "quantised"),
        (SnnTorchNet(spike_grad=stochastic), "spike_grad"),
        (nn.Sequential(NoisyActivation(nn.ReLU())), "activation"),
    ],
)
def test_conditioning_is_refused_where_it_would_be_biased(net: nn.Module, reason: str) -> None:
    net = net if isinstance(net, nn.Sequential) else swap_neurons(net)
    with pytest.raises(AttachError, match=reason):
        NITLearner(net, replicas=2, conditional=True)
    with pytest.raises(AttachError, match="conditional must be one of"):
        NITLearner(swap_neurons(SnnTorchNet()), replicas=2, conditional="pathwise")


def test_a_membrane_is_followed_to_the_call_that_left_it() -> None:
    """Two sequences in one pass: the second starts anew, and skips back once."""
    lif = snn.Leaky(beta=0.9, reset_mechanism="subtract")
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), lif))
    learner = NITLearner(net, replicas=8, seed=2, conditional=True)
    membranes = [lif.reset_mem()]
    with learner.record():
        current = net[0](learner.expand(X))
        for start in (0, 1, 2, 0, 4, 4):
            membranes.append(lif(current, membranes[start])[1])
    (layer,) = learner._session.recorder.trace.layers.values()
    starts = [s.origin and layer.segments.index(s.origin) for s in layer.segments]
    assert starts == [None, 0, 1, None, 3, 3]


@pytest.mark.parametrize(
    "read",
    [
        lambda m: m.data,
        lambda m: m.T + 1,
        lambda m: m + 1,
        lambda m: copy.deepcopy(m).sum(),
        lambda m: pickle.dumps(m),
        lambda m: snn.Leaky(beta=0.5)(torch.zeros(10, 3), m),
    ],
    ids=["data", "transposed", "added", "copied", "pickled", "another neuron"],
)
def test_there_is_no_way_around_the_guard(read: Any) -> None:
    lif, other = snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), lif, other))
    learner = NITLearner(net, replicas=2, conditional=True)
    with learner.record():
        spike, membrane = lif(net[0](learner.expand(X)), lif.reset_mem())
        assert membrane.shape == (10, 3) and not membrane.requires_grad
        with pytest.raises(RecordingError, match="read"):
            read(membrane)
        with pytest.raises(RecordingError, match="read"):
            other(spike, membrane)
        with pytest.raises(RecordingError, match="read"):
            lif(membrane)
        lif(spike, membrane)
    learner.backward(spike.sum(1))
    assert torch.isfinite(membrane.data).all()


def test_a_failed_pass_keeps_nothing() -> None:
    lif = snn.Leaky(beta=0.5)
    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), lif))
    learner = NITLearner(net, replicas=2, conditional=True)
    with pytest.raises(ZeroDivisionError), learner.record():
        _, membrane = lif(net[0](learner.expand(X)), lif.reset_mem())
        1 / 0  # noqa: B018
    assert not membrane._recorder.trace.layers
    membrane.sum()


@pytest.mark.full
@pytest.mark.montecarlo
def test_conditioning_lowers_the_variance() -> None:
    """400 estimates each; the ratio of summed variances is below 0.9, where chance alone would
    bring it with probability below 1e-6 if there were no effect (measured: about 0.3)."""
    net = swap_neurons(SpikeCount(threshold=0.5))
    totals = {}
    for conditional in (False, True):
        learner = NITLearner(net, replicas=16, credit="none", seed=1, conditional=conditional)
        estimates = []
        for _ in range(400):
            net.zero_grad()
            with learner.record():
                out = net(learner.expand(X))
            learner.backward(out.softmax(1)[:, 0])
            estimates.append(net.fc1.weight.grad.flatten().clone())
        learner.close()
        totals[conditional] = torch.stack(estimates).var(0).sum()
    assert totals[True] / totals[False] < 0.9


def test_conditioning_refuses_a_node_in_smooth_mode() -> None:
    node = swap_neurons(neuron.IFNode(surrogate_function=surrogate.Sigmoid(spiking=False)))
    with pytest.raises(AttachError, match="spiking mode"):
        NITLearner(node, replicas=2, conditional=True)
