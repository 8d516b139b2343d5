"""The learned feedback, credit="feedback", against its formula, written out for one step.

c = M e,    M <- EMA[sum_t (s_t - p_t) o^T] / EMA[sum_t p_t (1 - p_t)]
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.noise.streams import ReplicaNoise

SEED, ROWS, SIGMA, PASSES = 3, 6, 0.625, 10
MEMORY = 0.99


class Net(nn.Module):
    """4-5-3-2 with a linear readout, over `steps`; what it returns depends on `form`."""

    def __init__(self, steps: int = 1, form: str = "summed") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.lif1 = nn.Linear(4, 5), snn.Leaky(beta=0.5, reset_mechanism="zero")
        self.fc2, self.lif2 = nn.Linear(5, 3), snn.Leaky(beta=0.5, reset_mechanism="zero")
        self.out, self.steps, self.form = nn.Linear(3, 2), steps, form
        swap_neurons(self.double(), sigma=SIGMA)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        found = []
        for _ in range(self.steps):
            spike, mem1 = self.lif1(self.fc1(x), mem1)
            spike, mem2 = self.lif2(self.fc2(spike), mem2)
            found.append(self.out(spike))
        return torch.stack(found) if self.form == "in time" else torch.stack(found).sum(0)


def losses_of(out: Tensor) -> Tensor:
    out = out.sum(0) if out.dim() == 3 else out
    return (out - torch.tensor([1.0, -0.5])).square().sum(1)


def learn(net: nn.Module, learner: NITLearner, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    with learner.record():
        losses = losses_of(net(learner.expand(x)))
    learner.backward(losses)
    return {n: p.grad.clone() for n, p in net.named_parameters()}


def attach(net: nn.Module, **options: Any) -> NITLearner:
    options = {"credit": "feedback", "residual": 0, "replicas": 1, "seed": SEED, **options}
    return NITLearner(net, **options)


def inputs(passes: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(passes, ROWS, 4, dtype=torch.float64, generator=generator) + 0.5


def by_formula(net: Net, passes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """M before the last pass, (5, 2), and the gradients of that pass."""
    source, normal = ReplicaNoise(SEED, 1), torch.distributions.Normal(0.0, 1.0)
    products = variances = feedback = torch.zeros(())
    found: dict[str, Tensor] = {}
    for index, x in enumerate(passes):
        feedback = products / variances[:, None] if index else feedback
        spikes, densities, residuals, signal = [], [], [], x
        variance = torch.zeros(())
        for i, dense in enumerate((net.fc1, net.fc2)):
            drift = (signal @ dense.weight.T + dense.bias).detach()
            shape = (ROWS, dense.out_features)
            eps = source.draw(shape, x.dtype, index=index, layer=i, layers=2, call=0)
            p = normal.cdf((drift - 1) / SIGMA)
            signal = (drift + SIGMA * eps > 1).double()
            # SIGMA is above half the threshold, so the surrogate is the noise's own density.
            densities.append(normal.log_prob((1 - drift) / SIGMA).exp() / SIGMA)
            spikes.append(signal)
            residuals.append(signal - p)
            variance = variance if i else (p * (1 - p)).mean(0)
        out = (signal @ net.out.weight.T + net.out.bias).detach().requires_grad_()
        (e,) = torch.autograd.grad(losses_of(out).sum(), out)
        if index:
            f1 = (e @ feedback.T) * densities[0] / ROWS
            f2 = (e @ net.out.weight.detach()) * densities[1] / ROWS
            found = {
                "fc1.weight": f1.T @ x,
                "fc1.bias": f1.sum(0),
                "fc2.weight": f2.T @ spikes[0],
                "fc2.bias": f2.sum(0),
                "out.weight": e.T @ spikes[1] / ROWS,
                "out.bias": e.mean(0),
            }
        values = out.detach() - out.detach().mean(0)
        seen = residuals[0].T @ values / ROWS
        products = torch.lerp(products, seen, 1 - MEMORY) if index else seen
        variances = torch.lerp(variances, variance, 1 - MEMORY) if index else variance
    return feedback, found


def test_it_is_its_formula() -> None:
    net, passes = Net(), inputs(PASSES)
    learner = attach(net)
    found = {}
    for x in passes:
        found = learn(net, learner, x)
    feedback, wanted = by_formula(net, passes)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert feedback.abs().max() > 0.1


def test_hidden_layers_wait_until_it_knows_something() -> None:
    net = Net()
    learner = attach(net)
    silent = [bool((learn(net, learner, x)["fc1.weight"] == 0).all()) for x in inputs(PASSES)]
    assert silent == [True] * 8 + [False] * 2


def test_it_tends_to_what_the_outputs_gain_from_a_spike() -> None:
    """One step: M is E[o | spike] - E[o | none], by enumeration of all patterns of spikes."""
    net, x = Net(), inputs(1)[0][:1].expand(2**16, 4)
    learner = attach(net)
    for _ in range(30):
        learn(net, learner, x)
    (held,) = (m for m in learner.state_dict()["choice"]["feedback"]["maps"].values())
    found = held["products"] / held["variances"][:, None]
    normal = torch.distributions.Normal(0.0, 1.0)
    p1 = normal.cdf((net.fc1(x[:1]) - 1) / SIGMA).detach()[0]
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=x.dtype)] * 5)
    chance = torch.where(patterns == 1, p1, 1 - p1)
    fired = normal.cdf((net.fc2(patterns) - 1) / SIGMA)
    outputs = net.out(fired).detach()
    for j in range(5):
        others = chance[:, [i for i in range(5) if i != j]].prod(1, keepdim=True)
        sign = 2 * patterns[:, j : j + 1] - 1
        gain = (others * sign * outputs).sum(0)
        torch.testing.assert_close(found[j], gain, rtol=0, atol=0.02)


def test_outputs_in_time_count_as_their_sum() -> None:
    nets = [Net(3, form) for form in ("summed", "in time")]
    learners = [attach(net) for net in nets]
    for x in inputs(PASSES):
        summed, in_time = (learn(n, a, x) for n, a in zip(nets, learners, strict=True))
    for name, gradient in summed.items():
        torch.testing.assert_close(in_time[name], gradient)
    assert summed["fc1.weight"].abs().sum() > 0


def test_a_module_that_is_called_at_each_step_is_followed_over_all_of_them() -> None:
    class Step(Net):
        """One step of it; the caller loops."""

        def forward(self, x: Tensor, *membranes: Tensor) -> tuple[Tensor, ...]:
            spike, mem1 = self.lif1(self.fc1(x), membranes[0])
            spike, mem2 = self.lif2(self.fc2(spike), membranes[1])
            return self.out(spike), mem1, mem2

    whole, step = Net(3), Step(3)
    learners = attach(whole), attach(step)
    for x in inputs(PASSES):
        wanted = learn(whole, learners[0], x)
        step.zero_grad()
        with learners[1].record():
            state, total = (step.lif1.reset_mem(), step.lif2.reset_mem()), torch.zeros(())
            rows = learners[1].expand(x)
            for _ in range(3):
                out, *state = step(rows, *state)
                total = total + out
            losses = losses_of(total)
        learners[1].backward(losses)
    for name, parameter in step.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])


def test_what_it_has_learned_is_saved() -> None:
    net, passes = Net(), inputs(PASSES + 1)
    learner = attach(net)
    for x in passes[:-1]:
        learn(net, learner, x)
    state, expected = copy.deepcopy(learner.state_dict()), learn(net, learner, passes[-1])
    learner.close()
    resumed = attach(net)
    resumed.load_state_dict(state)
    found = learn(net, resumed, passes[-1])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("damage", ["gone", "shape", "nan"])
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str) -> None:
    net, passes = Net(), inputs(PASSES)
    learner = attach(net)
    for x in passes:
        learn(net, learner, x)
    state = copy.deepcopy(learner.state_dict())
    maps = state["choice"]["feedback"]["maps"]
    (name,) = maps
    if damage == "gone":
        del maps[name]["variances"]
    elif damage == "shape":
        maps[name]["variances"] = maps[name]["variances"][:2]
    else:
        maps[name]["products"][0, 0] = float("nan")
    before = learner.state_dict()["choice"]["feedback"]["maps"][name]["products"].clone()
    with pytest.raises(ValueError, match="choice"):
        learner.load_state_dict(state)
    assert torch.equal(learner.state_dict()["choice"]["feedback"]["maps"][name]["products"], before)


def test_it_goes_on_in_the_type_of_the_network() -> None:
    """A file may have come from another device, or another type."""
    net, passes = Net(), inputs(PASSES + 1)
    learner = attach(net)
    for x in passes[:-1]:
        learn(net, learner, x)
    state, expected = copy.deepcopy(learner.state_dict()), learn(net, learner, passes[-1])
    for held in state["choice"]["feedback"]["maps"].values():
        held.update({name: value.float() for name, value in held.items()})
    learner.close()
    resumed = attach(net)
    resumed.load_state_dict(state)
    found = learn(net, resumed, passes[-1])
    torch.testing.assert_close(found["fc1.weight"], expected["fc1.weight"], rtol=1e-5, atol=1e-7)


def test_outputs_that_overflow_do_not_stay_in_it() -> None:
    class Loud(Net):
        """Its outputs overflow at times, where its loss does not."""

        gain = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.gain

    net, passes = Loud(), inputs(PASSES + 1)
    learner = attach(net)
    for index, x in enumerate(passes):
        net.gain = 1e308 if index == 4 else 1.0
        net.zero_grad()
        with learner.record():
            losses = net(learner.expand(x)).clamp(-50, 50).square().sum(1)
        learner.backward(losses)
    gradient = net.fc1.weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0
