"""The likelihood-ratio estimate of neurons with synaptic currents, recurrence or a learnable tau.

As `test_unbiased`, with the truth of `oracle_memory`: each case draws PASSES independent
estimates of REPLICAS replicas for each of two samples, which are in the batch COPIES times, 48,000
rows in all, and compares their mean with the exact gradient in units of its own standard error.
With 48 passes that is a t statistic with 47 degrees of freedom; |t| < 6 for each of about 20
parameters fails by chance with probability below 1e-5 per case. The estimate must also be sharp:
its standard error is below SHARP of the gradient's norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import oracle
import oracle_memory as om
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.neuron import ParametricLIFNode
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons

pytestmark = pytest.mark.montecarlo

PASSES, REPLICAS, COPIES, SAMPLES, STEPS = 48, 20, 25, 2, 3
BOUND, SHARP = 6.0, 0.1
SIGMA = (0.7, 0.9)
TARGET = (1.0, -0.5)
QUADRATURE = om.Quadrature(reach=5.5)  # right to 1e-6


@dataclass
class Case:
    """A two-layer network in a framework and in the oracle, and what the learner does with it.

    moving: the input changes in time.
    """

    nodes: tuple[nn.Module, nn.Module]
    truth: tuple[om.Neuron, om.Neuron]
    loss: str = "counts"
    moving: bool = False
    multi_step: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class Net(nn.Module):
    """(N, 3), or (N, T, 3) if it moves -> two hidden noisy neurons -> two output noisy neurons."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.synapse1, self.synapse2 = nn.Linear(3, 2), nn.Linear(2, 2)
        self.neuron1, self.neuron2 = case.nodes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes (T, N, 2) and, of snnTorch's neurons, the last membranes (N, 2) of the output."""
        inputs = list(x.unbind(1)) if self.case.moving else [x] * STEPS
        if not isinstance(self.neuron1, ParametricLIFNode):
            return self._snntorch(inputs)
        functional.reset_net(self)
        functional.set_step_mode(self, "m" if self.case.multi_step else "s")
        if self.case.multi_step:
            current = self.synapse1(torch.stack(inputs))
            return self.neuron2(self.synapse2(self.neuron1(current))), torch.empty(0)
        spikes = [self.neuron2(self.synapse2(self.neuron1(self.synapse1(x)))) for x in inputs]
        return torch.stack(spikes), torch.empty(0)

    def _snntorch(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        layers = ((self.synapse1, self.neuron1), (self.synapse2, self.neuron2))
        states = [node.reset_mem() for _, node in layers]
        states = [state if isinstance(state, tuple) else (state,) for state in states]
        spikes = []
        for signal in inputs:
            for i, (synapse, node) in enumerate(layers):
                given = () if node.init_hidden else states[i]
                signal, *output = node(synapse(signal), *given)
                states[i] = (signal, *output)[-len(states[i]) :]
            spikes.append(signal)
        return torch.stack(spikes), output[-1]


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Any]] = {
    "counts": (
        lambda spikes, membranes: -spikes.sum(0).log_softmax(-1)[:, 0],
        oracle.count_cross_entropy(0),
    ),
    "wrong": (
        lambda spikes, membranes: (spikes.sum(0)[:, 0] <= spikes.sum(0)[:, 1]).double(),
        oracle.SpikeLoss(lambda r: float(r[0].sum() <= r[1].sum())),
    ),
    "membranes": (
        lambda spikes, membranes: (membranes - torch.tensor(TARGET)).square().mean(-1),
        om.SquareError(TARGET),
    ),
}

# Of the learner.
GENERAL, CONDITIONAL = {"route": "general"}, {"conditional": True}
READOUT, LAYERS = {"credit": "readout", "residual": 1}, {"credit": "layers", "residual": 1}
TIME = {"credit": "time", "residual": 1}
LEARNED, ANTITHETIC, AGAIN = {"learn_sigma": True}, {"antithetic": True}, {"recompute": True}
# Of snnTorch's neurons.
DECAYS = {"learn_alpha": True, "learn_beta": True}
BETA = {"learn_beta": True}  # snnTorch's Alpha cannot learn alpha
HIDDEN = {"init_hidden": True, "output": True}
ALL_TO_ALL, ONE_TO_ONE = {"linear_features": 2}, {"all_to_all": False}
AT_ONCE = {"reset_delay": False}


def merged(options: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {name: value for option in options for name, value in option.items()}


def snntorch(
    node: type[nn.Module],
    truth: type[om.Neuron],
    reset: str,
    own: tuple[dict[str, Any], ...],
    learner: tuple[dict[str, Any], ...] = (),
    **kw: Any,
) -> Case:
    """Both layers of one kind, with the options `own` of snnTorch; those of theta differ."""
    used = {"alpha", "beta"} if issubclass(truth, om.Synaptic | om.Alpha) else {"beta"}
    given = merged(own)
    if given.get("all_to_all") is False:
        used |= {"V"}
    layers = (
        {"alpha": torch.tensor([0.75, 0.6]), "beta": 0.5, "V": torch.tensor([0.7, -0.6])},
        {"alpha": 0.7, "beta": torch.tensor([0.6, 0.4]), "V": 0.8},
    )
    nodes = tuple(
        node(reset_mechanism=reset, **given, **{n: theta[n] for n in used}) for theta in layers
    )
    at_once = {"delayed": False} if "reset_delay" in given else {}
    neuron = truth(reset, quadrature=QUADRATURE, **at_once)
    return Case(nodes, (neuron, neuron), options=merged(learner), **kw)


def lapicque(reset: str, *learner: dict[str, Any], **kw: Any) -> Case:
    nodes = (
        snn.Lapicque(R=3.0, C=0.4, time_step=0.5, reset_mechanism=reset),
        snn.Lapicque(beta=0.6, reset_mechanism=reset),
    )
    circuits = [{"resistance": 3.0, "capacitance": 0.4, "time_step": 0.5}]
    circuits.append({"capacitance": float(nodes[1].C)})
    truth = tuple(om.Lapicque(reset, quadrature=QUADRATURE, **circuit) for circuit in circuits)
    return Case(nodes, truth, options=merged(learner), **kw)


def plif(v_reset: float | None, decay_input: bool, *learner: dict[str, Any], **kw: Any) -> Case:
    nodes = tuple(ParametricLIFNode(tau, decay_input, v_reset=v_reset) for tau in (1.5, 2.5))
    truth = om.ParametricLIF(quadrature=QUADRATURE, decay_input=decay_input, v_reset=v_reset)
    return Case(nodes, (truth, truth), options=merged(learner), **kw)


synaptic = partial(snntorch, snn.Synaptic, om.Synaptic)
alpha = partial(snntorch, snn.Alpha, om.Alpha)
rleaky = partial(snntorch, snn.RLeaky, om.Leaky)
rsynaptic = partial(snntorch, snn.RSynaptic, om.Synaptic)

CASES = {
    "lapicque subtract": lapicque("subtract", moving=True),
    "lapicque zero, readout, conditional, learned sigma": lapicque(
        "zero", READOUT, CONDITIONAL, LEARNED
    ),
    "lapicque zero, general route": lapicque("zero", GENERAL, moving=True),
    "lapicque none, membranes": lapicque("none", loss="membranes"),
    "synaptic subtract": synaptic("subtract", (DECAYS,), moving=True),
    "synaptic zero, conditional, 0-1 error": synaptic(
        "zero", (DECAYS,), (CONDITIONAL,), loss="wrong"
    ),
    "synaptic zero at once, hidden state, readout": synaptic(
        "zero", (AT_ONCE, HIDDEN), (READOUT,), moving=True
    ),
    "synaptic zero, layers, conditional": synaptic("zero", (), (LAYERS, CONDITIONAL)),
    "synaptic none, membranes, drawn again": synaptic("none", (), (AGAIN,), loss="membranes"),
    "alpha subtract, conditional": alpha("subtract", (BETA,), (CONDITIONAL,), moving=True),
    "alpha zero, learned sigma, antithetic": alpha("zero", (BETA,), (LEARNED, ANTITHETIC)),
    "alpha none, readout, general route": alpha("none", (BETA, HIDDEN), (READOUT, GENERAL)),
    "rleaky subtract, all to all": rleaky("subtract", (BETA, ALL_TO_ALL), moving=True),
    "rleaky zero, all to all, conditional, general route": rleaky(
        "zero", (BETA, ALL_TO_ALL), (CONDITIONAL, GENERAL)
    ),
    "rleaky zero, one to one, conditional, learned sigma": rleaky(
        "zero", (ONE_TO_ONE, HIDDEN), (CONDITIONAL, LEARNED)
    ),
    "rleaky zero, all to all, readout, antithetic": rleaky(
        "zero", (ALL_TO_ALL,), (READOUT, ANTITHETIC)
    ),
    "rleaky zero, all to all, layers": rleaky("zero", (ALL_TO_ALL,), (LAYERS,)),
    "rsynaptic subtract, one to one, learned sigma, drawn again": rsynaptic(
        "subtract", (ONE_TO_ONE,), (LEARNED, AGAIN)
    ),
    "rsynaptic zero, all to all, conditional": rsynaptic(
        "zero", (DECAYS, ALL_TO_ALL), (CONDITIONAL,), moving=True
    ),
    "rsynaptic zero, all to all, readout, hidden state": rsynaptic(
        "zero", (DECAYS, ALL_TO_ALL, HIDDEN), (READOUT,)
    ),
    "plif hard, decay": plif(0.0, True, moving=True),
    "plif soft, no decay, multi-step, general route": plif(None, False, GENERAL, multi_step=True),
    "plif hard to -0.2, no decay, conditional, learned sigma, multi-step": plif(
        -0.2, False, CONDITIONAL, LEARNED, multi_step=True, moving=True
    ),
    "lapicque subtract, conditional, learned sigma": lapicque("subtract", CONDITIONAL, LEARNED),
    "synaptic zero, conditional, layers, learned sigma": synaptic(
        "zero", (DECAYS,), (CONDITIONAL, LAYERS, LEARNED), moving=True
    ),
    "rleaky zero, all to all, conditional, layers": rleaky(
        "zero", (ALL_TO_ALL,), (CONDITIONAL, LAYERS)
    ),
    "rsynaptic subtract, all to all, conditional, learned sigma": rsynaptic(
        "subtract", (DECAYS, ALL_TO_ALL), (CONDITIONAL, LEARNED), moving=True
    ),
    "plif soft, decay, conditional, readout": plif(None, True, CONDITIONAL, READOUT, moving=True),
    "synaptic subtract, time, conditional": synaptic(
        "subtract", (DECAYS,), (TIME, CONDITIONAL), moving=True
    ),
    "alpha zero, time, conditional": alpha("zero", (BETA,), (TIME, CONDITIONAL), moving=True),
    "rleaky zero, all to all, time, conditional, learned sigma": rleaky(
        "zero", (ALL_TO_ALL,), (TIME, CONDITIONAL, LEARNED)
    ),
    "plif soft, decay, time, conditional, multi-step": plif(
        None, True, TIME, CONDITIONAL, multi_step=True, moving=True
    ),
    "synaptic zero at once, time": synaptic("zero", (AT_ONCE, DECAYS), (TIME,), moving=True),
    "rsynaptic subtract, all to all, time": rsynaptic("subtract", (DECAYS, ALL_TO_ALL), (TIME,)),
    "alpha none, layers, membranes": alpha("none", (BETA,), (LAYERS,), loss="membranes"),
    "plif soft, decay, readout, drawn again": plif(None, True, READOUT, AGAIN),
}

#: A case of each neuron, score and credit; `make test-all` runs the others as well.
FIRST = (
    "lapicque subtract, conditional, learned sigma",
    "synaptic subtract",
    "synaptic zero, conditional, layers, learned sigma",
    "alpha zero, learned sigma, antithetic",
    "rleaky zero, all to all, readout, antithetic",
    "rsynaptic subtract, all to all, time",
    "plif soft, decay, time, conditional, multi-step",
)
NAMES = [n if n in FIRST else pytest.param(n, marks=pytest.mark.full) for n in CASES]


def exact_gradient(case: Case, net: Net, x: np.ndarray) -> dict[str, np.ndarray]:
    """The oracle's gradient of the mean expected loss over the samples, by parameter name."""
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    read = {"weight", "bias", "alpha", "w", "V", "recurrent.weight", "recurrent.bias", "sigma"}
    if not isinstance(net.neuron1, snn.Lapicque):  # whose decay is in R and C
        read |= {"beta"}
    thetas = []
    for layer, sigma in zip("12", SIGMA, strict=True):
        theta = {"sigma": np.array(sigma)}
        for name, value in held.items():
            module, _, own = name.partition(".")
            if module in (f"synapse{layer}", f"neuron{layer}") and own in read:
                theta[own] = value.detach().numpy()
        thetas.append(theta)
    network = om.Network(*case.truth, LOSSES[case.loss][1])
    samples = x if case.moving else np.repeat(x[:, None], STEPS, axis=1)
    gradients = om.gradient(network, *thetas, samples)
    return {
        name: gradients[int(name.partition(".")[0][-1]) - 1][name.partition(".")[2]]
        for name, _ in net.named_parameters()
    }


def estimates(case: Case, net: Net, x: Tensor) -> Tensor:
    """(PASSES, parameters)."""
    learner = NITLearner(net, replicas=REPLICAS, seed=11, **{"credit": "none", **case.options})
    batch, found = x.repeat(COPIES, *(1,) * (x.dim() - 1)), []
    for _ in range(PASSES):
        net.zero_grad()
        with learner.record():
            losses = LOSSES[case.loss][0](*net(learner.expand(batch)))
        learner.backward(losses)
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    learner.close()
    return torch.stack(found)


@pytest.mark.parametrize("name", NAMES)
def test_estimate_equals_the_exact_gradient(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    net = Net(case).double()
    for module in net.modules():  # the cases' neurons, too, have weights of their own
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    with torch.no_grad():
        net.synapse2.weight.mul_(2)
    swap_neurons(net)
    for module, sigma in zip((net.neuron1, net.neuron2), SIGMA, strict=True):
        module.sigma.fill_(sigma)
    x = torch.randn(SAMPLES, *((STEPS, 3) if case.moving else (3,)), dtype=torch.float64)
    found = estimates(case, net, x)
    truth = exact_gradient(case, net, x.numpy())
    exact = torch.cat([torch.as_tensor(truth[n]).flatten() for n, _ in net.named_parameters()])
    error = found.std(0) / PASSES**0.5
    # The truth itself is only right to 1e-6.
    statistic = (found.mean(0) - exact) / (error + 1e-6)
    assert statistic.abs().max() < BOUND, statistic
    assert error.norm() < SHARP * exact.norm(), "too few samples to say anything"
