"""Bad input and misuse, case by case: what is done, and how it is answered.

`tests/validation/test_misuse.py` runs each of them, and `scripts/reliability_table.py` makes the
table in docs/reliability.md of them. An answer is an error, a warning, or a sentence about what is
done instead, which the call asserts itself.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import snntorch as snn
import torch
import torch.nn.functional as F
from conftest import SnnTorchNet, SpikingJellyNet
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from nit_snn import NITLearner, NITSPlus, audit, datasets, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import (
    AttachError,
    AuditError,
    BiasWarning,
    CarriedStateWarning,
    CheckpointError,
    ClassifierError,
    CurrentError,
    LossError,
    MisuseWarning,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteWeightError,
    RecordingError,
    SilentLayerWarning,
    SwapError,
    UnreachedParameterWarning,
)
from nit_snn.inspect.probe import probe
from nit_snn.neurons import NoisyActivation
from nit_snn.robustness import (
    EOTPGD,
    AdversarialExpand,
    Certificate,
    Defender,
    NAttack,
    NoisyClassifier,
    Verdict,
    adaptive,
    certify_noise,
    certify_smoothing,
    check,
    loss_of_mean,
    mcnemar,
    paper,
    sensitivity,
    worst_by_chance,
)
from nit_snn.training.batches import Batches
from nit_snn.training.checkpoints import Checkpoints

X, Y = torch.linspace(-1, 3, 20).view(5, 4), torch.tensor([0, 1, 2, 0, 1])
NAN, INF = float("nan"), float("inf")
IMAGES = torch.linspace(0, 1, 20).view(5, 1, 2, 2)


@dataclass(frozen=True)
class Case:
    """One misuse.

    Attributes:
        topic: Where it stands in the table.
        what: What is done.
        call: Does it.
        answer: The error or warning, or what happens instead.
        words: What its message has to say, besides its kind.
    """

    topic: str
    what: str
    call: Callable[[], object]
    answer: type[Exception] | str
    words: tuple[str, ...] = ()


def answer_to(case: Case) -> str:
    """What `case` is answered with; an AssertionError if that is something else."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            case.call()
            messages = [str(w.message) for w in caught if w.category is case.answer]
            if not isinstance(case.answer, str) and issubclass(case.answer, Warning):
                assert messages, f"no {case.answer.__name__}, but {[str(w) for w in caught]}"
            else:
                assert isinstance(case.answer, str), f"no {case.answer.__name__}"
                messages = [case.answer]
        except Exception as error:
            if isinstance(error, AssertionError) or type(error) is not case.answer:
                raise AssertionError(f"{type(error).__name__}: {error}") from error
            messages = [str(error)]
    missing = [word for word in case.words if word not in messages[0]]
    assert not missing, f"{missing} not in: {messages[0]}"
    return messages[0]


def leaky(**options: Any) -> nn.Module:
    return snn.Leaky(beta=0.5, init_hidden=True, **options)


def plain() -> nn.Module:
    return SnnTorchNet()


def noisy(**options: Any) -> nn.Module:
    return swap_neurons(SnnTorchNet(**options))


def spiking(*layers: nn.Module) -> nn.Sequential:
    """A network whose output is spikes, (N, 3), and whose neurons keep their membranes."""
    found = layers or (nn.Linear(4, 6), leaky(), nn.Linear(6, 3), leaky())
    return swap_neurons(nn.Sequential(*found))


def attach(net: nn.Module | None = None, **options: Any) -> NITLearner:
    return NITLearner(noisy() if net is None else net, **{"replicas": 2, "seed": 0, **options})


def train(
    learner: NITLearner,
    x: Tensor = X,
    losses: Callable[[Tensor], Any] = lambda out: out.sum(1),
    expand: bool = True,
) -> Tensor:
    """One pass and one estimate."""
    with learner.record():
        out = learner.net(learner.expand(x) if expand else x)
    return learner.backward(losses(out))


def changed(net: nn.Module, name: str, value: float) -> nn.Module:
    """`net` with one number of a parameter or buffer set to `value`."""
    tensor = dict([*net.named_parameters(), *net.named_buffers()])[name]
    tensor.detach().view(-1)[0] = value
    return net


def with_nan(x: Tensor, value: float = NAN) -> Tensor:
    x = x.clone()
    x[2, 1] = value
    return x


def grads(net: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in net.parameters()]


class LastMembrane(nn.Module):
    """One layer; returns its membranes, (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x), self.lif.reset_mem())[1]


class InSequence(nn.Module):
    """SpikingJelly's nodes in sequences of 3 steps, which are not reset; returns counts, (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = SpikingJellyNet(mode="m").body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.expand(3, *x.shape)).sum(0)


class Everything(nn.Module):
    """A network with several things wrong at once."""

    def __init__(self) -> None:
        super().__init__()
        self.lazy = nn.LazyLinear(3)
        self.silent = swap_neurons(leaky(), sigma=0.0)
        self.left = leaky()
        self.parallel = nn.DataParallel(nn.Linear(3, 3))


def all_at_once() -> None:
    NITLearner(Everything(), replicas=2)


def removed() -> None:
    net = noisy()
    learner = attach(net)
    net.lif1 = nn.Identity()
    with learner.record():
        pass


def added(module: nn.Module) -> None:
    net = spiking()
    learner = attach(net)
    net.append(module)
    with learner.record():
        pass


def replaced_weight() -> None:
    net = noisy()
    learner = attach(net)
    net.fc1.weight = nn.Parameter(torch.ones(6, 4))
    train(learner)


def replaced_layer() -> None:
    """Right as it is: the new layer gets the gradient that it would have got from the start."""
    net, other = noisy(), noisy()
    other.load_state_dict(net.state_dict())
    learner = attach(net)
    layer = nn.Linear(4, 6)
    layer.load_state_dict(net.fc1.state_dict())
    net.fc1 = layer
    train(learner)
    train(attach(other))
    for a, b in zip(grads(net), grads(other), strict=True):
        torch.testing.assert_close(a, b)


def only_labels_expanded() -> None:
    learner = attach(replicas=5)
    with learner.record():
        learner.expand(Y)
        learner.net(X)


def wrong_dimension() -> None:
    net = swap_neurons(SpikingJellyNet())
    learner = attach(net, replicas=5)
    with learner.record():
        net.body(learner.expand(X.repeat(3, 1, 1)))


def two_sizes() -> None:
    net = noisy()
    with attach(net).record():
        net.lif1(net.fc1(X.repeat(2, 1)))
        net.lif2(net.fc2(torch.zeros(8, 6)))


def carried(net: nn.Module) -> None:
    learner = attach(net)
    for _ in range(2):
        train(learner)


def reset_between() -> None:
    """No warning where the membranes were reset, or start anew with another batch size."""
    for net in (spiking(), swap_neurons(SpikingJellyNet(mode="s")).body):
        learner = attach(net)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for batch in (X, X, X[:3], X[:4]):
                train(learner, batch)
                if len(batch) == 5:
                    learner.reset()


def recording_twice() -> None:
    learner = attach()
    with learner.record(), learner.record():
        pass


def closed() -> None:
    learner = attach()
    learner.close()
    with learner.record():
        pass


def without_grad() -> None:
    learner = attach()
    with learner.record(), torch.no_grad():
        learner.net(learner.expand(X))


def without_noise() -> None:
    learner = attach()
    with noise_off(learner.net), learner.record():
        learner.net(learner.expand(X))


def silenced_later() -> None:
    learner = attach()
    learner.net.lif1.sigma.zero_()
    train(learner)


def copied_while_recording() -> None:
    learner = attach()
    with learner.record():
        learner.net(learner.expand(X))
        copy.deepcopy(learner.net)


def input_written_to() -> None:
    learner = attach()
    xr = learner.expand(X)
    with learner.record():
        out = learner.net(xr)
    xr.mul_(2)
    learner.backward(out.sum(1))


def backward_inside() -> None:
    learner = attach()
    with learner.record():
        learner.backward(learner.net(learner.expand(X)).sum(1))


def backward_twice() -> None:
    learner = attach()
    train(learner)
    learner.backward(torch.zeros(10))


def nothing_ran() -> None:
    learner = attach()
    with learner.record():
        pass
    learner.backward(torch.zeros(10))


def skipped_layer() -> None:
    learner = attach()
    net = learner.net
    with learner.record():
        _, membrane = net.lif2(net.fc2(torch.zeros(10, 6)))
    learner.backward(membrane.sum(1))


def ran_twice() -> None:
    net = spiking()
    learner = attach(net, per_step_losses=True)
    with learner.record():
        x = learner.expand(X)
        out = net[3](net[2](net[1](net[0](x)) + net[1](net[0](x))))
    learner.backward(out.sum(1)[None])


def current_of(dtype: torch.dtype, kind: nn.Module) -> None:
    learner = attach(nn.Sequential(swap_neurons(kind)))
    with learner.record():
        learner.net(learner.expand(X.to(dtype)))


def skip_of(x: Tensor, losses: Callable[[Tensor], Tensor], net: nn.Module, **options: Any) -> None:
    """Nothing is written to `.grad`, and the next batch is learned from."""
    learner = attach(net, on_nonfinite="skip", **options)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    train(learner, x, losses)
    assert learner.skipped == 1
    assert all(torch.equal(g, torch.ones_like(g)) for g in grads(net))
    train(learner)
    assert learner.skipped == 1 and all(torch.isfinite(g).all() for g in grads(net))
    assert not all(torch.equal(g, torch.ones_like(g)) for g in grads(net))


def exploding_sigma() -> None:
    learner = attach(learn_sigma=True, sigma_bounds=(0.1, 2.0))
    train(learner)
    level = learner.net.lif1.sigma
    level.grad = torch.tensor([1e30, -1e30, INF, -INF, 0.0, 1e-3])
    torch.optim.SGD([level], lr=1e10).step()
    expected = torch.tensor([0.1, 2.0, 0.1, 2.0, 0.25, 0.1])
    torch.testing.assert_close(level.detach(), expected)


def nan_sigma() -> None:
    learner = attach(learn_sigma=True)
    train(learner)
    changed(learner.net, "lif1.sigma", NAN)
    train(learner)


def overflow_in_half() -> None:
    net = noisy().half()
    with torch.no_grad():
        net.fc1.weight.mul_(0).add_(1)
    learner = attach(net)
    with learner.record():
        out = net(learner.expand(X.half()))
    learner.backward(out.float().sum(1) * 1e7)


def restored_too_early() -> None:
    learner = attach()
    restore_neurons(learner.net)


def load(state: Any) -> None:
    attach().load_state_dict(state)


def other_options() -> None:
    attach().load_state_dict(attach(replicas=4).state_dict())


def two_learners() -> None:
    net = noisy()
    first = attach(net)
    attach(net)
    del first


class NaNs(nn.Module):
    """A model that has gone wrong."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3), NAN)


class ThresholdedSkip(nn.Module):
    """The image reaches the logits past the noise, on a way that has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.readout = nn.Linear(4, 6), leaky(), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        out: Tensor = self.readout(self.lif(self.fc(x))) + 10 * (x[:, :3] > 0.5).float()
        return out


class NormsFirst(nn.Module):
    """All layers are registered before the neurons; the second norm runs behind the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.fc2, self.norm2 = nn.Linear(6, 3), nn.BatchNorm1d(3)
        self.lif1, self.lif2 = leaky(), leaky()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lif2(self.norm2(self.fc2(self.lif1(self.norm1(self.fc1(x))))))
        return out


def grey() -> nn.Sequential:
    """Takes images (N, 1, 2, 2); one noisy layer and a readout."""
    return spiking(nn.Flatten(), nn.Linear(4, 6), leaky(), nn.Linear(6, 3))


def classifier(**options: Any) -> NoisyClassifier:
    return NoisyClassifier(grey(), **options)


def attacked_by(protocol: Callable[..., Any], x: Any = IMAGES, y: Any = Y, **options: Any) -> None:
    """Whatever is wrong is told before anything random is drawn."""
    defender = Defender(grey())
    before = torch.get_rng_state()
    try:
        protocol(defender, x, y, **options)
    finally:
        assert torch.equal(torch.get_rng_state(), before), "an attack had begun"


def inside(act: Callable[[NITLearner], object]) -> None:
    learner = attach()
    with learner.record():
        learner.net(learner.expand(X))
        act(learner)


def option_changed() -> None:
    attach(credit="readout").credit = "none"


def reset_changed() -> None:
    net = spiking(nn.Linear(4, 3), leaky(reset_mechanism="zero"))
    learner = attach(net, conditional=True)
    net[1].reset_delay = False
    train(learner)


def carried_after_an_error() -> None:
    net = spiking()
    learner = attach(net)
    try:
        with learner.record():
            net(learner.expand(X))
            raise KeyError
    except KeyError:
        train(learner)


def certified_while_recorded() -> None:
    net = grey()
    learner = attach(net)
    with learner.record():
        sensitivity(NoisyClassifier(net), IMAGES[:1])


def checked(epsilons: tuple[float, ...]) -> None:
    verdict = Verdict("paper", 0.0, settings={"steps": 1, "draws": 1, "eps": 0.1})
    try:
        check(verdict, Defender(grey()), IMAGES, Y, epsilons=epsilons)
    finally:
        assert not verdict.checks


def saved(progress: Any) -> None:
    """What was saved before is still there."""
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, keep=1)
        good = checkpoints.save({"epoch": 1}, net=plain())
        try:
            checkpoints.save(progress, net=plain())
        finally:
            assert checkpoints.paths == [good]


def step_without_loss() -> None:
    schedule = NITSPlus(attach(), patience=2)
    try:
        schedule.step("x")
    finally:
        assert schedule.steps == 0


def audited(**options: Any) -> None:
    loss = options.pop("loss", lambda out, y: F.cross_entropy(out, y, reduction="none"))
    audit(noisy(), loss, X, Y, **options)


def nan_is_wrong() -> None:
    """Even for labels of the class that argmax tells of NaN."""
    assert not Defender(NaNs()).right(IMAGES, torch.zeros_like(Y)).any()


def silent_layer() -> None:
    net = spiking()
    net[0].bias.detach().fill_(-1000)
    train(attach(net))


def kept_in_front() -> None:
    layers = nn.Linear(4, 6), leaky(), nn.Linear(6, 3), leaky()
    train(attach(swap_neurons(nn.Sequential(*layers), keep="1")))


def numpy_numbers() -> None:
    learner = attach(replicas=np.int64(4), seed=np.int32(3))
    state = learner.state_dict()
    assert type(state["replicas"]) is int and type(state["seed"]) is int


A, R, L, S, P, N, J = (
    "Attaching a learner",
    "Recording a pass",
    "Losses",
    "Swapping neurons",
    "Other entries",
    "NaN and infinity",
    "Attacks, judgements and certificates",
)

CASES = [
    Case(S, "`net` is no module", lambda: swap_neurons("net"), TypeError, ("Module", "str")),
    Case(S, "`sigma` is no number", lambda: swap_neurons(plain(), "1"), SwapError, ("number", "1")),
    Case(S, "`sigma` is NaN", lambda: swap_neurons(plain(), NAN), SwapError, ("finite", "nan")),
    Case(S, "`sigma` is negative", lambda: swap_neurons(plain(), -1.0), SwapError, ("negative",)),
    Case(
        S,
        "`sigma` names a neuron that is not there",
        lambda: swap_neurons(plain(), {"lif1": 1.0, "lif9": 1.0}),
        SwapError,
        ("lif9", "lif2"),
    ),
    Case(S, "twice", lambda: swap_neurons(noisy()), SwapError, ("Nothing to do", "lif1")),
    Case(
        S,
        "no neuron and no activation",
        lambda: swap_neurons(nn.Sequential(nn.Linear(4, 3))),
        SwapError,
        ("submodules",),
    ),
    Case(
        S,
        "a neuron without a noisy counterpart",
        lambda: swap_neurons(nn.Sequential(leaky(), neuron.KLIFNode())),
        SwapError,
        ("1 (KLIFNode)", "a ReLU bends", "keep=[KLIFNode]", "register_neuron"),
    ),
    Case(
        S,
        "`keep` names what is not there",
        lambda: swap_neurons(plain(), keep=["lif9"]),
        SwapError,
        ("'lif9'", "lif1 (Leaky), lif2 (Leaky)"),
    ),
    Case(
        S,
        "`keep` is no name, class or module",
        lambda: swap_neurons(plain(), keep=[3]),
        SwapError,
        ("names, classes and modules", "3"),
    ),
    Case(
        S,
        "`keep` names a neuron that has noise",
        lambda: swap_neurons(noisy(), keep="lif1"),
        SwapError,
        ("lif1", "restore_neurons"),
    ),
    Case(
        S,
        "`keep` leaves nothing to swap",
        lambda: swap_neurons(plain(), keep=snn.Leaky),
        SwapError,
        ("Nothing to do", "lif1 (Leaky)"),
    ),
    Case(
        S,
        "a current of integers",
        lambda: NoisyActivation(nn.Identity())(torch.ones(2, 3, dtype=torch.long)),
        CurrentError,
        ("NoisyActivation", "(2, 3)", "int64", ".float()"),
    ),
    Case(
        S,
        "a `sigma` that does not fit the current",
        lambda: swap_neurons(nn.Sequential(leaky()), torch.ones(5))(torch.ones(3, 1)),
        CurrentError,
        ("(5,)", "(3, 1)", "scalar"),
    ),
    Case(
        S,
        "`restore_neurons` while a learner is attached",
        restored_too_early,
        SwapError,
        ("lif1, lif2", "close()"),
    ),
    Case(A, "`net` is no module", lambda: NITLearner("net", replicas=2), TypeError, ("str",)),
    Case(
        A, "neurons that were not swapped", lambda: attach(plain()), AttachError, ("swap_neurons",)
    ),
    Case(
        A,
        "some neurons that were not swapped",
        lambda: attach(nn.Sequential(swap_neurons(leaky()), leaky())),
        AttachError,
        ("1 (Leaky)", "swap_neurons"),
    ),
    Case(
        A,
        "several problems at once",
        all_at_once,
        AttachError,
        ("4 problems", "lazy.weight", "left (Leaky)", "silent", "DataParallel at parallel"),
    ),
    Case(
        A,
        "a lazy module",
        lambda: attach(spiking(nn.LazyLinear(3), leaky())),
        AttachError,
        ("0.weight", "0.bias", "one batch"),
    ),
    Case(
        A,
        "a network on the meta device",
        lambda: attach(noisy().to("meta")),
        AttachError,
        ("fc1.weight", "to_empty"),
    ),
    Case(
        A,
        "DataParallel anywhere in the network",
        lambda: attach(spiking(nn.DataParallel(nn.Linear(4, 3)), leaky())),
        AttachError,
        ("DataParallel at 0", "plain network"),
    ),
    Case(
        A,
        "a quantised layer",
        lambda: attach(
            spiking(torch.ao.nn.quantized.dynamic.Linear(4, 3), leaky(), nn.Linear(3, 3), leaky())
        ),
        UnreachedParameterWarning,
        ("0 (", "Linear", "quantise then"),
    ),
    Case(
        A,
        "a parameter that no noise reaches",
        lambda: attach(noisy(learn_threshold=True, reset_delay=False)),
        UnreachedParameterWarning,
        ("lif1.threshold", "lif2.threshold", "requires_grad_(False)"),
    ),
    Case(
        A,
        "a neuron whose estimate would be biased",
        lambda: attach(spiking(snn.Synaptic(alpha=0.9, beta=0.5, state_quant=torch.round))),
        AttachError,
        ("0 (its synaptic current is quantised)",),
    ),
    Case(
        A,
        "two learners on one network",
        two_learners,
        AttachError,
        ("lif1, lif2", "close()"),
    ),
    Case(
        A,
        "`sigma` of 0",
        lambda: attach(swap_neurons(plain(), 0.0)),
        AttachError,
        ("lif1, lif2", "positive", "sigma=0.25"),
    ),
    Case(
        A,
        "`sigma` infinite or NaN",
        lambda: attach(changed(noisy(), "lif2.sigma", INF)),
        AttachError,
        ("finite", "lif2"),
    ),
    Case(
        A,
        "a learned `sigma` that starts outside of its bounds",
        lambda: attach(learn_sigma=True, sigma_bounds=(2.0, 3.0)),
        AttachError,
        ("lif1, lif2", "(2.0, 3.0)"),
    ),
    Case(A, "`replicas=2.5`", lambda: attach(replicas=2.5), AttachError, ("positive integer",)),
    Case(
        A,
        "`replicas=1` with `credit='none'` and a baseline",
        lambda: attach(replicas=1, credit="none"),
        AttachError,
        ("least 2",),
    ),
    Case(A, "`antithetic='yes'`", lambda: attach(antithetic="yes"), AttachError, ("True or",)),
    Case(A, "`seed=1.5`", lambda: attach(seed=1.5), AttachError, ("seed", "integer")),
    Case(A, "`sigma_bounds=(1,)`", lambda: attach(sigma_bounds=(1,)), AttachError, ("(1,)",)),
    Case(A, "`weight_bounds=3`", lambda: attach(weight_bounds=3), AttachError, ("smallest", "3")),
    Case(
        A,
        "`memory_budget='1GB'`",
        lambda: attach(memory_budget="1GB"),
        AttachError,
        ("bytes", "1GB"),
    ),
    Case(A, "`credit='all'`", lambda: attach(credit="all"), AttachError, ("'layers'", "'all'")),
    Case(A, "`residual=2`", lambda: attach(residual=2), AttachError, ("between 0 and 1", "2")),
    Case(
        A,
        "`residual` with `credit='none'`",
        lambda: attach(credit="none", residual=0.5),
        AttachError,
        ("scale the gradient", "0.5"),
    ),
    Case(
        A,
        "`forward_only=True` with a credit that has a backward pass",
        lambda: attach(credit="time", forward_only=True),
        AttachError,
        ("'time'", "backward pass"),
    ),
    Case(
        A,
        "a residual beside a credit, with another baseline",
        lambda: attach(credit="layers", residual=1, baseline="none"),
        AttachError,
        ("leave-one-out", "'none'"),
    ),
    Case(
        A,
        "losses per time step with a residual beside a credit",
        lambda: attach(credit="layers", residual=1, per_step_losses=True),
        AttachError,
        ("per_step_losses", "residual=0"),
    ),
    Case(
        A,
        "`rule='nit-s'` without its residual",
        lambda: attach(credit="layers", residual=0, rule="nit-s"),
        AttachError,
        ("nit-s", "residual=1"),
    ),
    Case(
        A,
        "`recompute=True` with `conditional=True`",
        lambda: attach(recompute=True, conditional=True),
        AttachError,
        ("keeps the membranes", "keeps nothing"),
    ),
    Case(
        A,
        "`on_nonfinite='ignore'`",
        lambda: attach(on_nonfinite="ignore"),
        AttachError,
        ("'skip'",),
    ),
    Case(
        A,
        "`shard` without a process group",
        lambda: attach(shard="replicas", credit="none"),
        AttachError,
        ("init_process_group",),
    ),
    Case(
        A,
        "`conditional` is a tensor",
        lambda: attach(conditional=torch.ones(2)),
        AttachError,
        ("conditional", "tensor"),
    ),
    Case(A, "`seed=2**64`", lambda: attach(seed=2**64), AttachError, ("64 bits",)),
    Case(
        A,
        "an option changed after attaching",
        option_changed,
        AttributeError,
        ("credit", "attach another"),
    ),
    Case(
        A,
        "`on_nonfinite` set to a policy that there is not",
        lambda: setattr(attach(), "on_nonfinite", "ignore"),
        AttachError,
        ("on_nonfinite", "'skip'", "ignore"),
    ),
    Case(
        A,
        "`learner.passes = 'x'`",
        lambda: setattr(attach(), "passes", "x"),
        ValueError,
        ("passes", "integer"),
    ),
    Case(A, "NumPy's integers", numpy_numbers, "they are taken, and kept as Python's"),
    Case(R, "`expand` without a tensor", lambda: attach().expand([1]), TypeError, ("int",)),
    Case(
        R,
        "`expand` along a dimension that is not there",
        lambda: attach().expand(X, dim=2),
        ValueError,
        ("dim=2", "(5, 4)"),
    ),
    Case(
        R,
        "`expand` with two batch sizes",
        lambda: attach().expand(X, Y[:4]),
        ValueError,
        ("5, 4",),
    ),
    Case(
        R,
        "`expand` forgotten; the rows are no multiple of the replicas",
        lambda: train(attach(), expand=False),
        RecordingError,
        ("lif1", "(5, 6)", "multiple of 2", "expand()"),
    ),
    Case(
        R,
        "`expand` forgotten; the rows happen to be a multiple",
        lambda: train(attach(replicas=5), expand=False),
        MisuseWarning,
        ("5 rows", "5 replicas of 1 samples", "expand(x, y)"),
    ),
    Case(
        R,
        "labels expanded, but not the input",
        only_labels_expanded,
        RecordingError,
        ("lif1", "(5, 6)", "made 25"),
    ),
    Case(
        R,
        "time-first input expanded along time",
        wrong_dimension,
        RecordingError,
        ("body.1", "made 15", "dim=1"),
    ),
    Case(
        R,
        "layers that see different numbers of rows",
        two_sizes,
        RecordingError,
        ("lif2 got 8 rows", "10"),
    ),
    Case(
        R,
        "`expand(dim=True)`",
        lambda: attach().expand(X, dim=True),
        ValueError,
        ("dim=True",),
    ),
    Case(
        R,
        "a neuron's reset changed to one that `conditional` is biased for",
        reset_changed,
        AttachError,
        ("biased", "1"),
    ),
    Case(
        R,
        "BatchNorm in training mode that runs behind noise, wherever it is registered",
        lambda: train(attach(swap_neurons(NormsFirst()), credit="none")),
        BiasWarning,
        ("norm2.", "eval mode"),
    ),
    Case(
        R,
        "a reset forgotten after a pass that raised",
        carried_after_an_error,
        CarriedStateWarning,
        ("1, 3", "learner.reset()"),
    ),
    Case(
        R,
        "`close()` inside `record()`",
        lambda: inside(lambda learner: learner.close()),
        RecordingError,
        ("close()", "after it"),
    ),
    Case(
        R,
        "`disable()` inside `record()`",
        lambda: inside(lambda learner: learner.disable()),
        RecordingError,
        ("disable()", "after it"),
    ),
    Case(
        R,
        "`load_state_dict()` inside `record()`",
        lambda: inside(lambda learner: learner.load_state_dict(learner.state_dict())),
        RecordingError,
        ("load_state_dict()", "after it"),
    ),
    Case(R, "`record()` inside `record()`", recording_twice, RecordingError, ("nested",)),
    Case(R, "`record()` after `close()`", closed, RecordingError, ("closed", "new one")),
    Case(R, "under `torch.no_grad()`", without_grad, RecordingError, ("grad mode", "no_grad")),
    Case(R, "with the noise switched off", without_noise, RecordingError, ("lif1", "noise_off")),
    Case(R, "`sigma` set to 0 later", silenced_later, AttachError, ("positive", "lif1")),
    Case(
        R,
        "a current of integers, snnTorch",
        lambda: current_of(torch.long, leaky()),
        RecordingError,
        ("0 got", "(10, 4)", "int64", ".float()"),
    ),
    Case(
        R,
        "a current of integers, SpikingJelly",
        lambda: current_of(torch.long, neuron.LIFNode()),
        RecordingError,
        ("0 got", "(10, 4)", "int64", ".float()"),
    ),
    Case(
        R,
        "a reset forgotten between batches, snnTorch",
        lambda: carried(spiking()),
        CarriedStateWarning,
        ("1, 3", "learner.reset()"),
    ),
    Case(
        R,
        "a reset forgotten between batches, SpikingJelly step by step",
        lambda: carried(swap_neurons(SpikingJellyNet(mode="s")).body),
        CarriedStateWarning,
        ("1, 3", "learner.reset()"),
    ),
    Case(
        R,
        "a reset forgotten between batches, SpikingJelly in sequences",
        lambda: carried(swap_neurons(InSequence())),
        CarriedStateWarning,
        ("body.1, body.3", "learner.reset()"),
    ),
    Case(R, "another batch size without a reset", reset_between, "the membranes start anew"),
    Case(R, "a neuron that left the network", removed, AttachError, ("lif1 (NoisyLeaky)", "close")),
    Case(
        R, "a neuron that came later", lambda: added(leaky()), AttachError, ("4 (Leaky)", "after")
    ),
    Case(
        R,
        "a noisy neuron that came later",
        lambda: added(swap_neurons(leaky())),
        AttachError,
        ("4 (NoisyLeaky)", "after"),
    ),
    Case(
        R,
        "a weight that was replaced",
        replaced_weight,
        MisuseWarning,
        ("fc1.weight", "learner.parameters()"),
    ),
    Case(R, "a layer that was replaced", replaced_layer, MisuseWarning, ("fc1.weight, fc1.bias",)),
    Case(
        R,
        "a neuron that was kept, in front of a noisy one",
        kept_in_front,
        BiasWarning,
        ("1 (Leaky) in front of 3", "behind the last noisy layer"),
    ),
    Case(
        R,
        "a layer that never fires, out of reach of the noise",
        silent_layer,
        SilentLayerWarning,
        ("in: 1.", "calibrate"),
    ),
    Case(
        R,
        "a noisy layer that was skipped",
        skipped_layer,
        UnreachedParameterWarning,
        ("fc1.weight, fc1.bias",),
    ),
    Case(
        R,
        "a layer that ran twice, with losses per time step",
        ran_twice,
        LossError,
        ("1 made 2 steps", "1 time steps"),
    ),
    Case(R, "the network copied meanwhile", copied_while_recording, RecordingError, ("copied",)),
    Case(
        R,
        "the input written to before `backward`",
        input_written_to,
        RecordingError,
        ("fc1 was changed in place", "Clone"),
    ),
    Case(
        R,
        "BatchNorm in training mode behind noise",
        lambda: train(attach(spiking(leaky(), nn.BatchNorm1d(4), leaky()), credit="none")),
        BiasWarning,
        ("noisy layer: 1", "eval mode"),
    ),
    Case(
        L,
        "`backward` without `record`",
        lambda: attach().backward(torch.zeros(10)),
        RecordingError,
        ("Nothing was recorded",),
    ),
    Case(L, "`backward` twice", backward_twice, RecordingError, ("Nothing was recorded",)),
    Case(L, "`backward` inside of `record`", backward_inside, RecordingError, ("after the",)),
    Case(L, "the network never ran", nothing_ran, RecordingError, ("Nothing was recorded",)),
    Case(
        L,
        "averaged over all rows",
        lambda: train(attach(), losses=lambda out: out.mean()),
        LossError,
        ("(10,)", "got ()", "reduction='none'"),
    ),
    Case(
        L,
        "averaged over the replicas",
        lambda: train(attach(), losses=lambda out: out.sum(1).view(2, 5).mean(0)),
        LossError,
        ("(10,)", "got (5,)", "reduction='none'"),
    ),
    Case(
        L,
        "a number for each output",
        lambda: train(attach(), losses=lambda out: out),
        LossError,
        ("(10,)", "got (10, 3)"),
    ),
    Case(
        L,
        "per time step where they should not be",
        lambda: train(attach(per_step_losses=True), losses=lambda out: out.sum(1)),
        LossError,
        ("(T, 10)", "got (10,)"),
    ),
    Case(
        L,
        "all equal, of 100 samples",
        lambda: train(attach(credit="none"), X.repeat(20, 1), lambda out: out.detach()[:, 0] * 0),
        SilentLayerWarning,
        ("All losses were equal", "calibrate"),
    ),
    Case(
        L,
        "sparse",
        lambda: train(attach(), losses=lambda out: out.sum(1).detach().to_sparse()),
        LossError,
        ("dense", "sparse"),
    ),
    Case(
        L,
        "on the meta device",
        lambda: train(attach(), losses=lambda out: torch.zeros(10, device="meta")),
        LossError,
        ("meta device",),
    ),
    Case(L, "no numbers", lambda: train(attach(), losses=str), LossError, ("numbers", "str")),
    Case(
        L,
        "complex",
        lambda: train(attach(), losses=lambda out: out.sum(1) * 1j),
        LossError,
        ("real", "complex64"),
    ),
    Case(
        L,
        "no derivative in any spike, with a credit that was asked for",
        lambda: train(attach(spiking(), credit="readout"), losses=lambda out: out.sum(1).detach()),
        LossError,
        ("derivative", "credit='auto'"),
    ),
    Case(
        N,
        "NaN in the losses",
        lambda: train(attach(), losses=lambda out: with_nan(out).sum(1)),
        NonFiniteLossError,
        ("1 of 10", "row 2", "membranes are finite", "No gradient was written"),
    ),
    Case(
        N,
        "infinity in the losses",
        lambda: train(attach(), losses=lambda out: out.sum(1).where(X.repeat(2, 1)[:, 0] < 2, INF)),
        NonFiniteLossError,
        ("2 of 10", "row 4"),
    ),
    Case(
        N,
        "NaN in the losses, `on_nonfinite='skip'`",
        lambda: skip_of(X, lambda out: out.sum(1) * NAN, noisy()),
        "the batch is left out and counted in `learner.skipped`; `.grad` stays as it was",
    ),
    Case(
        N,
        "NaN in the input, and so in membranes and losses",
        lambda: train(attach(swap_neurons(LastMembrane())), with_nan(X)),
        NonFiniteLossError,
        ("Membranes of lif hold NaN",),
    ),
    Case(
        N,
        "NaN in the input, losses of spikes alone",
        lambda: train(attach(spiking()), with_nan(X)),
        NonFiniteGradientError,
        ("0.weight", "Membranes of 1 hold NaN", "No gradient was written"),
    ),
    Case(
        N,
        "the same, `on_nonfinite='skip'`",
        lambda: skip_of(with_nan(X), lambda out: out.sum(1), spiking()),
        "the batch is left out and counted, `.grad` stays as it was, and bad membranes are reset",
    ),
    Case(
        N,
        "NaN in a weight, losses of spikes alone",
        lambda: train(attach(changed(spiking(), "2.weight", NAN))),
        NonFiniteWeightError,
        ("2.weight", "checkpoint", "learning rate"),
    ),
    Case(
        N,
        "NaN in a weight, `on_nonfinite='skip'`",
        lambda: train(attach(changed(noisy(), "fc2.weight", NAN), on_nonfinite="skip")),
        NonFiniteWeightError,
        ("fc2.weight",),
    ),
    Case(N, "NaN in a learned `sigma`", nan_sigma, AttachError, ("finite", "lif1")),
    Case(N, "a learned `sigma` that explodes", exploding_sigma, "it is held by `sigma_bounds`"),
    Case(
        N,
        "losses so large that the gradient overflows",
        lambda: train(attach(), losses=lambda out: torch.tensor([3e38, -3e38] * 5)),
        NonFiniteGradientError,
        ("fc1.weight", "losses are computed"),
    ),
    Case(
        N,
        "overflow in half precision",
        overflow_in_half,
        NonFiniteGradientError,
        ("fc1.weight", "No gradient was written"),
    ),
    Case(P, "`load_state_dict(None)`", lambda: load(None), CheckpointError, ("state_dict()",)),
    Case(
        P,
        "a learner's state that lacks entries",
        lambda: load({"passes": 1}),
        CheckpointError,
        ("lacks", "seed"),
    ),
    Case(
        P,
        "a learner's state with other options",
        other_options,
        CheckpointError,
        ("replicas: saved 4, here 2",),
    ),
    Case(
        P,
        "`NITSPlus(learner, after=2.5)`",
        lambda: NITSPlus(attach(), after=2.5),
        ValueError,
        ("positive integer", "2.5"),
    ),
    Case(P, "`NITSPlus(None, after=2)`", lambda: NITSPlus(None, after=2), TypeError, ("NoneType",)),
    Case(P, "`probe` of no module", lambda: probe("net").__enter__(), TypeError, ("str",)),
    Case(P, "`noise_off` of no module", lambda: noise_off("net").__enter__(), TypeError, ("str",)),
    Case(
        P,
        "`audit` of a network without noise",
        lambda: audit(plain(), F.cross_entropy, X, Y),
        AuditError,
        ("no noisy neuron", "swap_neurons"),
    ),
    Case(
        P,
        "`audit(estimates=4.5)`",
        lambda: audited(estimates=4.5),
        AuditError,
        ("estimates", "integer", "4.5"),
    ),
    Case(
        P,
        "`audit` with a surrogate that is no function",
        lambda: audited(surrogates={"mine": 3}),
        AuditError,
        ("no functions", "mine"),
    ),
    Case(P, "`audit` without a loss", lambda: audited(loss=None), AuditError, ("loss", "NoneType")),
    Case(P, "`Batches(5, 2.5)`", lambda: Batches(5, 2.5), ValueError, ("size", "integer", "2.5")),
    Case(
        P,
        "`NITSPlus(learner, after=True)`",
        lambda: NITSPlus(attach(), after=True),
        ValueError,
        ("positive integer", "True"),
    ),
    Case(
        P,
        "`NITSPlus.step` with a loss that is no number",
        step_without_loss,
        ValueError,
        ("finite loss", "'x'"),
    ),
    Case(
        P,
        "a checkpoint with progress that nobody could read",
        lambda: saved([1]),
        CheckpointError,
        ("progress", "list", "Nothing was saved"),
    ),
    Case(
        P,
        "`Checkpoints(folder, keep=1.5)`",
        lambda: Checkpoints("runs", keep=1.5),
        ValueError,
        ("keep", "integer", "1.5"),
    ),
    Case(
        P,
        "`datasets.load` with a folder that is no path",
        lambda: datasets.load("mnist", -1),
        TypeError,
        ("data_dir", "path", "-1"),
    ),
    Case(
        J,
        "`certify_noise` of a classifier without noise",
        lambda: certify_noise(classifier(noise=False), IMAGES),
        ClassifierError,
        ("noise=False", "nothing is certain"),
    ),
    Case(
        J,
        "`certify_noise` where images pass the noise by, without a derivative",
        lambda: certify_noise(NoisyClassifier(swap_neurons(ThresholdedSkip())), IMAGES),
        ClassifierError,
        ("other ways", "certifies nothing"),
    ),
    Case(
        J,
        "`certify_noise` of a plain network",
        lambda: certify_noise(grey(), IMAGES),
        TypeError,
        ("NoisyClassifier", "Sequential"),
    ),
    Case(
        J,
        "`certify_smoothing` of a model whose logits are NaN",
        lambda: certify_smoothing(NaNs(), IMAGES, 0.5, draws=20),
        ClassifierError,
        ("NaN", "vote for nothing"),
    ),
    Case(
        J,
        "`certify_smoothing` with infinite noise",
        lambda: certify_smoothing(grey(), IMAGES, INF),
        ValueError,
        ("sigma", "finite"),
    ),
    Case(
        J,
        "a certificate inside `record()`",
        certified_while_recorded,
        RecordingError,
        ("recording", "not inside"),
    ),
    Case(
        J,
        "certified accuracy with one label for all",
        lambda: Certificate(Y, torch.ones(5), torch.ones(5)).accuracy(Y[:1]),
        ValueError,
        ("5 images", "(1,)"),
    ),
    Case(
        J,
        "a network where a defender is attacked",
        lambda: paper(grey(), IMAGES, Y),
        TypeError,
        ("Defender", "Sequential"),
    ),
    Case(
        J,
        "images that hold NaN",
        lambda: attacked_by(paper, with_nan(IMAGES.view(5, 4)).view(5, 1, 2, 2)),
        ValueError,
        ("1 pixels", "(5, 1, 2, 2)", "looks like robustness"),
    ),
    Case(
        J,
        "images from 0 to 255",
        lambda: attacked_by(adaptive, 255 * IMAGES),
        ValueError,
        ("between 0 and 1", "255"),
    ),
    Case(
        J,
        "labels above the number of classes",
        lambda: attacked_by(paper, y=Y + 1),
        ValueError,
        ("from 0 to 2", "1 to 3"),
    ),
    Case(
        J,
        "labels of floating point",
        lambda: attacked_by(adaptive, y=Y.float()),
        ValueError,
        ("integers", "float32"),
    ),
    Case(
        J,
        "one label for all images",
        lambda: Defender(grey()).right(IMAGES, Y[:1]),
        ValueError,
        ("5 images", "(1,)"),
    ),
    Case(
        J,
        "an option of the last attack that cannot be",
        lambda: attacked_by(adaptive, query_draws=0),
        ValueError,
        ("query_draws", "0"),
    ),
    Case(
        J,
        "`EOTPGD` with a negative radius",
        lambda: EOTPGD(classifier(), eps=-0.1),
        ValueError,
        ("eps", "-0.1"),
    ),
    Case(
        J,
        "`NAttack` without noise to ask with",
        lambda: NAttack(classifier(), sigma=0.0),
        ValueError,
        ("sigma", "positive"),
    ),
    Case(
        J, "logits that are NaN", nan_is_wrong, "the image counts as wrong, whatever its label", ()
    ),
    Case(
        J,
        "radii that do not ascend",
        lambda: checked((0.2, 0.1)),
        ValueError,
        ("epsilons", "ascend"),
    ),
    Case(
        J,
        "`worst_by_chance` of 1.5 judgements",
        lambda: worst_by_chance(Defender(grey()), IMAGES, Y, 1.5),
        ValueError,
        ("judgements", "1.5"),
    ),
    Case(J, "`mcnemar` of classes", lambda: mcnemar(Y, Y), ValueError, ("True or False", "int64")),
    Case(
        J,
        "`AdversarialExpand` of a network",
        lambda: AdversarialExpand(grey()),
        TypeError,
        ("NITLearner", "Sequential"),
    ),
    Case(
        J,
        "`loss_of_mean` with another number of replicas",
        lambda: loss_of_mean(torch.zeros(6, 3), Y[[0, 1, 2, 0, 1, 2]], 4),
        ValueError,
        ("C = 4", "(6, 3)", "expand()"),
    ),
    Case(J, "`NoisyClassifier` of no module", lambda: NoisyClassifier("net"), TypeError, ("str",)),
]
