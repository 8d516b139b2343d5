"""The cheap estimate, residual=0, against its formula, written out step by step.

    f_t = g_t phi(b_t) / w_t + E_t f_{t+1}
    E_t = carry (1 - s_t wiped) + phi(b_t) / w_t * jump(threshold)

with `b_t = (threshold - (u_t - nu_t)) / w_t`: nu_t is what the membrane still carries of its own
noise, d_t its standard deviation, and w_t that or half the way from the rest to the threshold. The
noise level's has d_t in place of w_t. A threshold moves the surrogate's place, and what a soft
reset takes off.

The network below knows neither the frameworks nor the learner: only its noise is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.estimators import surrogate
from nit_snn.noise.streams import ReplicaNoise
from nit_snn.recording import surrogates

STEPS, ROWS, SEED = 4, 3, 5
SIZES = (4, 5, 3)
SIGMA = (0.35, 0.9)  #: with the first, a membrane's noise is narrower at first, and wider later
DOUBLE = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@dataclass(frozen=True)
class Rule:
    """What a neuron does, in the words of the formula.

    Attributes:
        carry: Of a membrane into the next drift.
        gain: Of the current.
        reset: "hard", "soft" or "none".
        v_reset: Where a hard reset leads to, and the leak.
        after: Whether the membrane is handed out after its reset (SpikingJelly).
        drop: What a soft reset takes off the next drift.
    """

    carry: float
    gain: float = 1.0
    reset: str = "hard"
    v_reset: float = 0.0
    after: bool = False
    drop: float = 1.0

    def next_drift(self, u: Tensor, s: Tensor) -> Tensor:
        """But for the current."""
        if self.reset == "hard":
            u = u * (1 - s) + s * self.v_reset
        return self.v_reset + self.carry * (u - self.v_reset) - self._drop * s

    @property
    def _drop(self) -> float:
        return self.drop if self.reset == "soft" else 0.0

    @property
    def jump(self) -> float:
        """What a spike adds to the next drift at the threshold, which is 1."""
        return self.carry * (self.v_reset - 1) if self.reset == "hard" else -self._drop

    @property
    def left(self) -> float:
        """What it adds to the membrane as it is handed out."""
        if not self.after:
            return 0.0
        return self.v_reset - 1 if self.reset == "hard" else -1.0


def bell(apart: Tensor, width: Tensor) -> Tensor:
    """The density of a normal variable at `apart` from its mean."""
    return torch.exp(-((apart / width) ** 2) / 2) / math.sqrt(2 * math.pi) / width


class Layer:
    """All steps of one layer, (T, N, out)."""

    def __init__(self, rule: Rule, weight: Tensor, bias: Tensor, sigma: float, x: Tensor, eps: Any):
        self.rule, self.sigma, self.x = rule, sigma, x
        self.u, self.s = [], []
        drift = torch.full_like(eps[0], rule.v_reset)
        for t in range(STEPS):
            drift = drift + rule.gain * (x[t] @ weight.T + bias)
            self.u.append(drift + sigma * eps[t])
            self.s.append((self.u[t] > 1).to(DOUBLE))
            drift = rule.next_drift(self.u[t], self.s[t])
        self.spikes = torch.stack(self.s)
        membranes = torch.stack(self.u)
        self.wiped = 1 - self.spikes if rule.reset == "hard" else torch.ones_like(self.spikes)
        carried, variance = [sigma * eps[0]], [torch.full_like(eps[0], sigma**2)]
        for t in range(1, STEPS):
            factor = rule.carry * self.wiped[t - 1]
            carried.append(factor * carried[-1] + sigma * eps[t])
            variance.append(factor**2 * variance[-1] + sigma**2)
        self.carried, self.deviation = torch.stack(carried), torch.stack(variance).sqrt()
        silent = 1 - (membranes - self.carried)
        self.density = bell(silent, self.deviation.clamp(min=(1 - rule.v_reset) / 2))
        self.slope = silent * bell(silent, self.deviation)  # b phi(b), for all of the noise
        kept = self.wiped if rule.after else torch.ones_like(self.spikes)
        fixed = self.spikes * rule.v_reset if rule.after and rule.reset == "hard" else 0.0
        fall = -self.spikes if rule.after and rule.reset == "soft" else 0.0
        self.kept = kept
        self.handed_out = membranes * kept + fixed + fall

    def cotangents(self, g: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """f, without and with what comes later, from the derivatives in spikes and membranes."""
        own = g * self.density + r * (self.kept + self.rule.left * self.density)
        f, later = [], torch.zeros_like(own[0])
        self.later = torch.zeros_like(own)
        for t in reversed(range(STEPS)):
            self.later[t] = later
            chain = self.rule.carry * self.wiped[t] + self.density[t] * self.rule.jump
            later = own[t] + chain * later
            f.insert(0, later)
        return own, torch.stack(f)

    def gradients(self, g: Tensor, r: Tensor) -> dict[str, Tensor]:
        """Of weight, bias and noise level of each neuron, over the mean of the rows."""
        f = self.cotangents(g, r)[1] * self.rule.gain / ROWS
        by_spike = g + self.later * self.rule.jump + r * self.rule.left
        lowered = self.later * self.rule.drop + r * self.rule.after
        if self.rule.reset != "soft":
            lowered = torch.zeros_like(lowered)
        by_sigma = (by_spike * self.slope + r * self.kept * self.carried) / self.sigma
        return {
            "weight": torch.einsum("tni,tnj->ij", f, self.x),
            "bias": f.sum((0, 1)),
            "sigma": by_sigma.sum((0, 1)) / ROWS,
            "threshold": -(by_spike * self.density + lowered * self.spikes).sum() / ROWS,
        }


def loss_of(spikes: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Of output spikes and of the membranes of both layers, (T, N, *); (N,)."""
    weights = torch.linspace(0.5, 1.5, len(spikes), dtype=DOUBLE)[:, None, None]
    losses = (spikes * weights).sum((0, 2)).square()
    if first.dim() == 3 and first.numel() > len(first):
        losses = losses + (second * weights[-len(second) :]).tanh().sum((0, 2))
        losses = losses + 0.3 * first.square().sum((0, 2))
    return losses


def by_formula(rule: Rule, net: Net, x: Tensor, credit: str) -> dict[str, Tensor]:
    """The gradient by parameter, and the mean loss."""
    source, layers, signal = ReplicaNoise(SEED, 1), [], x
    for i in range(2):
        shape = (ROWS, SIZES[i + 1])
        where = {"index": 0, "layer": i, "layers": 2}
        eps = torch.stack([source.draw(shape, DOUBLE, call=t, **where) for t in range(STEPS)])
        weight, bias = (p.detach() for p in net.synapses[i].parameters())
        layers.append(Layer(rule, weight, bias, SIGMA[i], signal, eps))
        signal = layers[i].spikes
    first, second = layers
    start = {"m": STEPS - 1}.get(net.how, 0) if net.reads else STEPS
    leaves = [x.clone().requires_grad_() for x in (second.spikes, first.handed_out[start:])]
    leaves.append(second.handed_out[start:].clone().requires_grad_())
    losses = loss_of(*leaves)
    g2, r1, r2 = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
    r1, r2 = (torch.cat([torch.zeros(start, *r.shape[1:], dtype=DOUBLE), r]) for r in (r1, r2))
    own, through_time = second.cotangents(g2, r2)
    f2 = (through_time if credit == "time" else own) * rule.gain
    g1 = f2 @ net.synapses[1].weight.detach()
    found = {"loss": losses.mean()}
    for i, (one, g, r) in enumerate(((first, g1, r1), (second, g2, r2))):
        own_gradients = one.gradients(g, r)
        for name in ("weight", "bias"):
            found[f"synapses.{i}.{name}"] = own_gradients[name]
        for name, parameter in net.neurons[i].named_parameters():
            found[f"neurons.{i}.{name}"] = own_gradients[name.removeprefix("v_")]
            assert parameter.requires_grad
    return found


class Net(nn.Module):
    """Two dense layers; spikes, and the membranes of both, each (T, N, *)."""

    def __init__(
        self, neurons: list[nn.Module], how: str, reads: bool, thresholds: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        kind = nn.Linear if how == "snntorch" else layer.Linear
        self.synapses = nn.ModuleList(kind(*pair) for pair in (SIZES[:2], SIZES[1:]))
        self.neurons, self.how, self.reads = nn.ModuleList(neurons), how, reads
        if how == "m":
            functional.set_step_mode(self, "m")
        for each in neurons if thresholds else ():
            name = "threshold" if how == "snntorch" else "v_threshold"
            each._buffers.pop(name, None)
            setattr(each, name, nn.Parameter(torch.ones(())))
        swap_neurons(self).double()
        for each, sigma in zip(self.neurons, SIGMA, strict=True):
            each.sigma.fill_(sigma)
        with torch.no_grad():
            self.synapses[1].weight.abs_()
            for synapse in self.synapses:
                synapse.bias.add_(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.how == "m":
            functional.reset_net(self)
            for synapse, node in zip(self.synapses, self.neurons, strict=True):
                x = node(synapse(x))
            found = [node.v[None] for node in self.neurons] if self.reads else [torch.zeros(())] * 2
            return x, *found
        states: list[Any] = [None, None]
        if self.how == "snntorch":
            states = [each.reset_mem() for each in self.neurons]
        else:
            functional.reset_net(self)
        rows: list[tuple[Tensor, ...]] = []
        for signal in x:
            for i in range(2):
                current = self.synapses[i](signal)
                if self.how == "snntorch":
                    signal, states[i] = self.neurons[i](current, states[i])
                else:
                    signal = self.neurons[i](current)
                    states[i] = self.neurons[i].v
            rows.append((signal, *(states if self.reads else [torch.zeros(1, 1)] * 2)))
        spikes, first, second = (torch.stack(found) for found in zip(*rows, strict=True))
        return spikes, first, second


def leaky(reset: str) -> tuple[Rule, Any]:
    kind = {"zero": "hard", "subtract": "soft", "none": "none"}[reset]
    return Rule(0.75, reset=kind), lambda: snn.Leaky(beta=0.75, reset_mechanism=reset)


def lif(v_reset: float | None, decay_input: bool) -> tuple[Rule, Any]:
    carry = 1 - 1 / 2.5
    rule = Rule(
        carry,
        1 / 2.5 if decay_input else 1.0,
        "soft" if v_reset is None else "hard",
        v_reset or 0.0,
        after=True,
        drop=carry,
    )
    return rule, lambda: neuron.LIFNode(2.5, decay_input, v_reset=v_reset)


def integrate(v_reset: float | None) -> tuple[Rule, Any]:
    reset = "soft" if v_reset is None else "hard"
    rule = Rule(1.0, reset=reset, v_reset=v_reset or 0.0, after=True)
    return rule, lambda: neuron.IFNode(v_reset=v_reset)


NEURONS: dict[str, tuple[tuple[Rule, Any], str]] = {
    "leaky zero": (leaky("zero"), "snntorch"),
    "leaky subtract": (leaky("subtract"), "snntorch"),
    "leaky none": (leaky("none"), "snntorch"),
    **{
        f"{name}, mode {mode}": (found, mode)
        for mode in ("s", "m")
        for name, found in (
            ("lif hard", lif(0.0, True)),
            ("lif hard to -0.2", lif(-0.2, False)),
            ("lif soft", lif(None, True)),
            ("if hard", integrate(0.0)),
            ("if soft", integrate(None)),
        )
    },
}


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("route", ["auto", "general"])
@pytest.mark.parametrize("credit", ["layers", "time"])
@pytest.mark.parametrize("name", NEURONS)
def test_it_is_its_formula(
    name: str, credit: str, route: str, conditional: bool, thresholds: bool = False
) -> None:
    """Weights, biases and noise levels of both layers; membranes of both are read.

    But under `conditional`, where nobody may: to the formula it makes no difference.
    """
    (rule, make), how = NEURONS[name]
    net = Net([make(), make()], how, reads=not conditional, thresholds=thresholds)
    x = torch.randn(STEPS, ROWS, SIZES[0], dtype=DOUBLE) + 0.5
    options = {"credit": credit, "residual": 0, "replicas": 1, "learn_sigma": True}
    learner = NITLearner(net, seed=SEED, route=route, conditional=conditional, **options)
    with learner.record():
        spikes, *membranes = net(learner.expand(x, dim=1))
        losses = loss_of(spikes, *membranes)
    mean = learner.backward(losses)
    wanted = by_formula(rule, net, x, credit)
    assert 0.1 < float(spikes.detach().mean()) < 0.9
    torch.testing.assert_close(mean, wanted.pop("loss"))
    found = {n: p.grad for n, p in net.named_parameters()}
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(
            found[parameter],
            gradient,
            **CLOSE,
            msg=lambda text, p=parameter: f"{p}: {text}",
        )


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("credit", ["layers", "time"])
@pytest.mark.parametrize("name", NEURONS)
def test_learnable_thresholds_are_their_formula(name: str, credit: str, conditional: bool) -> None:
    test_it_is_its_formula(name, credit, "auto", conditional, thresholds=True)


def test_a_single_row_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROWS", 1)
    test_it_is_its_formula("leaky subtract", "layers", "auto", False)


@pytest.mark.parametrize("credit", ["layers", "time"])
@pytest.mark.parametrize(
    "name", ["leaky zero", "leaky subtract", "lif soft, mode s", "lif hard, mode m"]
)
def test_blocks_of_single_steps_in_half_the_precision(
    name: str, credit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pass of many steps is kept; half of float64 is float32."""
    monkeypatch.setattr(surrogates, "_AT_ONCE", 1)
    monkeypatch.setattr(surrogate, "_AT_ONCE", 1)
    monkeypatch.setitem(globals(), "CLOSE", {"rtol": 1e-5, "atol": 1e-7})
    test_it_is_its_formula(name, credit, "auto", False)
