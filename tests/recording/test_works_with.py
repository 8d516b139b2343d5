"""What else a network and its training use of torch: the gradient is that of the plain network.

"Plain" is the same network with nothing around it, with the same seed.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from conftest import SnnTorchNet, SpikingJellyNet
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import MisuseWarning, RecordingError
from nit_snn.recording.eager import eager
from nit_snn.robustness import reset_states

X = torch.linspace(-1, 3, 20).view(5, 4)
STRAIGHT = surrogate.StraightThroughEstimator.apply  # unlike the default, pickle can find it


class Residual(nn.Module):
    """Layers without a rule, a residual sum, and a readout that autograd trains; (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.lif = snn.Leaky(beta=0.8, spike_grad=STRAIGHT)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        membrane, total = self.lif.reset_mem(), torch.zeros(())
        for _ in range(3):
            current = self.fc(x)
            spikes, membrane = self.lif(self.norm(current) + current, membrane)
            total = total + self.head(spikes)
        return total


NETS: dict[str, Callable[[], nn.Module]] = {
    "snntorch": lambda: SnnTorchNet(spike_grad=STRAIGHT),
    "spikingjelly": lambda: SpikingJellyNet(mode="m"),
    "spikingjelly, step by step": lambda: SpikingJellyNet(mode="s"),
    "residual": Residual,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    return swap_neurons(NETS[name](), sigma=1.0)


def learn(
    net: nn.Module,
    learner: NITLearner | None = None,
    x: Tensor = X,
    run: nn.Module | None = None,
    **options: Any,
) -> Tensor:
    """One estimate with a seed of its own, written to `.grad`; returns the mean loss."""
    held = learner or NITLearner(net, replicas=4, seed=3, **{"credit": "none", **options})
    with held.record():
        out = (net if run is None else run)(held.expand(x))
    mean = held.backward(out.float().square().sum(1))
    if learner is None:
        held.close()
    return mean


def gradients(net: nn.Module, **options: Any) -> list[Tensor]:
    net.zero_grad()
    learn(net, **options)
    return [p.grad for p in net.parameters()]


def assert_same(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), **tolerance)


def saved(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("attached", [False, True])
def test_copies_of_a_network(name: str, how: str, attached: bool) -> None:
    net = build(name)
    expected = gradients(net)
    learner = NITLearner(net, replicas=2, learn_sigma=True) if attached else None
    copied = COPIES[how](net)
    assert all(a is not b for a, b in zip(copied.modules(), net.modules(), strict=True))
    found = {n: g for (n, _), g in zip(copied.named_parameters(), gradients(copied), strict=True)}
    assert_same([g for n, g in found.items() if "sigma" not in n], expected)
    del learner


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_learner_goes_on_with_its_own_network(how: str) -> None:
    net = build("snntorch")
    learner = NITLearner(
        net, replicas=4, seed=3, credit="none", antithetic=True, on_nonfinite="skip"
    )
    learn(net, learner)
    learner.rule = "nit-s"
    copied = COPIES[how](learner)  # type: ignore[arg-type]
    assert copied.net is not net and copied.rule == "nit-s" and copied.on_nonfinite == "skip"
    for held in (learner, copied):
        held.net.zero_grad()
        learn(held.net, held)
    assert_same([p.grad for p in copied.net.parameters()], [p.grad for p in net.parameters()])


def test_a_learner_that_is_part_of_a_module_is_copied_with_it() -> None:
    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("residual")
            self.learner = NITLearner(
                self.net, replicas=4, credit="none", seed=3, learn_sigma="shared"
            )

    module = Training()
    copied = copy.deepcopy(module)
    assert copied.learner.net is copied.net
    learn(copied.net, copied.learner)
    assert all(p.grad is None for p in module.parameters())
    assert all(p.grad is not None for p in copied.parameters())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("route", ["auto", "general"])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float64, None)]
)
def test_dtypes(
    name: str, route: str, later: bool, dtype: torch.dtype, tolerance: float | None
) -> None:
    """float64 has other noise, so there the two routes, and both orders, are compared."""
    reference = {"route": "general"} if tolerance is None else {}
    expected = gradients(
        build(name).to(torch.float64 if tolerance is None else torch.float32),
        x=X.to(torch.float64 if tolerance is None else torch.float32),
        **reference,
    )
    net = build(name)
    if not later:
        net.to(dtype)
    learner = NITLearner(net, replicas=4, credit="none", seed=3, route=route)
    net.to(dtype)
    learn(net, learner, X.to(dtype))
    for p, wanted in zip(net.parameters(), expected, strict=True):
        assert p.grad is not None and p.grad.dtype == dtype
        error = (p.grad.double() - wanted.double()).norm() / wanted.double().norm()
        assert error <= (1e-5 if tolerance is None else tolerance)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("route", ["auto", "general"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, route: str, dtype: torch.dtype) -> None:
    expected, net = gradients(build(name)), build(name)
    learner = NITLearner(net, replicas=4, credit="none", seed=3, route=route)
    with learner.record(), torch.autocast("cpu", dtype):
        out = net(learner.expand(X))
    learner.backward(out.float().square().sum(1))
    for p, wanted in zip(net.parameters(), expected, strict=True):
        assert p.grad is not None and p.grad.dtype == torch.float32
        assert (p.grad - wanted).norm() <= 0.15 * wanted.norm()


def test_grad_scaler_finds_the_overflow_itself() -> None:
    net, plain = build("residual"), build("residual")
    learner = NITLearner(net, replicas=4, seed=3, credit="none", on_nonfinite="write")
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125)
    before = [p.detach().clone() for p in net.parameters()]
    for scale in (2.0**125, 2.0**10):
        if scale < 2.0**100:
            scaler.update(scale)
        learner.passes = 0
        optimizer.zero_grad()
        with learner.record():
            losses = net(learner.expand(X)).square().sum(1)
        learner.backward(scaler.scale(losses))
        scaler.step(optimizer)
        scaler.update()
        if scale > 2.0**100:
            assert all(map(torch.equal, net.parameters(), before))
    expected = gradients(plain)
    for p, start, g in zip(net.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.1 * g)


def compiled(net: nn.Module, how: str) -> nn.Module:
    if how == "in place":
        net.compile(backend="aot_eager")
        return net
    return torch.compile(net, backend="aot_eager")  # type: ignore[return-value]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("how", ["wrapped", "in place"])
@pytest.mark.parametrize("attached_to", ["plain", "compiled"])
def test_compiled_networks(name: str, how: str, attached_to: str) -> None:
    torch._dynamo.reset()
    expected, net = gradients(build(name)), build(name)
    if attached_to == "plain":
        learner = NITLearner(net, replicas=4, credit="none", seed=3)
        run = compiled(net, how)
    else:
        run = compiled(net, how)
        learner = NITLearner(run, replicas=4, credit="none", seed=3)
    for _ in range(3):
        learner.passes = 0
        net.zero_grad()
        learn(net, learner, run=run)
        assert_same([p.grad for p in net.parameters()], expected)


def test_only_what_is_recorded_runs_uncompiled() -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net = swap_neurons(nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.5, init_hidden=True)))
    net[0] = torch.compile(net[0], backend=backend)
    learner = NITLearner(net, replicas=4)
    learn(net, learner)
    assert not graphs
    net(X)
    assert graphs


def test_record_cannot_be_compiled_itself() -> None:
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        with eager():  # as in record()
            return x + 1

    with pytest.raises(RecordingError, match="Compile the network alone"):
        step(X)


@pytest.mark.parametrize("name", NETS)
def test_gradient_accumulation(name: str) -> None:
    net = build(name)
    learner = NITLearner(net, replicas=4, credit="none", seed=3)
    parts = []
    for batch in (X[:3], X[3:]):
        net.zero_grad()
        learner.reset()
        learn(net, learner, batch)
        parts.append([p.grad.clone() for p in net.parameters()])
    learner.passes = 0
    net.zero_grad(set_to_none=False)
    for batch in (X[:3], X[3:]):
        learner.reset()
        learn(net, learner, batch)
    assert_same([p.grad for p in net.parameters()], [a + b for a, b in zip(*parts, strict=True)])


def test_clipping_and_parameter_groups() -> None:
    net = build("snntorch")
    expected = gradients(net)
    norm = torch.stack([g.norm() for g in expected]).norm()
    net.zero_grad()
    learner = NITLearner(net, replicas=4, credit="none", seed=3)
    groups = [{"params": net.fc1.parameters(), "lr": 1.0}, {"params": net.fc2.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    before = [p.detach().clone() for p in net.parameters()]
    learn(net, learner)
    torch.testing.assert_close(nn.utils.clip_grad_norm_(learner.parameters(), 0.1), norm)
    optimizer.step()
    for p, start, g, lr in zip(net.parameters(), before, expected, (1, 1, 0.5, 0.5), strict=True):
        torch.testing.assert_close(p.detach(), start - lr * g * 0.1 / norm)


@pytest.mark.parametrize("name", NETS)
def test_frozen_layers(name: str) -> None:
    net = build(name)
    expected = gradients(net)
    frozen = next(m for m in net.modules() if isinstance(m, nn.Linear))
    frozen.requires_grad_(False)
    own = set(frozen.parameters())
    for p, found, wanted in zip(net.parameters(), gradients(net), expected, strict=True):
        assert found is None if p in own else torch.allclose(found, wanted)


@pytest.mark.parametrize("name", NETS)
def test_averaged_models(name: str) -> None:
    net = build(name)
    learner = NITLearner(net, replicas=4, credit="none", seed=3)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    learn(net, learner)
    for held in (net, average):  # torch averages buffers, too, and membranes are some in snnTorch
        reset_states(held)
    average.update_parameters(net)
    learner.close()
    assert_same(gradients(average.module), gradients(net))


PARAMETRIZED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer).eval(),
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", nn.Softplus()),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("how", PARAMETRIZED)
def test_parametrized_weights(name: str, how: str) -> None:
    """The gradient of the plain weight, through the parametrization's own derivative."""
    net = build(name)
    layer = next(m for m in net.modules() if isinstance(m, nn.Linear))
    PARAMETRIZED[how](layer)
    plain = build(name)
    with torch.no_grad():
        next(m for m in plain.modules() if isinstance(m, nn.Linear)).weight.copy_(layer.weight)
    expected = gradients(plain)
    gradients(net)
    if how == "pruned":
        layer.forward(X)
        for hook in layer._forward_pre_hooks.values():
            hook(layer, ())
    of_weight = dict(zip(plain.parameters(), expected, strict=True))
    wanted = next(g for p, g in of_weight.items() if p.shape == layer.weight.shape)
    own = [p for p in layer.parameters() if p is not layer.bias]
    assert own
    for p, g in zip(own, torch.autograd.grad(layer.weight, own, wanted), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-5)


def test_parameters_that_come_later_are_named() -> None:
    net = build("snntorch")
    learner = NITLearner(net, replicas=4, credit="none", seed=3)
    parametrizations.weight_norm(net.fc1)
    with pytest.warns(MisuseWarning, match=r"fc1\.parametrizations\.weight\.original0"):
        learn(net, learner)
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    with pytest.warns(MisuseWarning, match=r"fc2\.weight"):
        learn(net, learner)


def test_threads_with_a_learner_each() -> None:
    def train(name: str) -> list[Tensor]:
        net = build(name)
        learner = NITLearner(net, replicas=4, credit="none", seed=3, learn_sigma=True)
        optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            learn(net, learner)
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    lock, build_alone = threading.Lock(), build
    found: dict[str, list[Tensor]] = {}

    def work(name: str) -> None:
        found[name] = train(name)

    def locked(name: str) -> nn.Module:  # torch's global generator is not theirs alone
        with lock:
            return build_alone(name)

    globals()["build"] = locked
    try:
        expected = {name: train(name) for name in NETS}
        threads = [threading.Thread(target=work, args=(name,)) for name in NETS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        globals()["build"] = build_alone
    for name in NETS:
        assert all(map(torch.equal, found[name], expected[name]))


@pytest.mark.parametrize("name", NETS)
def test_shared_weights_add_up(name: str) -> None:
    net = build(name)
    first = next(m for m in net.modules() if isinstance(m, nn.Linear))
    extra = nn.Linear(4, 6)
    extra.weight = first.weight
    both = nn.Sequential(Sum(copy.deepcopy(net), net))
    both[0].parts[0].load_state_dict(net.state_dict())
    del extra
    expected = gradients(both)
    names = [n for n, _ in both.named_parameters()]
    tied = nn.Sequential(Sum(*both[0].parts))
    other = next(m for m in tied[0].parts[0].modules() if isinstance(m, nn.Linear))
    same = next(m for m in tied[0].parts[1].modules() if isinstance(m, nn.Linear))
    other.weight = same.weight
    learner = NITLearner(tied, replicas=4, credit="none", seed=3)
    assert any("are one parameter" in note for note in learner.notes())
    tied.zero_grad()
    learn(tied, learner)
    weights = [g for n, g in zip(names, expected, strict=True) if g.shape == same.weight.shape]
    torch.testing.assert_close(same.weight.grad, weights[0] + weights[1])


class Sum(nn.Module):
    """Two networks with the same input, side by side."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts)


def test_notes_name_what_takes_the_general_route() -> None:
    net = swap_neurons(
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(inplace=True), snn.Leaky(beta=0.5))
    )
    assert NITLearner(net, replicas=2).notes() == [
        "1 (LayerNorm) has no gradient rule: it takes the general route.",
        "2 (ReLU) writes in place: its block takes the general route.",
    ]
