"""The learned feedback, credit="feedback", against its formula, written out for one step.

c = |e| R^T (R f + e / |e|),    R <- R - (R f + e / |e|) f^T / |f|^2
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.estimators.credit.feedback import _in_pairs, spread
from nit_snn.noise.streams import ReplicaNoise

SEED, ROWS, SIGMA, PASSES = 3, 6, 0.625, 10
MEMORY = 0.95


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
    """R before the last pass, (2, 5), and the gradients of that pass."""
    source, normal = ReplicaNoise(SEED, 1), torch.distributions.Normal(0.0, 1.0)
    readout = torch.zeros(2, 5, dtype=torch.float64)
    mean, size, used, found = torch.zeros(5, dtype=torch.float64), 0.0, readout, {}
    for index, x in enumerate(passes):
        spikes, densities, signal = [], [], x
        for i, dense in enumerate((net.fc1, net.fc2)):
            drift = (signal @ dense.weight.T + dense.bias).detach()
            shape = (ROWS, dense.out_features)
            eps = source.draw(shape, x.dtype, index=index, layer=i, layers=2, call=0)
            signal = (drift + SIGMA * eps > 1).double()
            # SIGMA is above half the threshold, so the surrogate is the noise's own density.
            densities.append(normal.log_prob((1 - drift) / SIGMA).exp() / SIGMA)
            spikes.append(signal)
        out = (signal @ net.out.weight.T + net.out.bias).detach().requires_grad_()
        (e,) = torch.autograd.grad(losses_of(out).sum(), out)
        if index:
            used = readout
            told = (spikes[0] - mean) @ readout.T + e / size**0.5
            f1 = (told @ readout) * size**0.5 * densities[0] / ROWS
            f2 = (e @ net.out.weight.detach()) * densities[1] / ROWS
            found = {
                "fc1.weight": f1.T @ x,
                "fc1.bias": f1.sum(0),
                "fc2.weight": f2.T @ spikes[0],
                "fc2.bias": f2.sum(0),
                "out.weight": e.T @ spikes[1] / ROWS,
                "out.bias": e.mean(0),
            }
        follow = 1 - MEMORY if index else 1.0
        mean = mean + follow * (spikes[0].mean(0) - mean)
        size = size + follow * (e.square().sum(1).mean().item() - size)
        centred = spikes[0] - mean
        told = centred @ readout.T + e / size**0.5
        readout = readout - told.T @ centred / centred.square().sum()
    return used, found


def test_it_is_its_formula() -> None:
    net, passes = Net(), inputs(PASSES)
    learner = attach(net)
    found = {}
    for x in passes:
        found = learn(net, learner, x)
    readout, wanted = by_formula(net, passes)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert readout.abs().max() > 0.1


def test_hidden_layers_wait_until_it_knows_something() -> None:
    net = Net()
    learner = attach(net)
    silent = [bool((learn(net, learner, x)["fc1.weight"] == 0).all()) for x in inputs(3)]
    assert silent == [True, False, False]


def test_it_foretells_the_errors_as_well_as_least_squares() -> None:
    """At least 95% of what a linear readout can tell, on spikes that it has not seen."""
    net, x = Net(), inputs(300).flatten(0, 1)
    net.fc2.weight.data *= 5
    learner = attach(net)
    for _ in range(40):
        learn(net, learner, x)
    (held,) = learner.state_dict()["choice"]["feedback"]["readouts"].values()
    seen: dict[str, Tensor] = {}
    net.lif1.register_forward_hook(lambda *a: seen.update(spikes=a[2][0].detach()))
    out = net(x).detach().requires_grad_()
    (e,) = torch.autograd.grad(losses_of(out).sum(), out)
    f, wanted = seen["spikes"] - held["mean"], -e / held["size"].sqrt()
    wanted = wanted - wanted.mean(0)
    best = torch.linalg.lstsq(f, wanted).solution.T

    def told(weight: Tensor) -> float:
        missed = (f @ weight.T - wanted).square().sum()
        return 1 - float(missed / wanted.square().sum())

    assert told(best) > 0.01
    assert told(held["weight"]) > 0.95 * told(best)


def test_it_is_as_large_as_the_loss() -> None:
    """A loss in other units has the same gradient in these units, in all layers."""
    nets = Net(), Net()
    learners = [attach(net) for net in nets]
    for x in inputs(PASSES):
        for net, learner, unit in zip(nets, learners, (1.0, 1000.0), strict=True):
            net.zero_grad()
            with learner.record():
                losses = losses_of(net(learner.expand(x))) * unit
            learner.backward(losses)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad, one.grad * 1000)


def test_the_positions_of_a_feature_map_are_read_two_by_two() -> None:
    maps = torch.randn(2, 3, 5, 4)
    features = _in_pairs(maps)
    assert features.shape == (2, 3, 3, 2)
    torch.testing.assert_close(features[:, :, 0, 0], maps[:, :, :2, :2].sum((2, 3)))
    torch.testing.assert_close(features[:, :, 2, 1], maps[:, :, 4, 2:].sum(2))
    # What a spike means is what the sum it is part of means: one is the other's adjoint.
    meaning = torch.randn(2, 18)
    torch.testing.assert_close(
        (spread(meaning, maps) * maps).sum(), (meaning * features.flatten(1)).sum()
    )
    assert torch.equal(_in_pairs(maps[0]), maps[0])
    assert torch.equal(spread(meaning, maps[:, :, :3, 0].repeat(1, 1, 2)).flatten(1), meaning)


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
    readouts = state["choice"]["feedback"]["readouts"]
    (name,) = readouts
    if damage == "gone":
        del readouts[name]["size"]
    elif damage == "shape":
        readouts[name]["mean"] = readouts[name]["mean"][:2]
    else:
        readouts[name]["weight"][0, 0] = float("nan")
    before = learner.state_dict()["choice"]["feedback"]["readouts"][name]["weight"].clone()
    with pytest.raises(ValueError, match="choice"):
        learner.load_state_dict(state)
    assert torch.equal(
        learner.state_dict()["choice"]["feedback"]["readouts"][name]["weight"], before
    )


def test_it_goes_on_in_the_type_of_the_network() -> None:
    """A file may have come from another device, or another type."""
    net, passes = Net(), inputs(PASSES + 1)
    learner = attach(net)
    for x in passes[:-1]:
        learn(net, learner, x)
    state, expected = copy.deepcopy(learner.state_dict()), learn(net, learner, passes[-1])
    for held in state["choice"]["feedback"]["readouts"].values():
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
