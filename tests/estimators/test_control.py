"""Credits as control variates; that they are unbiased with residual=1 is in `test_unbiased`."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import AttachError, LossError, UnreachedParameterWarning
from nit_snn.recording.segment import Segment
from nit_snn.recording.spike_node import NodeState
from nit_snn.recording.synapse_call import SynapseCall
from nit_snn.recording.trace import LayerTrace, PassTrace

X = torch.linspace(-1, 2, 24).view(6, 4)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The layers that took the fast route, filled as they do."""
    taken: set[str] = set()
    original = SynapseCall.gradients_of

    def spy(self: SynapseCall, *arguments: Any, **options: Any) -> Any:
        taken.add(self.name)
        return original(self, *arguments, **options)

    monkeypatch.setattr(SynapseCall, "gradients_of", spy)
    return taken


class Readout(nn.Module):
    """Two hidden noisy layers and a linear readout of the second one's summed spikes."""

    def __init__(self, steps: int = 3, beta: float = 0.7, reset: str = "zero") -> None:
        super().__init__()
        self.steps = steps
        self.fc1, self.fc2, self.readout = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.lif1, self.lif2 = (snn.Leaky(beta=beta, reset_mechanism=reset) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes = []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return self.readout(torch.stack(spikes).sum(0))


def estimates(
    net: nn.Module,
    passes: int,
    loss: Callable[[Tensor], Tensor] = lambda out: -out.log_softmax(1)[:, 0],
    **options: Any,
) -> dict[str, Tensor]:
    """Gradients of `passes` passes by parameter name, (passes, *)."""
    learner = NITLearner(net, replicas=8, seed=4, residual=1, **{"credit": "none", **options})
    found: dict[str, list[Tensor]] = {n: [] for n, _ in net.named_parameters()}
    for _ in range(passes):
        net.zero_grad()
        with learner.record():
            out = net(learner.expand(X))
        learner.backward(loss(out))
        for name, parameter in net.named_parameters():
            found[name].append(parameter.grad.flatten().clone())
    learner.close()
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.full
@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "options",
    [{}, {"conditional": True}, {"rule": "nit-s"}],
    ids=["nit", "conditional", "nit-s"],
)
def test_it_lowers_the_variance_and_keeps_the_mean(options: dict[str, Any]) -> None:
    """500 estimates each. The variance of the layer that is read must fall by a third or more
    (measured: by a factor of 4); the means differ by less than 6 standard errors in each of some
    150 parameters (p < 1e-6 in all)."""
    torch.manual_seed(0)
    net = swap_neurons(Readout(), sigma=0.8)
    with torch.no_grad():
        net.readout.weight.mul_(4)
    plain = estimates(net, 500, **options)
    controlled = estimates(net, 500, credit="readout", **options)
    for name in ("fc1.weight", "fc2.weight"):
        ratio = controlled[name].var(0).sum() / plain[name].var(0).sum()
        assert ratio < 2 / 3, (name, ratio)
        error = ((plain[name].var(0) + controlled[name].var(0)) / 500).sqrt()
        assert ((plain[name].mean(0) - controlled[name].mean(0)).abs() <= 6 * error + 1e-7).all()
    torch.testing.assert_close(plain["readout.weight"], controlled["readout.weight"])


@pytest.mark.full
@pytest.mark.montecarlo
def test_through_the_network_it_lowers_the_variance_of_the_layer_before_too() -> None:
    """300 estimates each, on a network that passes on how many neurons fire: against the readout's
    alone the first layer's variance must fall by a third or more (measured: by a factor of 2);
    the means differ by less than 6 standard errors (p < 1e-6 in all)."""
    torch.manual_seed(0)
    net = swap_neurons(Readout(), sigma=0.8)
    with torch.no_grad():
        net.fc2.weight.copy_(0.3 + 0.05 * torch.randn(8, 8))
        net.readout.weight.copy_(torch.tensor([0.1, -0.1, 0.0])[:, None].expand(3, 8))
    readout = estimates(net, 300, credit="readout")
    network = estimates(net, 300, credit="layers")
    ratio = network["fc1.weight"].var(0).sum() / readout["fc1.weight"].var(0).sum()
    assert ratio < 2 / 3, ratio
    for name in ("fc1.weight", "fc2.weight"):
        error = ((readout[name].var(0) + network[name].var(0)) / 300).sqrt()
        assert ((readout[name].mean(0) - network[name].mean(0)).abs() <= 6 * error + 1e-7).all()


@pytest.mark.full
@pytest.mark.montecarlo
@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_through_time_it_lowers_the_variance_where_membranes_remember(reset: str) -> None:
    """300 estimates each, of neurons with much noise and a long memory: the first layer's variance
    must fall to half or less (measured: by factors of 6 to 11); the means differ by less than 6
    standard errors (p < 1e-6 in all)."""
    torch.manual_seed(0)
    net = swap_neurons(Readout(steps=6, beta=0.9, reset=reset), sigma=2.0)
    linear = {"loss": lambda out: out.sum(1)}
    network = estimates(net, 300, credit="layers", conditional=True, **linear)
    time = estimates(net, 300, credit="time", conditional=True, **linear)
    ratio = time["fc1.weight"].var(0).sum() / network["fc1.weight"].var(0).sum()
    assert ratio < 1 / 2, ratio
    for name in ("fc1.weight", "fc2.weight"):
        error = ((time[name].var(0) + network[name].var(0)) / 300).sqrt()
        assert ((time[name].mean(0) - network[name].mean(0)).abs() <= 6 * error + 1e-7).all()


def records() -> int:
    gc.collect()
    kinds = (PassTrace, LayerTrace, Segment, NodeState)
    return sum(type(held) in kinds for held in gc.get_objects())


@pytest.mark.parametrize("residual", [0, 1, "auto"])
@pytest.mark.parametrize("credit", ["readout", "layers", "time"])
def test_a_pass_leaves_nothing_behind(credit: str, residual: float | str) -> None:
    net = swap_neurons(Readout())
    learner = NITLearner(net, replicas=4, credit=credit, residual=residual, conditional=True)
    before = records()
    for _ in range(5):
        with learner.record():
            out = net(learner.expand(X))
        learner.backward(out.square().sum(1))
    del out
    assert records() == before


def test_the_backward_pass_of_the_control_writes_nothing_and_ends_at_the_layer_before() -> None:
    """What `backward` writes is the estimate alone: the readout's own gradient is autograd's."""
    net = swap_neurons(Readout().double())
    learner = NITLearner(net, replicas=4, seed=3, credit="layers", residual=1)
    with learner.record():
        out = net(learner.expand(X.double()))
        losses = out.square().sum(1)
        expected = torch.autograd.grad(losses.mean(), net.readout.weight, retain_graph=True)[0]
    learner.backward(losses)
    torch.testing.assert_close(net.readout.weight.grad, expected)


def test_only_layers_that_are_read_have_a_credit() -> None:
    net = swap_neurons(Readout())
    for credit, names in (("readout", {"lif2"}), ("layers", {"lif1", "lif2"})):
        learner = NITLearner(net, replicas=4, credit=credit, residual=1)
        with learner.record():
            out = net(learner.expand(X))
        found = learner._choice.estimator.estimate(
            learner._session.recorder.trace, out.square().sum(1)
        )
        assert {layer.name for layer in found.reached} == names
        learner.close()


@pytest.mark.parametrize("credit", ["readout", "layers"])
def test_layers_behind_controlled_spikes_keep_the_fast_route(credit: str, taken: set[str]) -> None:
    net = swap_neurons(Readout())
    learner = NITLearner(net, replicas=4, credit=credit, residual=1)
    with learner.record():
        out = net(learner.expand(X))
    learner.backward(out.square().sum(1))
    assert taken == {"fc1", "fc2"}


@pytest.mark.parametrize("credit", ["readout", "layers"])
def test_both_step_modes_of_spikingjelly_agree(credit: str) -> None:
    """Single-step spikes are read one by one, multi-step ones as a whole sequence."""
    found = []
    for mode in ("s", "m"):
        torch.manual_seed(1)
        net = swap_neurons(SpikingJellyNet(mode=mode).double())
        learner = NITLearner(net, replicas=4, seed=2, credit=credit, residual=1)
        for _ in range(2):
            net.zero_grad()
            with learner.record():
                out = net(learner.expand(X.double()))
            learner.backward(out.softmax(1)[:, 0])
        found.append(net.body[0].weight.grad)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_a_loss_without_a_derivative_in_the_spikes_is_refused() -> None:
    net = swap_neurons(Readout())
    learner = NITLearner(net, replicas=4, credit="readout", residual=1)
    with learner.record():
        out = net(learner.expand(X))
    with pytest.raises(LossError, match="derivative in the spikes"):
        learner.backward((out.argmax(1) == 0).float())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("credit", ["readout", "time"])
def test_a_loss_of_membranes_alone_has_no_coefficients_of_the_last_layer(credit: str) -> None:
    """What is left is the likelihood ratio, exactly."""
    found = []
    for options in ({"credit": "none"}, {"credit": credit, "residual": 1}):
        net = swap_neurons(Last().double())
        torch.nn.init.constant_(net.fc.weight, 0.4)
        torch.nn.init.constant_(net.fc.bias, 0.1)
        learner = NITLearner(net, replicas=4, seed=2, **options)
        with learner.record():
            losses = net(learner.expand(X.double())).square().sum(1)
        learner.backward(losses)
        found.append(net.fc.weight.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


class Last(nn.Module):
    """One step of one noisy layer, of which the membrane is read; (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x), self.lif.reset_mem())[1]


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Readout(), {"baseline": "batch-mean"}, "leave-one-out"),
        (Readout(), {"credit": "something"}, "must be one of"),
        (Readout(), {"replicas": 1}, "at least 2 replicas"),
        (Readout(), {"per_step_losses": True}, "residual=0"),
        (Readout(), {"forward_only": True}, "backward pass"),
        (SnnTorchNet(state_quant=torch.round), {}, "quantised"),
    ],
    ids=["other baseline", "unknown", "one replica", "per step", "forward only", "quantised"],
)
def test_where_it_would_be_biased_it_is_refused(
    net: nn.Module, options: dict[str, Any], message: str
) -> None:
    given = {"replicas": 4, "credit": "readout", "residual": 1, **options}
    with pytest.raises(AttachError, match=message):
        NITLearner(swap_neurons(net), **given)


class Behind(nn.Module):
    """One noisy layer, a block, and a second one; returns summed spikes, (N, 3)."""

    def __init__(self, block: nn.Module, **options: Any) -> None:
        super().__init__()
        self.fc1, self.block, self.fc2 = nn.Linear(4, 6), block, nn.Linear(6, 3)
        self.lif1, self.lif2 = snn.Leaky(beta=0.7, **options), snn.Leaky(beta=0.7)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        total = torch.zeros(len(x), 3)
        for _ in range(3):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(self.block(spk1)), mem2)
            total = total + spk2
        return total


@pytest.mark.parametrize(
    "build",
    [
        lambda: Behind(nn.Identity()),
        lambda: Behind(nn.Dropout(0.5)),
        lambda: Behind(nn.ReLU(inplace=True)),
        lambda: Behind(nn.Identity(), graded_spikes_factor=2.0),
    ],
    ids=["plain", "dropout", "in place", "graded"],
)
@pytest.mark.parametrize("rule", ["nit", "nit-s"])
def test_a_block_without_parameters_behind_controlled_spikes_leaves_the_fast_route(
    build: Callable[[], Behind], rule: str, taken: set[str]
) -> None:
    """Which NIT-S needs: on the general route there is no presynaptic sign."""
    net = swap_neurons(build())
    learner = NITLearner(net, replicas=4, credit="time", residual=1, conditional=True, rule=rule)
    with learner.record():
        out = net(learner.expand(X))
    learner.backward(out.square().sum(1))
    learner.close()
    assert taken == {"fc1", "fc2"}


def test_parameters_behind_controlled_spikes_are_not_forgotten() -> None:
    net = swap_neurons(Behind(nn.PReLU()))
    learner = NITLearner(net, replicas=4, credit="layers", residual=1)
    with learner.record():
        out = net(learner.expand(X))
    learner.backward(out.square().sum(1))
    assert all(p.grad is not None for p in net.parameters())


def test_a_frozen_noise_level_is_left_alone() -> None:
    net = swap_neurons(Behind(nn.Identity()))
    learner = NITLearner(net, replicas=4, credit="layers", residual=1, learn_sigma=True)
    net.lif1.sigma.requires_grad_(False)
    with learner.record():
        out = net(learner.expand(X))
    learner.backward(out.square().sum(1))
    assert net.lif1.sigma.grad is None
    assert net.lif2.sigma.grad is not None


@pytest.mark.parametrize("credit", ["readout", "time"])
def test_a_loss_may_read_another_layer_later_on(credit: str) -> None:
    """The second pass's gradient is what it is without the first."""
    net = swap_neurons(Readout())

    def learn(learner: NITLearner, layer: int) -> list[Tensor | None]:
        net.zero_grad()
        with learner.record():
            x = learner.expand(X)
            spk1, _ = net.lif1(net.fc1(x), net.lif1.reset_mem())
            spk2, _ = net.lif2(net.fc2(spk1), net.lif2.reset_mem())
        learner.backward((spk1 if layer == 1 else spk2).sum(1))
        return [p.grad for p in net.parameters() if p.grad is not None]

    options = {"replicas": 4, "seed": 1, "credit": credit, "residual": 1}
    learner = NITLearner(net, **options)
    with pytest.warns(UnreachedParameterWarning):
        learn(learner, 1)
        found = learn(learner, 2)
    learner.close()
    fresh = NITLearner(net, **options)
    fresh.passes = 1
    with pytest.warns(UnreachedParameterWarning):
        torch.testing.assert_close(found, learn(fresh, 2))


@pytest.mark.parametrize("credit", ["none", "time"])
def test_a_pass_leaves_no_graph_in_recurrent_neurons_either(credit: str) -> None:
    neuron = snn.RLeaky(beta=0.7, linear_features=6, init_hidden=True)
    net = swap_neurons(nn.Sequential(nn.Linear(4, 6), neuron))
    learner = NITLearner(net, replicas=4, credit=credit, residual=1, conditional=True)
    with learner.record():
        x = learner.expand(X)
        out = sum(net(x) for _ in range(3))
    learner.backward(out.square().sum(1))
    del out
    assert not neuron.spk.requires_grad
    copy.deepcopy(net)
