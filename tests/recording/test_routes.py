"""The fast route and the general route give the same gradient, given the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet, reset_nodes
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import NITError
from nit_snn.recording.synapse_call import SynapseCall

STEPS = 3


class Loop(nn.Module):
    """Runs a stateful body over STEPS steps, on the same input or on one of its own each."""

    def __init__(self, body: nn.Module, static: bool = True) -> None:
        super().__init__()
        self.body, self.static = body, static

    def forward(self, x: Tensor) -> Tensor:
        reset_nodes(self)
        for m in self.modules():
            if isinstance(m, snn.SpikingNeuron):
                m.reset_mem()
        out = 0
        for t in range(STEPS):
            out = out + self.body(x if self.static else x * (t + 1)).flatten(1)
        return out


class MultiStep(nn.Module):
    """Runs a body in step mode "m" on a repeated input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        reset_nodes(self)
        return self.body(x.unsqueeze(0).repeat(STEPS, *(1,) * x.dim())).flatten(2).sum(0)


class Residual(nn.Module):
    """The input current of the second neuron is a sum over two paths from the same synapse."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.lif1, self.lif2 = leaky(), leaky()

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc1(x)
        spike = self.lif1(current)
        out = self.fc2(spike)
        if self.inplace:
            out += current
        else:
            out = out + current
        return self.lif2(out)


class Shared(nn.Module):
    """One synapse and one neuron, each used twice, with explicit membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 4), snn.Leaky(beta=0.7)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = torch.zeros(len(x), 4)
        for _ in range(STEPS):
            spike, mem1 = self.lif(self.fc(x), mem1)
            spike, mem2 = self.lif(self.fc(spike), mem2)
        return mem2


class LearnedStart(nn.Module):
    """A learnable initial membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.7)
        self.start = nn.Parameter(torch.full((3,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        mem = self.start.expand(len(x), 3)
        for _ in range(STEPS):
            _, mem = self.lif(self.fc(x), mem)
        return mem


def leaky(**options: Any) -> snn.Leaky:
    return snn.Leaky(beta=0.7, init_hidden=True, **options)


def lapicque(reset: str) -> snn.Lapicque:
    return snn.Lapicque(beta=0.7, init_hidden=True, reset_mechanism=reset)


def with_memory(kind: type[nn.Module], reset: str, learned: bool = False) -> nn.Module:
    """Synaptic or Alpha."""
    learn = {"learn_alpha": learned, "learn_beta": learned} if learned else {}
    return kind(alpha=0.8, beta=0.6, init_hidden=True, reset_mechanism=reset, **learn)


def recurrent(kind: type[nn.Module], reset: str, **options: Any) -> nn.Module:
    """RLeaky or RSynaptic."""
    if kind is snn.RSynaptic:
        options["alpha"] = 0.8
    return kind(beta=0.6, init_hidden=True, reset_mechanism=reset, **options)


def dense(hidden: nn.Module, output: nn.Module) -> nn.Module:
    return seq(nn.Linear(4, 3), hidden, nn.Linear(3, 2), output)


def seq(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def conv_block(dims: int, **options: Any) -> nn.Module:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return conv(2, 4, 3, **options)


class StaticSequence(nn.Module):
    """Runs a body in step mode "m" on an input, or a first current, that is the same at all steps.

    `expand` keeps it one slice in memory, and the learner sees that.
    """

    def __init__(self, first: nn.Module, rest: nn.Module, current: bool) -> None:
        super().__init__()
        self.first, self.rest, self.current = first, rest, current
        functional.set_step_mode(rest, "m")
        if not current:
            functional.set_step_mode(first, "m")

    def forward(self, x: Tensor) -> Tensor:
        reset_nodes(self)
        x = self.first(x) if self.current else x
        x = x.unsqueeze(0).expand(STEPS, *x.shape)
        return self.rest(x if self.current else self.first(x)).flatten(2).sum(0)


IMAGE = (2, 6, 6)
# name: (network, input shape without batch, synapses that must take the fast route)
NETWORKS: dict[str, tuple[Any, tuple[int, ...], set[str]]] = {
    "snntorch": (SnnTorchNet, (4,), {"fc1", "fc2"}),
    "snntorch subtract": (lambda: SnnTorchNet("subtract"), (4,), {"fc1", "fc2"}),
    "snntorch early reset": (
        lambda: SnnTorchNet("subtract", reset_delay=False),
        (4,),
        {"fc1", "fc2"},
    ),
    "input of its own at each step": (
        lambda: Loop(seq(nn.Linear(4, 3), leaky()), static=False),
        (4,),
        {"body.0"},
    ),
    "spikingjelly multi-step": (SpikingJellyNet, (4,), {"body.0", "body.2"}),
    "spikingjelly single-step": (
        lambda: SpikingJellyNet(mode="s", decay_input=False),
        (4,),
        {"body.0", "body.2"},
    ),
    "spikingjelly stored voltages": (
        lambda: SpikingJellyNet(store_v_seq=True),
        (4,),
        {"body.0", "body.2"},
    ),
    "conv, view, linear": (
        lambda: Loop(
            seq(
                conv_block(2, stride=2, padding=1), leaky(), nn.Flatten(), nn.Linear(36, 3), leaky()
            )
        ),
        IMAGE,
        {"body.0", "body.3"},
    ),
    "conv, reshaped current": (
        lambda: Loop(seq(conv_block(2, dilation=2, groups=2), nn.Flatten(), leaky())),
        IMAGE,
        {"body.0"},
    ),
    "conv1d": (
        lambda: Loop(seq(conv_block(1, padding="same", padding_mode="reflect"), leaky())),
        (2, 7),
        {"body.0"},
    ),
    "conv3d": (lambda: Loop(seq(conv_block(3, bias=False), leaky())), (2, 4, 4, 4), {"body.0"}),
    "multi-step conv, batch norm, pooling": (
        lambda: MultiStep(
            seq(
                layer.Conv2d(2, 4, 3),
                layer.BatchNorm2d(4),
                neuron.IFNode(),
                layer.AvgPool2d(2),
                layer.Conv2d(4, 2, 2),
                neuron.LIFNode(),
            )
        ),
        IMAGE,
        {"body.4"},
    ),
    "multi-step dropout, linear": (
        lambda: MultiStep(
            seq(
                layer.Linear(4, 6),
                neuron.LIFNode(v_reset=None),
                layer.Dropout(0.5),
                layer.Linear(6, 2),
                neuron.LIFNode(),
            )
        ),
        (4,),
        {"body.0", "body.3"},
    ),
    "linear, static sequence": (
        lambda: StaticSequence(
            layer.Linear(4, 5), seq(neuron.LIFNode(), layer.Linear(5, 2), neuron.IFNode()), False
        ),
        (4,),
        {"first", "rest.1"},
    ),
    "conv, static sequence": (
        lambda: StaticSequence(layer.Conv2d(2, 3, 3), seq(neuron.LIFNode()), False),
        IMAGE,
        {"first"},
    ),
    "conv, static current": (
        lambda: StaticSequence(layer.Conv2d(2, 3, 3), seq(neuron.LIFNode()), True),
        IMAGE,
        {"first"},
    ),
    "linear, static current, reshaped input": (
        lambda: StaticSequence(seq(nn.Flatten(), nn.Linear(72, 3)), seq(neuron.LIFNode()), True),
        IMAGE,
        {"first.1"},
    ),
    "container over time": (
        lambda: MultiStep(
            seq(layer.SeqToANNContainer(nn.Linear(4, 6), nn.BatchNorm1d(6)), neuron.IFNode())
        ),
        (4,),
        set(),
    ),
    "linear in a container": (
        lambda: MultiStep(seq(layer.SeqToANNContainer(nn.Linear(4, 6)), neuron.IFNode())),
        (4,),
        {"body.0.0"},
    ),
    "two synapses in a row": (
        lambda: Loop(seq(nn.Linear(4, 5), nn.Linear(5, 3), leaky())),
        (4,),
        set(),
    ),
    "relu before the neuron": (
        lambda: Loop(seq(nn.Linear(4, 5), nn.ReLU(), leaky())),
        (4,),
        set(),
    ),
    "inplace relu before the neuron": (
        lambda: Loop(seq(nn.Linear(4, 5), nn.ReLU(inplace=True), leaky())),
        (4,),
        set(),
    ),
    "residual": (lambda: Loop(Residual(False)), (4,), {"body.fc1"}),
    "residual in place": (lambda: Loop(Residual(True)), (4,), {"body.fc1"}),
    "shared synapse and neuron": (Shared, (4,), {"fc"}),
    "learnable beta": (
        lambda: Loop(seq(nn.Linear(4, 3), leaky(learn_beta=True), nn.Linear(3, 2), leaky())),
        (4,),
        {"body.0", "body.2"},
    ),
    "graded spikes, learnable": (
        lambda: Loop(
            seq(nn.Linear(4, 3), leaky(learn_graded_spikes_factor=True), nn.Linear(3, 2), leaky())
        ),
        (4,),
        {"body.0"},
    ),
    **{
        f"lapicque {reset}": (
            lambda reset=reset: Loop(dense(lapicque(reset), leaky())),
            (4,),
            {"body.0", "body.2"},
        )
        for reset in ("zero", "subtract", "none")
    },
    **{
        f"{kind.__name__} {reset}, {'static' if static else 'moving'}": (
            lambda kind=kind, reset=reset, static=static: Loop(
                dense(with_memory(kind, reset), with_memory(kind, reset)), static
            ),
            (4,),
            {"body.0", "body.2"},
        )
        for kind in (snn.Synaptic, snn.Alpha)
        for reset in ("zero", "subtract", "none")
        for static in (True, False)
    },
    "synaptic, everything learned": (
        lambda: Loop(dense(with_memory(snn.Synaptic, "zero", True), leaky())),
        (4,),
        {"body.0", "body.2"},
    ),
    "synaptic behind batch norm": (
        lambda: Loop(
            seq(
                nn.Linear(4, 3),
                nn.BatchNorm1d(3),
                with_memory(snn.Synaptic, "zero"),
                nn.Linear(3, 2),
                leaky(),
            )
        ),
        (4,),
        {"body.3"},
    ),
    **{
        f"{kind.__name__} {reset}, dense": (
            lambda kind=kind, reset=reset: Loop(
                dense(recurrent(kind, reset, linear_features=3), leaky())
            ),
            (4,),
            {"body.0", "body.1.recurrent", "body.2"},
        )
        for kind in (snn.RLeaky, snn.RSynaptic)
        for reset in ("zero", "subtract", "none")
    },
    **{
        f"{kind.__name__}, one to one": (
            lambda kind=kind: Loop(
                dense(recurrent(kind, "subtract", all_to_all=False, V=0.6), leaky())
            ),
            (4,),
            {"body.0", "body.2"},
        )
        for kind in (snn.RLeaky, snn.RSynaptic)
    },
    "recurrent convolution": (
        lambda: Loop(
            seq(
                nn.Conv2d(2, 3, 3),
                recurrent(snn.RLeaky, "zero", conv2d_channels=3, kernel_size=3),
                nn.Flatten(),
                nn.Linear(48, 2),
                leaky(),
            )
        ),
        IMAGE,
        {"body.0", "body.1.recurrent", "body.3"},
    ),
    **{
        f"plif, decay_input={decay}, mode {mode}": (
            lambda decay=decay, mode=mode: mode(
                seq(
                    layer.Linear(4, 3),
                    neuron.ParametricLIFNode(decay_input=decay, v_reset=None),
                    layer.Linear(3, 2),
                    neuron.ParametricLIFNode(3.0, decay_input=decay, v_reset=0.1),
                )
            ),
            (4,),
            {"body.0", "body.2"},
        )
        for decay in (True, False)
        for mode in (Loop, MultiStep)
    },
    "learnable start": (LearnedStart, (4,), {"fc"}),
    "weight norm": (
        lambda: Loop(seq(parametrizations.weight_norm(nn.Linear(4, 3)), leaky())),
        (4,),
        set(),
    ),
    "readout behind the last neuron": (
        lambda: Loop(seq(nn.Linear(4, 5), leaky(), nn.Linear(5, 3))),
        (4,),
        {"body.0"},
    ),
}


def gradients(net: nn.Module, x: Tensor, **options: Any) -> dict[str, Tensor]:
    """Gradients of one pass; dropout and the like see the same global seed each time."""
    net.zero_grad()
    learner = NITLearner(net, replicas=4, seed=9, **{"credit": "none", **options})
    torch.manual_seed(5)
    with learner.record():
        out = net(learner.expand(x))
    learner.backward((out * torch.arange(1, out.shape[1] + 1)).tanh().sum(1))
    learner.close()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_routes_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape, expected = NETWORKS[name]
    net = swap_neurons(build().double(), sigma=0.8)
    x = torch.randn(5, *shape, dtype=torch.float64)
    taken: set[str] = set()
    original = SynapseCall.gradients_of

    def spy(self: SynapseCall, *arguments: Any, **options: Any) -> Any:
        taken.add(self.name)
        return original(self, *arguments, **options)

    monkeypatch.setattr(SynapseCall, "gradients_of", spy)
    general = gradients(net, x, route="general")
    assert not taken
    fast = gradients(net, x)
    again = gradients(net, x, recompute=True)
    assert taken == expected
    assert set(fast) == set(general) == {n for n, p in net.named_parameters()}
    for parameter in general:
        assert general[parameter].abs().sum() > 0
        torch.testing.assert_close(fast[parameter], general[parameter], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(again[parameter], fast[parameter], rtol=1e-12, atol=1e-14)


FULL = (pytest.mark.full,)
FOLLOWED: dict[str, dict[str, Any]] = {
    "conditional": {"conditional": True},
    "conditional, layers": {"conditional": True, "credit": "layers", "residual": 1},
    "conditional, time": {"conditional": True, "credit": "time", "residual": 1},
    "layers": {"credit": "layers", "residual": 1},
    "time": {"credit": "time", "residual": 1},
    "layers alone": {"credit": "layers", "residual": 0},
    "time alone": {"credit": "time", "residual": 0},
    "readout, half": {"credit": "readout", "residual": 0.5},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(each, marks=() if name in ("conditional, time", "layers alone") else FULL)
        for name, each in FOLLOWED.items()
    ],
    ids=FOLLOWED,
)
def test_both_routes_agree_where_membranes_are_followed(options: dict[str, Any]) -> None:
    compared = 0
    for name, (build, shape, _) in NETWORKS.items():
        net = swap_neurons(build().double(), sigma=0.8)
        x = torch.randn(5, *shape, dtype=torch.float64)
        try:
            general = gradients(net, x, route="general", **options)
        except NITError:  # refused, or a network that hands out membranes
            continue
        fast = gradients(net, x, **options)
        assert set(fast) == set(general)
        for parameter in general:
            torch.testing.assert_close(
                fast[parameter],
                general[parameter],
                rtol=1e-9,
                atol=1e-12,
                msg=lambda text, n=name, p=parameter: f"{n}, {p}: {text}",
            )
        compared += 1
    assert compared > 40


def test_input_gradients_come_from_the_general_route() -> None:
    """`dE[L]/dx = W^T sum_t A * score_t`, checked against that formula by hand."""
    net = swap_neurons(Loop(seq(nn.Linear(4, 3), leaky())).double())
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    gradients(net, x)
    bias_only = torch.zeros(5, 3, dtype=torch.float64)
    for row in range(5):  # the bias gradient of one sample alone is sum_t A * score_t
        learner = NITLearner(net, replicas=4, credit="none", seed=9)
        with learner.record():
            out = net(learner.expand(x.detach()))
        losses = (out * torch.arange(1, 4)).tanh().sum(1)
        losses[torch.arange(20) % 5 != row] = 0.0
        net.zero_grad()
        learner.backward(losses)
        learner.close()
        bias_only[row] = net.body[0].bias.grad
    torch.testing.assert_close(x.grad, bias_only @ net.body[0].weight.detach())


@pytest.mark.parametrize(
    ("name", "layer_name", "rows"),
    [
        ("snntorch", "fc1", (5,)),
        ("spikingjelly multi-step", "body.0", (3, 20)),  # repeat() copies: no way to know
        ("linear, static sequence", "first", (1, 5)),
        ("conv, static sequence", "first", (1, 5)),
        ("linear, static current, reshaped input", "first.1", (5,)),
    ],
)
def test_static_input_goes_through_the_first_layer_once_per_sample(
    name: str, layer_name: str, rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, shape, _ = NETWORKS[name]
    net = swap_neurons(build())
    first = net.get_submodule(layer_name)
    plain = type(first).forward
    shapes: list[tuple[int, ...]] = []

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if self is first:
            shapes.append(tuple(x.shape[: len(rows)]))
        return plain(self, x)

    monkeypatch.setattr(type(first), "forward", forward)
    gradients(net, torch.randn(5, *shape))
    assert shapes == [rows]


def test_time_first_input_is_expanded_along_its_second_dimension() -> None:
    net = swap_neurons(
        nn.Sequential(layer.Linear(4, 3, step_mode="m"), neuron.LIFNode(step_mode="m"))
    ).double()
    x = torch.randn(STEPS, 5, 4, dtype=torch.float64)
    found = []
    for route in ("auto", "general"):
        reset_nodes(net)
        learner = NITLearner(net, replicas=4, credit="none", seed=1, route=route)
        net.zero_grad()
        with learner.record():
            losses = net(learner.expand(x, dim=1)).sum(0).square().sum(1)
        learner.backward(losses)
        learner.close()
        found.append(net[0].weight.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks(dtype: torch.dtype) -> None:
    """Gradients arrive in the parameters' dtype, near those of float32 with the same weights."""
    net = swap_neurons(Loop(seq(nn.Linear(4, 3), leaky())))
    x = torch.randn(64, 4)
    full = gradients(net, x)
    half = gradients(net.to(dtype), x.to(dtype))
    for name, gradient in half.items():
        assert gradient.dtype == dtype
        cosine = torch.cosine_similarity(gradient.float().flatten(), full[name].flatten(), 0)
        assert cosine > 0.9


def test_autocast() -> None:
    net = swap_neurons(SnnTorchNet())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(net, torch.randn(5, 4))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found.values())
