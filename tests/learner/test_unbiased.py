"""The likelihood-ratio estimate against the exact gradient, which shares no code with it.

The truth comes from `oracle`: quadrature over membrane densities, then finite differences. Each
case draws PASSES independent estimates of REPLICAS replicas for each of two samples, which are in
the batch COPIES times, 327,680 rows in all, and compares their mean with the truth in units of its
own standard error. With 40 passes that is a t statistic with 39 degrees of freedom; |t| < 8 for
each of about 20 parameters fails by chance with probability below 1e-7 per case. The estimate must
also be sharp: a gradient wrong by 10% of its norm would be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import oracle
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons

pytestmark = pytest.mark.montecarlo

PASSES, REPLICAS, COPIES, SAMPLES, STEPS = 40, 16, 256, 2, 3
SIGMA = (0.7, 0.9)


@dataclass
class Case:
    """A two-layer network in a framework and in the oracle, with its loss in both."""

    neurons: tuple[nn.Module, nn.Module]
    dynamics: tuple[Any, Any]
    loss: str = "counts"
    multi_step: bool = False
    conv: bool = False
    norm: bool = False
    thresholds: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class Net(nn.Module):
    """(N, 3) or (N, 1, 4) -> two hidden noisy neurons -> two output noisy neurons, over STEPS."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.synapse1 = nn.Conv1d(1, 1, 3) if case.conv else nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2) if case.norm else nn.Identity()
        self.neuron1, self.neuron2 = case.neurons
        self.synapse2 = nn.Linear(2, 2)
        for each in case.neurons if case.thresholds else ():
            name = "threshold" if isinstance(each, snn.Leaky) else "v_threshold"
            each._buffers.pop(name, None)
            setattr(each, name, nn.Parameter(torch.ones(())))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes (T, N, 2) and last membranes before the reset, (N, 2), of the output."""
        if isinstance(self.neuron1, snn.Leaky):
            return self._leaky(x)
        functional.reset_net(self)
        if self.case.multi_step:
            functional.set_step_mode(self, "m")
            x = x.unsqueeze(0).expand(STEPS, *x.shape)
            if self.case.conv:
                x = x.flatten(0, 1)
            current = self.synapse1(x).view(STEPS, -1, 2)
            return self.neuron2(self.synapse2(self.neuron1(current))), torch.empty(0)
        spikes = [
            self.neuron2(self.synapse2(self.neuron1(self.synapse1(x).flatten(1))))
            for _ in range(STEPS)
        ]
        return torch.stack(spikes), torch.empty(0)

    def _leaky(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.neuron1.reset_mem(), self.neuron2.reset_mem()
        spikes = []
        for _ in range(STEPS):
            spike, mem1 = self.neuron1(self.norm(self.synapse1(x).flatten(1)), mem1)
            spike, mem2 = self.neuron2(self.synapse2(spike), mem2)
            spikes.append(spike)
        return torch.stack(spikes), mem2


LOSSES = {
    # A loss for each step: what was spiked then, the first neuron's with a weight of its own.
    "spikes by step": (
        lambda spikes, mem: (
            (spikes * torch.tensor([1.0, -0.5])).sum(2) * torch.arange(1.0, STEPS + 1)[:, None]
        ),
        oracle.SpikeLoss(
            lambda r: float((np.asarray(r).T * [1.0, -0.5]).sum(1) @ np.arange(1.0, STEPS + 1))
        ),
    ),
    "counts": (
        lambda spikes, mem: F.cross_entropy(
            spikes.sum(0), torch.zeros(spikes.shape[1], dtype=torch.long), reduction="none"
        ),
        oracle.count_cross_entropy(0),
    ),
    "wrong": (
        lambda spikes, mem: (spikes.sum(0)[:, 0] <= spikes.sum(0)[:, 1]).double(),
        oracle.SpikeLoss(lambda r: float(r[0].sum() <= r[1].sum())),
    ),
    "membranes": (
        lambda spikes, mem: F.cross_entropy(
            mem, torch.zeros(len(mem), dtype=torch.long), reduction="none"
        ),
        oracle.membrane_cross_entropy(0),
    ),
}


def leaky(reset: str, learn_beta: bool = False, **kw: Any) -> Case:
    betas = 0.75, 0.625
    return Case(
        tuple(snn.Leaky(beta=b, reset_mechanism=reset, learn_beta=learn_beta) for b in betas),
        tuple(oracle.Leaky(beta=b, reset=reset) for b in betas),
        **kw,
    )


def lif(v_reset: float | None, decay_input: bool, **kw: Any) -> Case:
    nodes = tuple(neuron.LIFNode(t, decay_input, v_reset=v_reset) for t in (1.5, 2.5))
    truth = tuple(oracle.LIF(tau=t, decay_input=decay_input, v_reset=v_reset) for t in (1.5, 2.5))
    return Case(nodes, truth, **kw)


def integrate(v_reset: float | None, **kw: Any) -> Case:
    nodes = tuple(neuron.IFNode(v_reset=v_reset) for _ in range(2))
    return Case(nodes, tuple(oracle.IF(v_reset=v_reset) for _ in range(2)), **kw)


READOUT = {"credit": "readout", "residual": 1}
LAYERS = {"credit": "layers", "residual": 1}
TIME = {"credit": "time", "residual": 1}
FEEDBACK = {"credit": "feedback", "residual": 1}
CONDITIONAL = {"conditional": True}

CASES = {
    "leaky zero": leaky("zero"),
    "leaky subtract": leaky("subtract"),
    "leaky none": leaky("none"),
    "leaky subtract, membranes": leaky("subtract", loss="membranes"),
    "leaky zero, 0-1 error": leaky("zero", loss="wrong"),
    "leaky zero, general route": leaky("zero", options={"route": "general"}),
    "leaky zero, antithetic": leaky("zero", options={"antithetic": True}),
    "leaky zero, batch-mean": leaky("zero", options={"baseline": "batch-mean"}),
    "leaky zero, antithetic batch-mean": leaky(
        "zero", options={"baseline": "batch-mean", "antithetic": True}
    ),
    "leaky zero, no baseline": leaky("zero", options={"baseline": "none"}),
    "leaky zero, drawn again": leaky("zero", options={"recompute": True}),
    "leaky subtract, conv": leaky("subtract", conv=True),
    "leaky zero, batch norm in training mode": leaky("zero", norm=True),
    "leaky subtract, learned sigma": leaky("subtract", options={"learn_sigma": True}),
    "leaky zero, conv, learned sigma, drawn again": leaky(
        "zero", conv=True, options={"learn_sigma": True, "recompute": True}
    ),
    "leaky zero, readout": leaky("zero", options=READOUT),
    "leaky subtract, readout, antithetic, general route": leaky(
        "subtract", options={**READOUT, "antithetic": True, "route": "general"}
    ),
    "lif soft, readout, multi-step, drawn again": lif(
        None, True, multi_step=True, options={**READOUT, "recompute": True}
    ),
    "if hard, readout, conv, single step": integrate(0.0, conv=True, options=READOUT),
    "leaky zero, layers": leaky("zero", options=LAYERS),
    "leaky subtract, layers, membranes": leaky("subtract", loss="membranes", options=LAYERS),
    "leaky subtract, layers, antithetic": leaky("subtract", options={**LAYERS, "antithetic": True}),
    "lif hard, layers, multi-step, drawn again": lif(
        0.0, True, multi_step=True, options={**LAYERS, "recompute": True}
    ),
    "leaky zero, time": leaky("zero", options=TIME),
    "leaky subtract, time, learned sigma": leaky("subtract", options={**TIME, "learn_sigma": True}),
    "lif soft, time, multi-step, general route": lif(
        None, True, multi_step=True, options={**TIME, "route": "general"}
    ),
    "leaky zero, feedback": leaky("zero", options=FEEDBACK),
    "leaky subtract, feedback, learned sigma": leaky(
        "subtract", options={**FEEDBACK, "learn_sigma": True}
    ),
    "lif soft, feedback, multi-step, conditional": lif(
        None, True, multi_step=True, options={**FEEDBACK, **CONDITIONAL}
    ),
    "leaky zero, losses per step": leaky(
        "zero", loss="spikes by step", options={"per_step_losses": True}
    ),
    "lif hard, losses per step, conditional, multi-step": lif(
        0.0,
        True,
        loss="spikes by step",
        multi_step=True,
        options={"per_step_losses": True, **CONDITIONAL},
    ),
    "leaky zero, conditional": leaky("zero", options=CONDITIONAL),
    "leaky subtract, conditional": leaky("subtract", options=CONDITIONAL),
    "leaky none, conditional, learned sigma": leaky(
        "none", options={**CONDITIONAL, "learn_sigma": True}
    ),
    "leaky zero, conditional, learned sigma, conv": leaky(
        "zero", conv=True, options={**CONDITIONAL, "learn_sigma": True}
    ),
    "leaky subtract, conditional, learnable beta, layers": leaky(
        "subtract", learn_beta=True, options={**CONDITIONAL, **LAYERS}
    ),
    "leaky zero, conditional, layers, learned sigma": leaky(
        "zero", options={**CONDITIONAL, **LAYERS, "learn_sigma": True}
    ),
    "leaky zero, conditional, antithetic, readout, general route": leaky(
        "zero", options={**CONDITIONAL, **READOUT, "antithetic": True, "route": "general"}
    ),
    "lif hard to -0.2, conditional, learned sigma, multi-step": lif(
        -0.2, True, multi_step=True, options={**CONDITIONAL, "learn_sigma": True}
    ),
    "lif soft, conditional, layers, conv": lif(
        None, False, conv=True, options={**CONDITIONAL, **LAYERS}
    ),
    "if soft, conditional, learned sigma, multi-step": integrate(
        None, multi_step=True, options={**CONDITIONAL, "learn_sigma": True}
    ),
    "leaky zero, time, conditional, learned sigma": leaky(
        "zero", options={**TIME, **CONDITIONAL, "learn_sigma": True}
    ),
    "leaky subtract, time, conditional, antithetic": leaky(
        "subtract", options={**TIME, **CONDITIONAL, "antithetic": True}
    ),
    "leaky none, time, conditional, learnable beta": leaky(
        "none", learn_beta=True, options={**TIME, **CONDITIONAL}
    ),
    "lif hard to -0.2, time, conditional, multi-step": lif(
        -0.2, True, multi_step=True, options={**TIME, **CONDITIONAL}
    ),
    "if soft, time, conditional, learned sigma": integrate(
        None, options={**TIME, **CONDITIONAL, "learn_sigma": True}
    ),
    "lif hard, losses per step, conditional": lif(
        0.0, True, loss="spikes by step", options={"per_step_losses": True, **CONDITIONAL}
    ),
    "leaky subtract, learnable beta": leaky("subtract", learn_beta=True),
    "lif hard, decay": lif(0.0, True),
    "lif hard, decay, conv": lif(0.0, True, conv=True),
    "lif soft, decay": lif(None, True),
    "lif hard, no decay": lif(0.0, False),
    "lif soft, no decay": lif(None, False),
    "lif hard to -0.2, decay, multi-step": lif(-0.2, True, multi_step=True),
    "lif soft, decay, multi-step, conv": lif(None, True, multi_step=True, conv=True),
    "if hard": integrate(0.0),
    "if soft, multi-step": integrate(None, multi_step=True),
}
LEARNED: dict[str, Any] = {"thresholds": True}
#: Learnable thresholds under every reset and credit.
THRESHOLDS = {
    "thresholds, leaky subtract": leaky("subtract", **LEARNED),
    "thresholds, lif soft, time, conditional, multi-step": lif(
        None, True, multi_step=True, options={**TIME, **CONDITIONAL}, **LEARNED
    ),
    "thresholds, leaky zero, layers": leaky("zero", options=LAYERS, **LEARNED),
    "thresholds, leaky none": leaky("none", **LEARNED),
    "thresholds, leaky subtract, conditional": leaky("subtract", options=CONDITIONAL, **LEARNED),
    "thresholds, leaky zero, conditional, time": leaky(
        "zero", options={**TIME, **CONDITIONAL}, **LEARNED
    ),
    "thresholds, leaky none, conditional, layers, learnable beta": leaky(
        "none", learn_beta=True, options={**LAYERS, **CONDITIONAL}, **LEARNED
    ),
    "thresholds, leaky subtract, membranes": leaky("subtract", loss="membranes", **LEARNED),
    "thresholds, leaky subtract, membranes, layers": leaky(
        "subtract", loss="membranes", options=LAYERS, **LEARNED
    ),
    "thresholds, leaky zero, antithetic, 0-1 error": leaky(
        "zero", loss="wrong", options={"antithetic": True}, **LEARNED
    ),
    "thresholds, leaky subtract, feedback, learned sigma": leaky(
        "subtract", options={**FEEDBACK, "learn_sigma": True}, **LEARNED
    ),
    "thresholds, leaky zero, losses per step": leaky(
        "zero", loss="spikes by step", options={"per_step_losses": True}, **LEARNED
    ),
    "thresholds, lif hard to -0.2, multi-step": lif(-0.2, True, multi_step=True, **LEARNED),
    "thresholds, lif soft, readout, conditional": lif(
        None, False, options={**READOUT, **CONDITIONAL}, **LEARNED
    ),
    "thresholds, lif hard, conditional, multi-step, conv": lif(
        0.0, False, conv=True, multi_step=True, options=CONDITIONAL, **LEARNED
    ),
    "thresholds, if soft": integrate(None, **LEARNED),
}
CASES |= THRESHOLDS
#: A case of each score, credit, reset and framework; `make test-all` runs the others as well.
FIRST = (
    "leaky subtract",
    "leaky zero, general route",
    "leaky subtract, conv",
    "leaky zero, batch norm in training mode",
    "leaky subtract, readout, antithetic, general route",
    "leaky subtract, layers, membranes",
    "leaky subtract, time, learned sigma",
    "lif soft, feedback, multi-step, conditional",
    "leaky zero, losses per step",
    "leaky subtract, conditional, learnable beta, layers",
    "lif hard to -0.2, time, conditional, multi-step",
    "if soft, multi-step",
    "thresholds, leaky subtract",
    "thresholds, lif soft, time, conditional, multi-step",
)
NAMES = [n if n in FIRST else pytest.param(n, marks=pytest.mark.full) for n in CASES]


def currents(case: Case, x: np.ndarray, sample: int) -> Any:
    """theta -> hidden currents (STEPS, 2) of one sample, in NumPy."""

    def of_batch(theta: dict[str, np.ndarray]) -> np.ndarray:
        if case.conv:
            windows = np.stack([x[:, 0, i : i + 3] for i in range(2)], 1)
            return windows @ theta["W1"][0, 0] + theta["b1"]
        dense = x @ theta["W1"].T + theta["b1"]
        if case.norm:
            scaled = (dense - dense.mean(0)) / np.sqrt(dense.var(0) + 1e-5)
            return scaled * theta["gamma"] + theta["shift"]
        return dense

    return lambda theta: np.tile(of_batch(theta)[sample], (STEPS, 1))


def exact_gradient(case: Case, net: Net, x: np.ndarray) -> dict[str, np.ndarray]:
    """The oracle's gradient of the mean expected loss over the samples, by parameter name."""
    names = {
        "synapse1.weight": "W1",
        "synapse1.bias": "b1",
        "synapse2.weight": "W2",
        "synapse2.bias": "b2",
        "norm.weight": "gamma",
        "norm.bias": "shift",
        "neuron1.sigma": "sigma1",
        "neuron2.sigma": "sigma2",
    }
    held = {n: p.detach().numpy() for n, p in net.named_parameters()}
    theta = {names[n]: value for n, value in held.items() if n in names}
    theta = {"sigma1": np.array(SIGMA[0]), "sigma2": np.array(SIGMA[1]), **theta}

    def network(
        sample: int, dynamics: tuple[Any, Any], thresholds: tuple[float, float] = (1.0, 1.0)
    ) -> oracle.Network:
        return oracle.Network(
            x=None,
            dynamics1=dynamics[0],
            dynamics2=dynamics[1],
            threshold=thresholds,
            loss=LOSSES[case.loss][1],
            hidden_current=currents(case, x, sample),
        )

    samples = range(len(x))
    by_sample = [oracle.gradient(network(i, case.dynamics), theta) for i in samples]
    exact = {n: sum(g[names[n]] for g in by_sample) / len(x) for n in held if n in names}
    for layer in (1, 2):  # a decay belongs to the dynamics: differentiate it here
        if f"neuron{layer}.beta" in held:
            ends = []
            for shift in (-1e-4, 1e-4):
                moved = list(case.dynamics)
                moved[layer - 1] = replace(moved[layer - 1], beta=moved[layer - 1].beta + shift)
                losses = [oracle.expected_loss(network(i, tuple(moved)), theta) for i in samples]
                ends.append(np.mean(losses))
            exact[f"neuron{layer}.beta"] = np.array((ends[1] - ends[0]) / 2e-4)
    for name in (n for n in held if n.endswith("threshold")):
        ends = []
        for shift in (-1e-4, 1e-4):
            levels = (1.0 + shift, 1.0) if name.startswith("neuron1") else (1.0, 1.0 + shift)
            networks = [network(i, case.dynamics, levels) for i in samples]
            ends.append(np.mean([oracle.expected_loss(own, theta) for own in networks]))
        exact[name] = np.array((ends[1] - ends[0]) / 2e-4)
    return exact


@pytest.mark.parametrize("name", NAMES)
def test_estimate_equals_the_exact_gradient(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    net = Net(case).double()
    with torch.no_grad():
        net.synapse2.weight.mul_(2)
    swap_neurons(net)
    for module, sigma in zip((net.neuron1, net.neuron2), SIGMA, strict=True):
        module.sigma.fill_(sigma)
    x = torch.randn(SAMPLES, *((1, 4) if case.conv else (3,)), dtype=torch.float64)
    learner = NITLearner(net, replicas=REPLICAS, seed=11, **{"credit": "none", **case.options})
    batch, estimates = x.repeat(COPIES, *(1,) * (x.dim() - 1)), []
    for _ in range(PASSES):
        net.zero_grad()
        with learner.record():
            losses = LOSSES[case.loss][0](*net(learner.expand(batch)))
        learner.backward(losses)
        estimates.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    learner.close()
    stacked = torch.stack(estimates)
    truth = exact_gradient(case, net, x.numpy())
    exact = torch.cat([torch.as_tensor(truth[n]).flatten() for n, _ in net.named_parameters()])
    error = stacked.std(0) / PASSES**0.5
    # A bias before a BatchNorm has gradient zero; 1e-8 is above the rounding of either side.
    statistic = (stacked.mean(0) - exact) / (error + 1e-8)
    assert statistic.abs().max() < 8, statistic
    assert error.norm() < 0.1 * exact.norm(), "too few samples to say anything"
