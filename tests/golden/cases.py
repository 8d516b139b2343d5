"""Small networks with options of every kind, whose gradients `gradients.npz` keeps.

A case builds a network from a seed, makes its batches from the number of the pass, and says with
which options a learner is attached. Nothing here depends on how a learner works inside.

The learners' seeds were chosen: no membrane comes closer to its threshold than 1e-4, every tensor's
gradient has an entry beyond 5e-3, and rounding in float32 moves none by more than 2.5e-6 of its
largest entry. With others, what is followed through time past a soft reset may move by 7e-5.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.neurons import NoisyActivation

CLASSES = 3
Batch = tuple[Tensor, Tensor]
MakeLearner = Callable[..., Any]
Build = Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Case:
    """A network, its batches, a loss, and the options of the learner.

    Attributes:
        name: Without a slash.
        build: Makes the network, with noisy neurons, the same one each time.
        losses: From what the network returns for an expanded batch, and its targets.
        options: Of the learner.
        batch: From the number of the pass to (x, y).
        dim: Where x has its batch dimension.
        passes: How many passes add to the gradient.
        resets: Whether the membranes are reset between them.
        dtype: Of network and input.
    """

    name: str
    build: Callable[[], nn.Module]
    losses: Callable[[Any, Tensor], Tensor]
    options: dict[str, Any]
    batch: Callable[[int], Batch]
    dim: int = 0
    passes: int = 1
    resets: bool = True
    dtype: torch.dtype = torch.float32


def run(case: Case, make_learner: MakeLearner = NITLearner) -> dict[str, Tensor]:
    """The gradients that a case's passes leave, by parameter, and the mean loss of each as "loss".

    Parameters without a gradient are left out.

    Args:
        case: The case.
        make_learner: Attaches a learner to a network, with options by name.
    """
    net = case.build()
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases do what is rarely meant
        learner = make_learner(net, **case.options)
        for number in range(case.passes):
            if number and case.resets:
                learner.reset()
            x, y = (t.to(case.dtype) if t.is_floating_point() else t for t in case.batch(number))
            with learner.record():
                wide, target = learner.expand(x, dim=case.dim), learner.expand(y)
                values = case.losses(net(wide), target)
            losses.append(learner.backward(values))
        learner.close()
    found = {n: p.grad.detach().clone() for n, p in net.named_parameters() if p.grad is not None}
    return {**found, "loss": torch.stack(losses).detach()}


# --- networks ---------------------------------------------------------------------------------


class Loop(nn.Module):
    """Calls a body that keeps its own states step by step; returns all outputs, (T, N, *).

    Args:
        body: The body.
        steps: How often it sees one and the same input; None for an input of each step.
    """

    def __init__(self, body: nn.Module, steps: int | None) -> None:
        super().__init__()
        self.body, self.steps = body, steps

    def forward(self, x: Tensor) -> Tensor:
        inputs = x if self.steps is None else [x] * self.steps
        return torch.stack([self.body(now) for now in inputs])


class Explicit(nn.Module):
    """Dense snnTorch layers whose states are handed from step to step.

    Returns output spikes, output membranes, or both, each (T, N, *).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        make: Callable[[int], nn.Module],
        steps: int | None,
        returns: str = "spikes",
        recurrent: bool = False,
    ) -> None:
        super().__init__()
        pairs = list(pairwise(sizes))
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in pairs)
        self.neurons = nn.ModuleList(make(size) for _, size in pairs)
        self.steps, self.returns, self.kept = steps, returns, 0 if recurrent else 1

    def forward(self, x: Tensor) -> Any:
        states = [_as_tuple(neuron.reset_mem()) for neuron in self.neurons]
        spikes, membranes = [], []
        for now in x if self.steps is None else [x] * self.steps:
            signal = now
            for i, (synapse, cell) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                found = cell(synapse(signal), *states[i])
                signal, states[i] = found[0], found[self.kept :]
            spikes.append(signal)
            if self.returns != "spikes":
                membranes.append(states[-1][-1])
        if self.returns == "spikes":
            return torch.stack(spikes)
        if self.returns == "membranes":
            return torch.stack(membranes)
        return torch.stack(spikes), torch.stack(membranes)


class Multi(nn.Module):
    """A SpikingJelly body in step mode "m"; returns all outputs, (T, N, *).

    Args:
        body: The body.
        steps: T.
        how: How the input gets its time: "repeat", "expand", or "moving" if it has one. "halves":
            repeated, and put through in two pieces.
    """

    def __init__(self, body: nn.Module, steps: int, how: str) -> None:
        super().__init__()
        self.body, self.steps, self.how = body, steps, how
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "moving":
            return self.body(x)
        if self.how == "expand":
            return self.body(x.unsqueeze(0).expand(self.steps, *x.shape))
        x = x.unsqueeze(0).repeat(self.steps, *(1,) * x.dim())
        if self.how == "repeat":
            return self.body(x)
        return torch.cat([self.body(piece) for piece in x.chunk(2)])


class StaticCurrent(nn.Module):
    """A current that is computed once and is the same at all steps; returns (T, N, *)."""

    def __init__(self, first: nn.Module, rest: nn.Module, steps: int) -> None:
        super().__init__()
        self.first, self.rest, self.steps = first, rest, steps
        functional.set_step_mode(rest, "m")

    def forward(self, x: Tensor) -> Tensor:
        current = self.first(x)
        return self.rest(current.unsqueeze(0).expand(self.steps, *current.shape))


class Skip(nn.Module):
    """The second neuron's current is what comes out of its synapse, and what the first one got."""

    def __init__(self, first: nn.Module, one: nn.Module, second: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.first, self.one, self.second, self.two = first, one, second, two

    def forward(self, x: Tensor) -> Tensor:
        current = self.first(x)
        return self.two(self.second(self.one(current)) + current)


class SpikeSkip(nn.Module):
    """The spikes of the first neuron are added to those of the second."""

    def __init__(self, one: nn.Module, second: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.second, self.two = one, second, two

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.one(x)
        return self.two(self.second(spikes)) + spikes


class SharedLeaky(nn.Module):
    """One neuron of snnTorch in two places, with a membrane for each; returns spikes (T, N, 4)."""

    def __init__(self, steps: int, **options: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 4)
        self.neuron, self.steps = snn.Leaky(beta=0.8, **options), steps

    def forward(self, x: Tensor) -> Tensor:
        one = two = torch.zeros(len(x), 4, dtype=x.dtype)
        spikes = []
        for _ in range(self.steps):
            spike, one = self.neuron(self.first(x), one)
            spike, two = self.neuron(self.second(spike), two)
            spikes.append(spike)
        return torch.stack(spikes)


class Branch(nn.Module):
    """Two steps that go on from the membrane of one; returns the spikes of all, (3, N, 3)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.synapse = nn.Linear(5, CLASSES)
        self.neuron = snn.Leaky(beta=0.9, threshold=0.8, **options)

    def forward(self, x: Tensor) -> Tensor:
        current = self.synapse(x)
        start, membrane = self.neuron(current, self.neuron.reset_mem())
        first, _ = self.neuron(current, membrane)
        second, _ = self.neuron(0.5 * current, membrane)
        return torch.stack([start, first, second])


class SharedNode(nn.Module):
    """One node of SpikingJelly that is put through twice, and goes on where it was."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.first, self.second = layer.Linear(5, 4), layer.Linear(4, 4)
        self.node, self.readout = node, layer.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.node(self.second(self.node(self.first(x)))))


class StoredVoltages(nn.Module):
    """Returns the membranes that the last node has stored, (T, N, *), instead of its spikes."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.body[-1].v_seq


class Reshape(nn.Module):
    """Gives everything behind the batch dimension another shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


class Step(nn.Module):
    """The step function, which has no derivative."""

    def forward(self, v: Tensor) -> Tensor:
        return (v > 0).to(v.dtype)


def seq(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def leaky(reset: str, beta: float | Tensor = 0.8, **options: Any) -> nn.Module:
    """snnTorch's Leaky that keeps its own membrane."""
    return snn.Leaky(beta=beta, init_hidden=True, reset_mechanism=reset, **options)


def dense(make: Callable[[], nn.Module], *sizes: int, readout: bool = True) -> nn.Sequential:
    """torch's dense layers with a neuron behind each but, as a readout, the last."""
    return _dense(nn.Linear, make, sizes, readout)


def dense_sj(make: Callable[[], nn.Module], *sizes: int, readout: bool = True) -> nn.Sequential:
    """The same with SpikingJelly's layers."""
    return _dense(layer.Linear, make, sizes, readout)


def explicit(
    reset: str,
    steps: int | None = 4,
    *,
    returns: str = "spikes",
    sizes: Sequence[int] = (5, 8, 3),
    kind: type[nn.Module] = snn.Leaky,
    **options: Any,
) -> Build:
    """See `Explicit`, for one kind of neuron of snnTorch."""
    options = {"beta": 0.8, "reset_mechanism": reset, **options}
    return lambda: Explicit(sizes, lambda _: kind(**options), steps, returns)


def looped(
    reset: str,
    steps: int | None = 4,
    *,
    sizes: Sequence[int] = (),
    readout: bool = True,
    **options: Any,
) -> Build:
    """Dense layers of snnTorch's Leaky that keep their own membranes; see `Loop`."""
    sizes = sizes or _sizes(readout)
    return lambda: Loop(dense(lambda: leaky(reset, **options), *sizes, readout=readout), steps)


def single(
    make: Callable[[], nn.Module],
    steps: int | None = 4,
    *,
    sizes: Sequence[int] = (),
    readout: bool = True,
) -> Build:
    """Dense layers of a node of SpikingJelly in step mode "s"; see `Loop`."""
    sizes = sizes or _sizes(readout)
    return lambda: Loop(dense_sj(make, *sizes, readout=readout), steps)


def multi(
    make: Callable[[], nn.Module],
    how: str,
    steps: int = 4,
    *,
    sizes: Sequence[int] = (),
    readout: bool = True,
) -> Build:
    """Dense layers of a node of SpikingJelly in step mode "m"; see `Multi`."""
    sizes = sizes or _sizes(readout)
    return lambda: Multi(dense_sj(make, *sizes, readout=readout), steps, how)


def _sizes(readout: bool) -> Sequence[int]:
    return (5, 8, 6, CLASSES) if readout else (5, 8, CLASSES)


def recurrent(
    kind: type[nn.Module], sizes: Sequence[int], steps: int, returns: str, **options: Any
) -> nn.Module:
    """See `Explicit`, for RLeaky and RSynaptic with recurrent weights between all neurons."""

    def make(size: int) -> nn.Module:
        return kind(linear_features=size, **options)

    return Explicit(sizes, make, steps, returns, recurrent=True)


def _dense(
    synapse: type[nn.Module], make: Callable[[], nn.Module], sizes: Sequence[int], readout: bool
) -> nn.Sequential:
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        modules += [synapse(fan_in, fan_out), make()]
    return nn.Sequential(*(modules[:-1] if readout else modules))


def _as_tuple(states: Any) -> tuple[Tensor, ...]:
    return states if isinstance(states, tuple) else (states,)


def _built(
    body: Callable[[], nn.Module], sigma: float | dict[str, Any], dtype: torch.dtype, gain: float
) -> nn.Module:
    """The network of a body, with noisy neurons and weights that make them fire.

    The weights are drawn here, from whole numbers: every processor gets the same.
    """
    generator = torch.Generator().manual_seed(2024)
    net = body()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                _draw(module.weight, gain * bound, generator)
                if module.bias is not None:
                    _draw(module.bias, bound, generator)
    net = net.to(dtype)
    noisy = any(isinstance(module, NoisyActivation) for module in net.modules())
    return net if noisy else swap_neurons(net, sigma=sigma)


def _draw(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Uniform between -bound and bound."""
    most = 2**20
    whole = torch.randint(-most, most + 1, parameter.shape, generator=generator)
    parameter.copy_(whole.to(parameter.dtype) / most * bound)


def ramp(first: float, last: float, size: int) -> Tensor:
    """Numbers from the first to the last one, the same on every processor."""
    return torch.tensor([first + (last - first) * i / (size - 1) for i in range(size)])


# --- batches ----------------------------------------------------------------------------------


def flat(number: int) -> Batch:
    """(3, 5) and labels."""
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.rand(3, 5, generator=generator) * 2 - 0.5
    return x, torch.randint(CLASSES, (3,), generator=generator)


def moving(number: int, steps: int = 4) -> Batch:
    """(T, 3, 5), an input for each step, and labels."""
    generator = torch.Generator().manual_seed(200 + number)
    x = torch.rand(steps, 3, 5, generator=generator) * 2 - 0.5
    return x, torch.randint(CLASSES, (3,), generator=generator)


def images(number: int) -> Batch:
    """(2, 2, 6, 6) and labels."""
    generator = torch.Generator().manual_seed(300 + number)
    x = torch.rand(2, 2, 6, 6, generator=generator) * 2 - 0.5
    return x, torch.randint(CLASSES, (2,), generator=generator)


def moving_images(number: int) -> Batch:
    """(3, 2, 2, 6, 6), three steps, and labels."""
    generator = torch.Generator().manual_seed(500 + number)
    x = torch.rand(3, 2, 2, 6, 6, generator=generator) * 2 - 0.5
    return x, torch.randint(CLASSES, (2,), generator=generator)


def aims(number: int) -> Batch:
    """(3, 5) and what three membranes should be, (3, 3)."""
    x, _ = flat(number)
    generator = torch.Generator().manual_seed(400 + number)
    return x, torch.rand(3, CLASSES, generator=generator)


def moving_aims(number: int) -> Batch:
    """The same, with an input for each step."""
    return moving(number)[0], aims(number)[1]


def bad_aims(number: int) -> Batch:
    """The same, but those of the second pass are no numbers."""
    x, y = aims(number)
    return x, y * (float("nan") if number == 1 else 1.0)


# --- losses -----------------------------------------------------------------------------------


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Of counts, or of a readout that is summed over time."""
    return F.cross_entropy(out.sum(0)[:, :CLASSES], y, reduction="none")


def error(out: Tensor, y: Tensor) -> Tensor:
    """0 where the largest sum over time is the right one, and 1 elsewhere."""
    return (out.sum(0)[:, :CLASSES].argmax(1) != y).to(out.dtype)


def cost(out: Tensor, y: Tensor) -> Tensor:
    """Without a derivative, too: the error, and a price for each spike."""
    return error(out, y) + 0.1 * out.detach().sum(0).flatten(1).sum(1)


def last_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out[-1], y, reduction="none")


def latency(out: Tensor, y: Tensor) -> Tensor:
    """How long the right output takes to its first spike; T if it never comes."""
    own = out.detach()[:, torch.arange(len(y)), y]
    return (own.cumsum(0) == 0).sum(0).to(out.dtype)


def square(membranes: Tensor, y: Tensor) -> Tensor:
    """Of membranes from what they should be, summed over time."""
    return (membranes - y).square().mean(2).sum(0)


def last_square(membranes: Tensor, y: Tensor) -> Tensor:
    return (membranes[-1] - y).square().mean(1)


def counts_and_membranes(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    spikes, membranes = out
    return cross_entropy(spikes, y) + 0.1 * membranes[-1].square().sum(1)


def each_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """A loss for each step, (T, N)."""
    return torch.stack([F.cross_entropy(now, y, reduction="none") for now in out])


def each_cost(out: Tensor, y: Tensor) -> Tensor:
    """A loss for each step without a derivative, (T, N)."""
    now = out.detach()
    own = now[:, torch.arange(len(y)), y]
    return now.sum(2) - 1.7 * own


def plain_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


def plain_error(out: Tensor, y: Tensor) -> Tensor:
    return (out.argmax(1) != y).to(out.dtype)


# --- cases ------------------------------------------------------------------------------------

CASES: list[Case] = []
DOUBLE = torch.float64
_BATCH_DIMENSIONS: dict[Callable[[int], Batch], int] = {moving: 1, moving_aims: 1, moving_images: 1}


def case(
    name: str,
    body: Callable[[], nn.Module],
    losses: Callable[[Any, Tensor], Tensor],
    options: dict[str, Any],
    *,
    batch: Callable[[int], Batch] = flat,
    sigma: float | dict[str, Any] = 0.7,
    gain: float = 2.0,
    passes: int = 1,
    resets: bool = True,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Adds a case; `body` makes its network without noise."""
    build = partial(_built, body, sigma, dtype, gain)
    dim = _BATCH_DIMENSIONS.get(batch, 0)
    CASES.append(Case(name, build, losses, options, batch, dim, passes, resets, dtype))


def opts(
    replicas: int, seed: int, conditional: bool, credit: str = "none", **others: Any
) -> dict[str, Any]:
    """Options of a learner; those that every case says, and others."""
    own = {"replicas": replicas, "seed": seed, "conditional": conditional, "credit": credit}
    return {**own, "residual": 1, **others}


# snnTorch's Leaky: resets, states, losses.
case("leaky-subtract-error", explicit("subtract"), error, opts(4, 1, False))
case(
    "leaky-zero-membranes",
    explicit("zero", 3, returns="membranes"),
    square,
    opts(4, 2, False, baseline="batch-mean"),
    batch=aims,
)
case(
    "leaky-none-last-membrane",
    explicit("none", 5, returns="membranes"),
    last_square,
    opts(3, 3, False, baseline="none"),
    batch=aims,
)
case(
    "leaky-subtract-membranes-double",
    explicit("subtract", returns="membranes", sizes=(5, 6, 4, 3)),
    square,
    opts(4, 4, False, learn_sigma=True),
    batch=aims,
    dtype=DOUBLE,
)
case(
    "leaky-counts-and-membranes-readout",
    explicit("subtract", returns="both"),
    counts_and_membranes,
    opts(4, 5, False, "readout"),
)
case(
    "leaky-zero-counts-layers-conditional",
    explicit("zero", 6),
    cross_entropy,
    opts(4, 6, True, "layers"),
)
case(
    "leaky-subtract-counts-layers-conditional-double",
    explicit("subtract", sizes=(5, 7, 6, 3)),
    cross_entropy,
    opts(4, 7, True, "layers"),
    dtype=DOUBLE,
)
case("leaky-subtract-latency-conditional", explicit("subtract", 5), latency, opts(6, 8, True))
case(
    "leaky-none-cost-conditional-double",
    explicit("none"),
    cost,
    opts(4, 9, True, baseline="none"),
    dtype=DOUBLE,
)
case(
    "leaky-zero-moving-cost",
    explicit("zero", None),
    cost,
    opts(4, 10, False, baseline="none"),
    batch=moving,
)
case(
    "leaky-subtract-time",
    looped("subtract", 5),
    cross_entropy,
    opts(4, 11, True, "time"),
    sigma=1.2,
)
case(
    "leaky-zero-three-layers-time",
    looped("zero", 8, sizes=(5, 6, 6, 6, 3)),
    cross_entropy,
    opts(3, 212, True, "time"),
)
case("leaky-none-time", looped("none", beta=0.6), cross_entropy, opts(4, 13, True, "time"))
case(
    "leaky-subtract-counts-time-double",
    explicit("subtract", 6),
    cross_entropy,
    opts(4, 14, True, "time"),
    dtype=DOUBLE,
)
case(
    "leaky-zero-counts-time",
    explicit("zero", threshold=0.8),
    cross_entropy,
    opts(2, 15, True, "time"),
)
case(
    "leaky-subtract-moving-time",
    looped("subtract", None, sizes=(5, 8, 3)),
    last_cross_entropy,
    opts(4, 16, True, "time"),
    batch=moving,
    sigma=1.2,
)
case("leaky-zero-layers", looped("zero"), cross_entropy, opts(4, 17, False, "layers"))
case("leaky-none-readout", looped("none", beta=0.6), cross_entropy, opts(4, 18, False, "readout"))
case("leaky-zero-readout-conditional", looped("zero"), cross_entropy, opts(4, 19, True, "readout"))
case("leaky-early-reset-error", explicit("subtract", reset_delay=False), error, opts(4, 220, False))
case(
    "leaky-own-beta-and-threshold-time",
    lambda: Loop(
        seq(
            nn.Linear(5, 6),
            leaky("subtract", ramp(0.3, 0.95, 6), threshold=ramp(0.7, 1.2, 6)),
            nn.Linear(6, CLASSES),
        ),
        4,
    ),
    cross_entropy,
    opts(4, 21, True, "time"),
)

# Parameters of the neurons themselves.
case(
    "leaky-learned-beta-error",
    looped("subtract", readout=False, learn_beta=True),
    error,
    opts(4, 22, False),
)
case(
    "leaky-learned-betas-time",
    lambda: Loop(
        seq(
            nn.Linear(5, 6),
            leaky("zero", ramp(0.3, 0.95, 6), learn_beta=True),
            nn.Linear(6, CLASSES),
        ),
        5,
    ),
    cross_entropy,
    opts(4, 23, True, "time"),
)
case(
    "leaky-learned-factor-readout",
    looped("zero", learn_graded_spikes_factor=True),
    cross_entropy,
    opts(4, 24, False, "readout"),
)
case(
    "leaky-learned-factor-error-conditional-double",
    explicit("subtract", learn_graded_spikes_factor=True),
    error,
    opts(4, 25, True),
    dtype=DOUBLE,
)
case(
    "leaky-learned-factor-layers",
    explicit("none", 3, graded_spikes_factor=1.3, learn_graded_spikes_factor=True),
    cross_entropy,
    opts(4, 26, False, "layers"),
)

# Antithetic pairs.
case("leaky-antithetic-error", explicit("zero"), error, opts(6, 27, False, antithetic=True))
case(
    "leaky-antithetic-batch-mean",
    explicit("subtract", returns="membranes"),
    square,
    opts(2, 28, False, antithetic=True, baseline="batch-mean"),
    batch=aims,
)
case(
    "leaky-antithetic-layers",
    looped("subtract", sizes=(5, 6, 6, 6, 3)),
    cross_entropy,
    opts(8, 29, False, "layers", antithetic=True, recompute=False),
)
case(
    "leaky-antithetic-time",
    looped("subtract", 5, sizes=(5, 8, 3)),
    cross_entropy,
    opts(6, 30, True, "time", antithetic=True),
    sigma=1.2,
)

# NIT-S.
case("leaky-nit-s-error", explicit("subtract"), error, opts(4, 31, False, rule="nit-s"))
case(
    "leaky-nit-s-readout",
    looped("zero"),
    cross_entropy,
    opts(4, 32, False, "readout", rule="nit-s"),
)
case(
    "leaky-nit-s-layers-antithetic-double",
    looped("subtract"),
    cross_entropy,
    opts(4, 233, False, "layers", rule="nit-s", antithetic=True),
    dtype=DOUBLE,
)
# No case of NIT-S with credit "time": since commit 7aa0648 its coefficients are followed through
# time, another control variate of the same expectation.
case(
    "leaky-nit-s-learned-shared-sigma",
    explicit("zero"),
    cost,
    opts(4, 35, False, rule="nit-s", learn_sigma="shared", baseline="batch-mean"),
)

# Learned noise levels, and levels of each neuron.
case("leaky-learned-sigma-error", explicit("subtract"), error, opts(4, 36, False, learn_sigma=True))
case(
    "leaky-shared-sigma-readout",
    looped("zero"),
    cross_entropy,
    opts(4, 37, False, "readout", learn_sigma="shared"),
)
case(
    "leaky-learned-sigma-layers",
    looped("subtract"),
    cross_entropy,
    opts(4, 38, False, "layers", learn_sigma=True),
)
case(
    "leaky-learned-sigma-time",
    looped("zero"),
    cross_entropy,
    opts(4, 39, True, "time", learn_sigma=True),
)
case(
    "leaky-shared-sigma-time-double",
    looped("subtract"),
    cross_entropy,
    opts(4, 40, True, "time", learn_sigma="shared"),
    dtype=DOUBLE,
)
case(
    "leaky-learned-sigma-cost-conditional",
    explicit("subtract"),
    cost,
    opts(4, 41, True, learn_sigma=True),
)
case(
    "leaky-sigma-of-each-neuron-time",
    looped("subtract"),
    cross_entropy,
    opts(4, 42, True, "time"),
    sigma={"body.1": ramp(0.9, 1.4, 8), "body.3": ramp(1.5, 1.0, 6)},
)
case(
    "leaky-sigma-of-each-neuron-learned-error-double",
    explicit("zero"),
    error,
    opts(4, 243, False, learn_sigma=True),
    sigma={"neurons.0": ramp(0.4, 0.9, 8), "neurons.1": 0.6},
    dtype=DOUBLE,
)

# Little noise: outcomes that are next to certain.
case(
    "leaky-little-noise-error-conditional",
    explicit("subtract"),
    cost,
    opts(4, 361, True),
    sigma=0.2,
)
case(
    "leaky-subtract-little-noise-time-double",
    looped("subtract"),
    cross_entropy,
    opts(4, 162, True, "time", learn_sigma=True),
    sigma=0.3,
    dtype=DOUBLE,
)
case(
    "leaky-zero-little-noise-time-double",
    looped("zero"),
    cross_entropy,
    opts(4, 363, True, "time"),
    sigma=0.3,
    dtype=DOUBLE,
)

# Losses of each step.
case(
    "leaky-per-step-cost",
    explicit("subtract", 5),
    each_cost,
    opts(4, 244, False, per_step_losses=True),
)
case(
    "leaky-per-step-readout-conditional",
    looped("zero"),
    each_cross_entropy,
    opts(4, 45, True, per_step_losses=True),
)
case(
    "leaky-per-step-batch-mean-recomputed",
    explicit("zero"),
    each_cost,
    opts(4, 46, False, per_step_losses=True, baseline="batch-mean", recompute=True),
)
case(
    "leaky-per-step-learned-sigma-antithetic-double",
    looped("subtract", sizes=(5, 8, 3)),
    each_cross_entropy,
    opts(4, 47, False, per_step_losses=True, learn_sigma=True, antithetic=True),
    dtype=DOUBLE,
)

# Noise from a table.
case("leaky-noise-reuse-error", explicit("zero"), error, opts(4, 248, False, noise_reuse=True))
case(
    "leaky-noise-reuse-time",
    looped("subtract"),
    cross_entropy,
    opts(4, 49, True, "time", noise_reuse=True),
    sigma=1.2,
)
case(
    "leaky-noise-reuse-antithetic-layers-two-passes",
    looped("zero", sizes=(5, 8, 3)),
    cross_entropy,
    opts(4, 50, False, "layers", noise_reuse=True, antithetic=True),
    passes=2,
)
case(
    "leaky-noise-reuse-nit-s-recomputed",
    explicit("subtract"),
    cost,
    opts(4, 51, False, noise_reuse=True, rule="nit-s", recompute=True),
)

# Noise that is drawn again instead of kept.
case("leaky-recomputed-error", explicit("subtract", 6), error, opts(4, 52, False, recompute=True))
case(
    "leaky-recomputed-layers",
    looped("zero"),
    cross_entropy,
    opts(4, 53, False, "layers", recompute=True),
)
case(
    "leaky-recomputed-learned-sigma-antithetic-double",
    explicit("none"),
    cost,
    opts(4, 54, False, recompute=True, learn_sigma=True, antithetic=True, baseline="none"),
    dtype=DOUBLE,
)
case("leaky-kept-error", explicit("zero"), error, opts(4, 55, False, recompute=False))
case(
    "leaky-auto-time",
    looped("zero", sizes=(5, 8, 3)),
    cross_entropy,
    opts(4, 56, True, "time", recompute="auto"),
)

# The general route.
case("leaky-general-error", explicit("subtract"), error, opts(4, 57, False, route="general"))
case(
    "leaky-general-layers-antithetic",
    looped("zero"),
    cross_entropy,
    opts(4, 58, False, "layers", route="general", antithetic=True),
)
case(
    "leaky-general-time",
    looped("subtract"),
    cross_entropy,
    opts(4, 59, True, "time", route="general"),
    sigma=1.2,
)
case(
    "leaky-general-nit-s-readout",
    looped("zero", sizes=(5, 8, 3)),
    cross_entropy,
    opts(4, 60, False, "readout", route="general", rule="nit-s"),
)

# Several passes.
case(
    "leaky-two-passes-reset", looped("subtract", readout=False), error, opts(4, 61, False), passes=2
)
case(
    "leaky-two-passes-carried-time",
    looped("subtract", 3, sizes=(5, 8, 3)),
    cross_entropy,
    opts(4, 462, True, "time"),
    passes=2,
    resets=False,
    sigma=1.2,
)
case(
    "leaky-three-passes-one-skipped",
    looped("zero", 3, readout=False, output=False),
    lambda out, y: (out.sum(0) - y).square().sum(1),
    opts(4, 263, False, on_nonfinite="skip"),
    batch=bad_aims,
    passes=3,
)
case(
    "leaky-two-passes-unchecked-readout",
    looped("zero", 3, sizes=(5, 8, 3)),
    cross_entropy,
    opts(4, 64, False, "readout", on_nonfinite="write"),
    passes=2,
)

# Other uses of a neuron.
case(
    "leaky-shared-error", lambda: SharedLeaky(4, reset_mechanism="zero"), error, opts(4, 65, False)
)
case(
    "leaky-shared-time",
    lambda: SharedLeaky(4, reset_mechanism="subtract"),
    cross_entropy,
    opts(4, 66, True, "time", learn_sigma="shared"),
)
case("leaky-branch-conditional", lambda: Branch(reset_mechanism="zero"), cost, opts(6, 67, True))
case(
    "leaky-branch-time-double",
    lambda: Branch(reset_mechanism="subtract"),
    cross_entropy,
    opts(4, 68, True, "time"),
    dtype=DOUBLE,
)
case(
    "leaky-skip-layers",
    lambda: Loop(
        seq(
            Skip(nn.Linear(5, 6), leaky("zero"), nn.Linear(6, 6), leaky("subtract")),
            nn.Linear(6, CLASSES),
        ),
        4,
    ),
    cross_entropy,
    opts(4, 69, False, "layers"),
)
case(
    "leaky-skip-time",
    lambda: Loop(
        seq(
            Skip(nn.Linear(5, 6), leaky("zero"), nn.Linear(6, 6), leaky("subtract")),
            nn.Linear(6, CLASSES),
        ),
        4,
    ),
    cross_entropy,
    opts(4, 70, True, "time"),
    sigma=1.2,
)
case(
    "leaky-dense-block-error",
    lambda: Loop(
        seq(nn.Linear(5, 6), nn.LayerNorm(6), leaky("zero"), nn.Linear(6, 3), leaky("zero")), 4
    ),
    error,
    opts(4, 71, False, learn_sigma=True),
)

# snnTorch with convolutions.
case(
    "leaky-conv-flatten-error",
    lambda: Loop(
        seq(
            nn.Conv2d(2, 3, 3, stride=2),
            leaky("zero"),
            nn.Flatten(),
            nn.Linear(12, 3),
            leaky("zero"),
        ),
        3,
    ),
    error,
    opts(4, 72, False, learn_sigma=True),
    batch=images,
)
case(
    "leaky-conv-pool-time",
    lambda: Loop(
        seq(
            nn.Conv2d(2, 3, 3, padding=1),
            leaky("subtract"),
            nn.AvgPool2d(2),
            nn.Conv2d(3, 4, 2),
            leaky("zero"),
            Reshape(16),
            nn.Linear(16, CLASSES),
        ),
        3,
    ),
    cross_entropy,
    opts(4, 73, True, "time"),
    batch=images,
)
case(
    "leaky-conv-pooled-current-layers-nit-s",
    lambda: Loop(
        seq(
            nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), leaky("zero"), nn.Flatten(), nn.Linear(12, CLASSES)
        ),
        3,
    ),
    cross_entropy,
    opts(4, 74, False, "layers", rule="nit-s"),
    batch=images,
)

# Other neurons of snnTorch.
case(
    "lapicque-zero-error", explicit("zero", kind=snn.Lapicque), error, opts(4, 75, False), gain=4.0
)
case(
    "lapicque-subtract-time",
    lambda: Loop(
        dense(
            lambda: snn.Lapicque(R=4.0, C=1.2, time_step=0.8, init_hidden=True), 5, 8, 6, CLASSES
        ),
        4,
    ),
    cross_entropy,
    opts(4, 276, True, "time"),
    sigma=1.2,
)
case(
    "lapicque-none-membranes-double",
    explicit("none", returns="membranes", kind=snn.Lapicque),
    square,
    opts(4, 77, False, learn_sigma="shared", baseline="batch-mean"),
    batch=aims,
    dtype=DOUBLE,
)
case(
    "lapicque-zero-layers-conditional",
    lambda: Loop(
        dense(
            lambda: snn.Lapicque(
                R=4.0, C=1.2, time_step=0.8, init_hidden=True, reset_mechanism="zero"
            ),
            *(5, 8, 6, CLASSES),
        ),
        4,
    ),
    cross_entropy,
    opts(4, 78, True, "layers"),
)
case(
    "synaptic-zero-learned-error",
    explicit("zero", kind=snn.Synaptic, alpha=0.6, learn_alpha=True, learn_beta=True),
    error,
    opts(4, 79, False),
)
case(
    "synaptic-subtract-time",
    lambda: Loop(
        dense(lambda: snn.Synaptic(alpha=0.6, beta=0.8, init_hidden=True), 5, 8, 6, CLASSES), 4
    ),
    cross_entropy,
    opts(4, 80, True, "time"),
    sigma=1.2,
)
case(
    "synaptic-none-moving-membranes-double",
    explicit("none", None, returns="membranes", kind=snn.Synaptic, alpha=0.6),
    square,
    opts(4, 81, False, baseline="batch-mean"),
    batch=moving_aims,
    dtype=DOUBLE,
)
case(
    "synaptic-zero-nit-s-layers",
    explicit("zero", kind=snn.Synaptic, alpha=0.6),
    cross_entropy,
    opts(4, 82, False, "layers", rule="nit-s"),
)
case(
    "alpha-subtract-error",
    explicit("subtract", 5, kind=snn.Alpha, alpha=0.9),
    error,
    opts(4, 83, False),
    gain=4.0,
)
case(
    "alpha-zero-layers-learned-sigma",
    explicit("zero", 5, kind=snn.Alpha, alpha=0.9),
    cross_entropy,
    opts(4, 84, False, "layers", learn_sigma=True),
    gain=4.0,
)
case(
    "alpha-none-time-double",
    explicit("none", 5, kind=snn.Alpha, alpha=0.9, learn_beta=True),
    cross_entropy,
    opts(4, 85, True, "time"),
    gain=4.0,
    dtype=DOUBLE,
)
case(
    "rleaky-subtract-time",
    lambda: Loop(
        seq(
            nn.Linear(5, 6),
            snn.RLeaky(beta=0.8, linear_features=6, init_hidden=True),
            nn.Linear(6, CLASSES),
        ),
        5,
    ),
    cross_entropy,
    opts(4, 86, True, "time"),
    sigma=1.2,
)
case(
    "rleaky-zero-counts-time-double",
    lambda: recurrent(snn.RLeaky, (5, 6, 3), 4, "spikes", beta=0.8, reset_mechanism="zero"),
    cross_entropy,
    opts(4, 87, True, "time", learn_sigma=True),
    dtype=DOUBLE,
)
case(
    "rleaky-one-to-one-error",
    lambda: Loop(
        dense(
            lambda: snn.RLeaky(beta=0.8, all_to_all=False, V=0.6, init_hidden=True),
            *(5, 6, 3),
            readout=False,
        ),
        4,
    ),
    error,
    opts(4, 88, False),
)
case(
    "rleaky-none-membranes-learned-sigma",
    lambda: recurrent(
        snn.RLeaky, (5, 6, 3), 4, "membranes", beta=0.7, reset_mechanism="none", learn_beta=True
    ),
    square,
    opts(4, 89, False, learn_sigma=True),
    batch=aims,
)
case(
    "rleaky-nit-s-recomputed-readout",
    lambda: recurrent(snn.RLeaky, (5, 6, 3), 4, "spikes", beta=0.8, reset_mechanism="zero"),
    cross_entropy,
    opts(4, 90, False, "readout", rule="nit-s", recompute=True),
)
case(
    "rleaky-convolution-error",
    lambda: Loop(
        seq(
            nn.Conv2d(2, 3, 3),
            snn.RLeaky(
                beta=0.8, conv2d_channels=3, kernel_size=3, init_hidden=True, reset_mechanism="zero"
            ),
            nn.Flatten(),
            nn.Linear(48, 3),
            leaky("subtract"),
        ),
        3,
    ),
    error,
    opts(2, 291, False),
    batch=images,
)
case(
    "rsynaptic-zero-time",
    lambda: recurrent(
        snn.RSynaptic, (5, 6, 3), 4, "spikes", alpha=0.6, beta=0.8, reset_mechanism="zero"
    ),
    cross_entropy,
    opts(4, 92, True, "time"),
)
case(
    "rsynaptic-none-layers-antithetic",
    lambda: recurrent(
        snn.RSynaptic, (5, 6, 3), 4, "spikes", alpha=0.5, beta=0.6, reset_mechanism="none"
    ),
    cross_entropy,
    opts(4, 177, False, "layers", antithetic=True),
)
case(
    "rleaky-subtract-layers-conditional-double",
    lambda: recurrent(snn.RLeaky, (5, 6, 3), 4, "spikes", beta=0.8),
    cross_entropy,
    opts(4, 178, True, "layers"),
    dtype=DOUBLE,
)
case(
    "rsynaptic-subtract-membranes",
    lambda: recurrent(snn.RSynaptic, (5, 6, 3), 3, "membranes", alpha=0.6, beta=0.8),
    square,
    opts(4, 93, False, learn_sigma="shared", recompute=False),
    batch=aims,
)
case(
    "rsynaptic-subtract-error-conditional-antithetic",
    lambda: recurrent(snn.RSynaptic, (5, 6, 3), 4, "spikes", alpha=0.6, beta=0.8),
    error,
    opts(4, 94, True, antithetic=True),
)


# SpikingJelly.
def if_node(v_reset: float | None = 0.0, **options: Any) -> nn.Module:
    return neuron.IFNode(v_reset=v_reset, **options)


def lif(v_reset: float | None = 0.0, decay_input: bool = False, **options: Any) -> nn.Module:
    return neuron.LIFNode(v_reset=v_reset, decay_input=decay_input, **options)


def plif(v_reset: float | None = 0.0, decay_input: bool = False, **options: Any) -> nn.Module:
    return neuron.ParametricLIFNode(v_reset=v_reset, decay_input=decay_input, **options)


case("if-hard-s-error", single(if_node, readout=False), error, opts(4, 101, False))
case(
    "if-soft-s-time",
    single(lambda: if_node(None)),
    cross_entropy,
    opts(4, 702, True, "time"),
    sigma=1.2,
)
case(
    "if-soft-m-repeat-time",
    multi(lambda: if_node(None), "repeat", 5),
    cross_entropy,
    opts(4, 103, True, "time"),
    sigma=1.2,
)
case(
    "if-hard-m-expand-readout-antithetic",
    multi(if_node, "expand"),
    cross_entropy,
    opts(4, 104, False, "readout", antithetic=True, recompute="auto"),
)
case(
    "if-hard-m-counts-layers-conditional-double",
    multi(if_node, "repeat", readout=False),
    cross_entropy,
    opts(4, 105, True, "layers"),
    dtype=DOUBLE,
)
case(
    "lif-hard-m-expand-time",
    multi(lambda: lif(0.0, True), "expand", 5),
    cross_entropy,
    opts(4, 106, True, "time"),
    gain=4.0,
)
case(
    "lif-hard-m-three-layers-time",
    multi(lif, "repeat", 8, sizes=(5, 6, 6, 6, 3)),
    cross_entropy,
    opts(3, 507, True, "time"),
)
case(
    "lif-soft-m-moving-time-double",
    multi(lambda: lif(None), "moving"),
    cross_entropy,
    opts(4, 108, True, "time"),
    batch=moving,
    dtype=DOUBLE,
)
case(
    "lif-0.1-m-expand-error-conditional",
    multi(lambda: lif(0.1), "expand", readout=False),
    error,
    opts(4, 109, True),
)
case(
    "lif-0.1-m-decay-input-time-double",
    multi(lambda: lif(0.1, True), "repeat", readout=False),
    cross_entropy,
    opts(4, 110, True, "time"),
    gain=4.0,
    dtype=DOUBLE,
)
case(
    "lif-0.1-s-decay-input-cost",
    single(lambda: lif(0.1, True), readout=False),
    cost,
    opts(4, 111, False, baseline="none"),
    gain=4.0,
)
case(
    "lif-hard-s-moving-layers-conditional",
    single(lif, None),
    cross_entropy,
    opts(4, 112, True, "layers", on_nonfinite="skip"),
    batch=moving,
)
case(
    "lif-soft-s-time",
    single(lambda: lif(None)),
    cross_entropy,
    opts(4, 172, True, "time"),
    sigma=1.2,
)
case(
    "lif-0.1-s-decay-input-time",
    single(lambda: lif(0.1, True)),
    cross_entropy,
    opts(4, 173, True, "time"),
    gain=4.0,
)
case(
    "lif-0.1-m-moving-readout-learned-sigma",
    multi(lambda: lif(0.1), "moving"),
    cross_entropy,
    opts(4, 174, False, "readout", learn_sigma=True),
    batch=moving,
)
case(
    "lif-soft-m-layers",
    multi(lambda: lif(None), "repeat"),
    cross_entropy,
    opts(4, 113, False, "layers"),
)
case(
    "lif-hard-m-moving-shared-sigma-readout",
    multi(lif, "moving"),
    cross_entropy,
    opts(4, 114, False, "readout", learn_sigma="shared"),
    batch=moving,
)
case(
    "lif-hard-m-expand-learned-sigma-error",
    multi(lif, "expand", readout=False),
    error,
    opts(4, 115, False, learn_sigma=True),
)
case(
    "lif-hard-m-learned-sigma-time",
    multi(lif, "repeat"),
    cross_entropy,
    opts(4, 116, True, "time", learn_sigma=True),
)
case(
    "lif-soft-m-shared-sigma-time-antithetic",
    multi(lambda: lif(None), "expand"),
    cross_entropy,
    opts(4, 117, True, "time", learn_sigma="shared", antithetic=True),
    sigma=1.2,
)
case(
    "lif-sigma-of-each-neuron-m-readout-conditional",
    multi(lif, "repeat", sizes=(5, 8, 3)),
    cross_entropy,
    opts(4, 118, True, "readout"),
    sigma={"body.1": ramp(0.4, 0.9, 8)},
)
case(
    "lif-hard-m-nit-s-error",
    multi(lif, "expand", readout=False),
    error,
    opts(4, 119, False, rule="nit-s"),
)
case(
    "lif-soft-m-nit-s-readout-recomputed",
    multi(lambda: lif(None), "repeat"),
    cross_entropy,
    opts(4, 120, False, "readout", rule="nit-s", recompute=True),
)
case(
    "lif-soft-m-general-nit-s-layers",
    multi(lambda: lif(None), "expand"),
    cross_entropy,
    opts(4, 166, False, "layers", rule="nit-s", route="general"),
)
case(
    "lif-soft-m-learned-sigma-cost-conditional",
    multi(lambda: lif(None), "repeat", readout=False),
    cost,
    opts(4, 167, True, learn_sigma=True, baseline="batch-mean"),
)
case(
    "lif-static-current-time",
    lambda: StaticCurrent(
        nn.Linear(5, 6), seq(lif(), layer.Linear(6, 6), lif(), layer.Linear(6, 3)), 4
    ),
    cross_entropy,
    opts(4, 168, True, "time"),
)
case(
    "lif-static-current-error",
    lambda: StaticCurrent(
        seq(nn.Flatten(), nn.Linear(72, 5)), seq(lif(), layer.Linear(5, 3), if_node(None)), 4
    ),
    error,
    opts(4, 569, False),
    batch=images,
    gain=1.0,
)
case(
    "if-hard-s-readout-recomputed",
    single(if_node),
    cross_entropy,
    opts(4, 170, False, "readout", recompute=True),
)
case(
    "lif-hard-m-per-step-cost",
    multi(lif, "expand", 5, readout=False),
    each_cost,
    opts(4, 121, False, per_step_losses=True),
)
case(
    "lif-soft-m-per-step-readout-conditional",
    multi(lambda: lif(None), "repeat"),
    each_cross_entropy,
    opts(4, 322, True, per_step_losses=True),
)
case(
    "lif-hard-m-per-step-learned-sigma-conditional",
    multi(lif, "expand", readout=False),
    each_cost,
    opts(4, 164, True, per_step_losses=True, learn_sigma=True),
)
case(
    "lif-hard-m-per-step-recomputed-nit-s",
    multi(lif, "repeat", readout=False),
    each_cost,
    opts(4, 123, False, per_step_losses=True, recompute=True, rule="nit-s", baseline="batch-mean"),
)
case(
    "lif-hard-m-noise-reuse-error",
    multi(lif, "repeat", readout=False),
    error,
    opts(4, 124, False, noise_reuse=True, recompute=False),
)
case(
    "lif-hard-m-noise-reuse-time-two-passes",
    multi(lif, "repeat"),
    cross_entropy,
    opts(4, 125, True, "time", noise_reuse=True),
    passes=2,
)
case(
    "lif-hard-m-noise-reuse-per-step-learned-sigma",
    multi(lif, "expand", readout=False),
    each_cost,
    opts(4, 126, False, noise_reuse=True, per_step_losses=True, learn_sigma=True),
)
case(
    "lif-hard-m-recomputed-error",
    multi(lif, "expand", 6, readout=False),
    error,
    opts(4, 527, False, recompute=True),
)
case(
    "lif-soft-m-recomputed-learned-sigma-layers",
    multi(lambda: lif(None), "repeat"),
    cross_entropy,
    opts(4, 128, False, "layers", recompute=True, learn_sigma=True),
)
case(
    "lif-hard-m-general-time",
    multi(lif, "repeat"),
    cross_entropy,
    opts(4, 529, True, "time", route="general"),
)
case(
    "lif-soft-m-general-recomputed-error",
    multi(lambda: lif(None), "expand", readout=False),
    error,
    opts(4, 130, False, route="general", recompute=True),
)
case("lif-hard-m-halves-time", multi(lif, "halves", 6), cross_entropy, opts(4, 131, True, "time"))
case(
    "lif-soft-m-halves-carried-conditional-double",
    multi(lambda: lif(None), "halves", readout=False),
    cost,
    opts(4, 132, True),
    passes=2,
    resets=False,
    dtype=DOUBLE,
)
case(
    "lif-hard-m-two-passes-carried-layers",
    multi(lif, "repeat", 3, sizes=(5, 8, 3)),
    cross_entropy,
    opts(4, 133, False, "layers"),
    passes=2,
    resets=False,
)
case(
    "lif-shared-m-time",
    lambda: Multi(SharedNode(lif()), 4, "repeat"),
    cross_entropy,
    opts(4, 134, True, "time"),
)
case(
    "if-soft-shared-m-readout",
    lambda: Multi(SharedNode(if_node(None)), 4, "expand"),
    cross_entropy,
    opts(4, 135, False, "readout"),
)
case(
    "lif-stored-voltages-m-square",
    lambda: Multi(
        StoredVoltages(dense_sj(lambda: lif(store_v_seq=True), 5, 8, 3, readout=False)), 4, "repeat"
    ),
    square,
    opts(4, 136, False, baseline="batch-mean"),
    batch=aims,
)
case(
    "plif-soft-m-time",
    multi(lambda: plif(None), "repeat"),
    cross_entropy,
    opts(4, 137, True, "time"),
    sigma=1.2,
)
case(
    "plif-0.1-s-decay-input-error",
    single(lambda: plif(0.1, True), readout=False),
    error,
    opts(4, 138, False),
    gain=4.0,
)
case(
    "plif-hard-m-expand-layers-double",
    multi(lambda: plif(0.0, True), "expand"),
    cross_entropy,
    opts(4, 139, False, "layers"),
    gain=4.0,
    dtype=DOUBLE,
)
case(
    "plif-0.1-s-time-learned-sigma",
    single(lambda: plif(0.1)),
    cross_entropy,
    opts(4, 1575, True, "time", learn_sigma="shared"),
)
case(
    "plif-soft-m-readout-conditional",
    multi(lambda: plif(None, True), "expand"),
    cross_entropy,
    opts(4, 176, True, "readout"),
    gain=4.0,
)
case(
    "plif-hard-s-nit-s-learned-sigma",
    single(plif, readout=False),
    cost,
    opts(4, 140, False, rule="nit-s", learn_sigma=True, recompute=True),
)


def two_convolutions(make: Callable[[], nn.Module]) -> nn.Module:
    return seq(
        layer.Conv2d(2, 3, 3, padding=1),
        make(),
        layer.AvgPool2d(2),
        layer.Conv2d(3, 4, 2),
        make(),
        layer.Flatten(),
        layer.Linear(16, CLASSES),
    )


case(
    "conv-lif-m-time",
    lambda: Multi(two_convolutions(lif), 3, "repeat"),
    cross_entropy,
    opts(4, 341, True, "time", on_nonfinite="write"),
    batch=images,
)
case(
    "conv-lif-soft-m-expand-learned-sigma-time",
    lambda: Multi(two_convolutions(lambda: lif(None)), 3, "expand"),
    cross_entropy,
    opts(4, 142, True, "time", learn_sigma=True),
    batch=images,
    sigma=1.2,
)
case(
    "conv-lif-m-moving-sigma-of-each-channel-readout",
    lambda: Multi(two_convolutions(lif), 3, "moving"),
    cross_entropy,
    opts(4, 571, False, "readout"),
    batch=moving_images,
    sigma={"body.1": ramp(0.5, 0.9, 3).view(3, 1, 1), "body.4": 0.6},
)
case(
    "conv-lif-m-general-layers",
    lambda: Multi(two_convolutions(lif), 3, "repeat"),
    cross_entropy,
    opts(4, 343, False, "layers", route="general"),
    batch=images,
    sigma=1.2,
)
case(
    "conv-if-s-recomputed-error",
    lambda: Loop(seq(*two_convolutions(if_node), if_node()), 3),
    error,
    opts(4, 544, False, recompute=True),
    batch=images,
)
case(
    "conv-if-m-nit-s-cost",
    lambda: Multi(seq(*two_convolutions(if_node), if_node()), 3, "expand"),
    cost,
    opts(2, 145, False, rule="nit-s", baseline="none"),
    batch=images,
)
case(
    "conv-batch-norm-if-m-readout",
    lambda: Multi(
        seq(
            layer.Conv2d(2, 3, 3, bias=False),
            layer.BatchNorm2d(3),
            if_node(),
            layer.MaxPool2d(2),
            layer.Flatten(),
            layer.Linear(12, CLASSES),
        ),
        3,
        "repeat",
    ),
    cross_entropy,
    opts(4, 146, False, "readout"),
    batch=images,
)
case(
    "conv-batch-norm-pool-lif-m-time-double",
    lambda: Multi(
        seq(
            layer.Conv2d(2, 3, 3, bias=False),
            layer.BatchNorm2d(3),
            layer.AvgPool2d(2),
            lif(None),
            layer.Flatten(),
            layer.Linear(12, CLASSES),
        ),
        3,
        "expand",
    ),
    cross_entropy,
    opts(4, 147, True, "time"),
    batch=images,
    dtype=DOUBLE,
)
case(
    "conv-skip-lif-m-time",
    lambda: Multi(
        seq(
            Skip(layer.Conv2d(2, 3, 3), lif(), layer.Conv2d(3, 3, 3, padding=1), lif(None)),
            layer.Flatten(),
            layer.Linear(48, CLASSES),
        ),
        3,
        "repeat",
    ),
    cross_entropy,
    opts(2, 348, True, "time"),
    batch=images,
    gain=1.5,
)
case(
    "spike-skip-lif-m-layers",
    lambda: Multi(
        seq(
            layer.Linear(5, 6),
            SpikeSkip(lif(), layer.Linear(6, 6), lif(None)),
            layer.Linear(6, CLASSES),
        ),
        4,
        "repeat",
    ),
    cross_entropy,
    opts(4, 349, False, "layers"),
)
case(
    "skip-if-m-error-learned-sigma",
    lambda: Multi(
        seq(
            Skip(layer.Linear(5, 6), if_node(), layer.Linear(6, 6), if_node(None)),
            layer.Linear(6, CLASSES),
            if_node(),
        ),
        4,
        "expand",
    ),
    error,
    opts(4, 350, False, learn_sigma=True),
)

# Artificial networks.
case(
    "relu-error",
    lambda: seq(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, CLASSES)),
    plain_error,
    opts(6, 351, False, recompute="auto"),
)
case(
    "relu-cross-entropy-learned-sigma-antithetic",
    lambda: seq(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, CLASSES)),
    plain_cross_entropy,
    opts(6, 152, False, learn_sigma=True, antithetic=True),
)
case(
    "relu-nit-s-recomputed-two-passes",
    lambda: seq(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
    plain_cross_entropy,
    opts(6, 153, False, rule="nit-s", recompute=True),
    passes=2,
)
case(
    "prelu-batch-mean-double",
    lambda: seq(nn.Linear(5, 8), nn.PReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, CLASSES)),
    plain_cross_entropy,
    opts(4, 154, False, baseline="batch-mean", learn_sigma="shared"),
    dtype=DOUBLE,
)
case(
    "relu-noise-reuse-general-cross-entropy",
    lambda: seq(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
    plain_cross_entropy,
    opts(6, 155, False, noise_reuse=True, route="general"),
)
case(
    "relu-convolution-error",
    lambda: seq(
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, CLASSES),
    ),
    plain_error,
    opts(6, 156, False, learn_sigma=True),
    batch=images,
)
case(
    "step-cross-entropy",
    lambda: seq(
        nn.Linear(5, 8),
        NoisyActivation(Step(), sigma=0.5),
        nn.Linear(8, 6),
        NoisyActivation(Step(), sigma=ramp(0.4, 0.8, 6)),
        nn.Linear(6, CLASSES),
    ),
    plain_cross_entropy,
    opts(6, 157, False, baseline="none"),
)
case(
    "step-noisy-logits-error-learned-sigma",
    lambda: seq(
        nn.Linear(5, 8),
        NoisyActivation(Step(), sigma=0.5),
        nn.Linear(8, CLASSES),
        NoisyActivation(nn.Identity(), sigma=0.8),
    ),
    plain_error,
    opts(6, 158, False, learn_sigma=True),
)
