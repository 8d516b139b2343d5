"""snnTorch's losses, accuracies, encoders and plots, unchanged, with noisy networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import snntorch.functional as SF
from snntorch import spikegen, utils

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import LossError, RecordingError

STEPS, BATCH, CLASSES, REPLICAS = 6, 5, 3, 8


class Net(nn.Module):
    """12-8-3 of Leaky neurons over time-first input; spikes and membranes, (T, N, 3)."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 8), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(8, outputs), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        spikes = torch.stack(spikes)
        return spikes, torch.stack(membranes)


def batch() -> tuple[Tensor, Tensor]:
    return 2 * torch.rand(STEPS, BATCH, 12), torch.tensor([0, 1, 2, 1, 0])


# What makes the loss, which output it reads, and what is left to do for one number per row.
LOSSES: dict[str, tuple[Callable[..., Any], int]] = {
    "ce_rate": (SF.ce_rate_loss, 0),
    "ce_count": (SF.ce_count_loss, 0),
    "ce_max_membrane": (SF.ce_max_membrane_loss, 1),
    "mse_count": (lambda **o: SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2, **o), 0),
    "mse_membrane": (SF.mse_membrane_loss, 1),
    "ce_temporal": (SF.ce_temporal_loss, 0),
    "mse_temporal": (SF.mse_temporal_loss, 0),
}


def rows(losses: Tensor) -> Tensor:
    """The one line that docs/interop.md gives: the mean over whatever a row has."""
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


@pytest.mark.parametrize("credit", ["none", "auto"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_train_a_noisy_network(name: str, credit: str) -> None:
    make, output = LOSSES[name]
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=REPLICAS, credit=credit, seed=0)
    x, y = batch()
    with learner.record():
        xr, yr = learner.expand(x, dim=1), learner.expand(y)
        out = net(xr)[output]
        losses = rows(make(reduction="none")(out, yr))
        whole = make(reduction="mean")(out, yr)
    assert losses.shape == (REPLICAS * BATCH,)
    assert torch.allclose(losses.mean(), whole.squeeze(), atol=1e-6)
    assert torch.allclose(learner.backward(losses), whole.squeeze(), atol=1e-6)
    gradients = [p.grad for p in learner.parameters()]
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_each_row_has_its_own_loss(name: str) -> None:
    """What the estimator needs: a row's loss does not change with the rows beside it."""
    make, output = LOSSES[name]
    x, y = batch()
    with torch.no_grad():
        out = swap_neurons(Net(), sigma=0.5)(x)[output]
    together = rows(make(reduction="none")(out, y))
    for row in range(BATCH):
        part = slice(row, row + 1)
        assert torch.allclose(rows(make(reduction="none")(out[:, part], y[part])), together[part])


@pytest.mark.parametrize("make", [SF.ce_count_loss, SF.mse_count_loss])
def test_the_default_reduction_is_refused_with_a_reason(make: Callable[..., Any]) -> None:
    learner = NITLearner(swap_neurons(Net()), replicas=REPLICAS, credit="none")
    x, y = batch()
    with learner.record():
        spikes, _ = learner.net(learner.expand(x, dim=1))
        loss = make()(spikes, learner.expand(y))
    with pytest.raises(LossError):
        learner.backward(loss)


@pytest.mark.parametrize("name", ["ce_rate", "ce_count", "mse_count"])
def test_losses_of_spikes_go_with_control_variates(name: str) -> None:
    """They condition on the spikes: a `mem_rec` may be kept beside `spk_rec`, and not be read."""
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=REPLICAS, credit="layers", residual=1, conditional=True)
    x, y = batch()
    with pytest.raises(RecordingError, match="membrane of a noisy neuron"), learner.record():
        net(learner.expand(x, dim=1))[1].sum()
    with learner.record():
        spikes, _ = net(learner.expand(x, dim=1))
        losses = rows(LOSSES[name][0](reduction="none")(spikes, learner.expand(y)))
    learner.backward(losses)
    assert float(net.fc1.weight.grad.abs().sum()) > 0


def test_population_codes() -> None:
    net = swap_neurons(Net(outputs=4 * CLASSES), sigma=0.5)
    learner = NITLearner(net, replicas=REPLICAS, credit="none")
    x, y = batch()
    for make in (SF.ce_count_loss, SF.mse_count_loss):
        with learner.record():
            spikes, _ = net(learner.expand(x, dim=1))
            loss = make(population_code=True, num_classes=CLASSES, reduction="none")
            losses = rows(loss(spikes, learner.expand(y)))
        learner.backward(losses)
    groups = spikes.sum(0).unflatten(1, (CLASSES, -1)).sum(2)
    right = (groups.argmax(1) == learner.expand(y)).float().mean()
    found = SF.accuracy_rate(spikes, learner.expand(y), population_code=True, num_classes=CLASSES)
    assert found == pytest.approx(float(right))


def test_accuracies_of_noisy_outputs() -> None:
    x, y = batch()
    with torch.no_grad():
        spikes, _ = swap_neurons(Net(), sigma=0.5)(x)
    counted = (spikes.sum(0).max(1)[1] == y).float().mean()
    assert SF.accuracy_rate(spikes, y) == pytest.approx(float(counted))
    never = torch.cat([spikes, torch.ones_like(spikes[:1])]).argmax(0)  # one step late if silent
    timed = (never.clamp(max=STEPS - 1).min(1)[1] == y).float().mean()
    assert SF.accuracy_temporal(spikes, y) == pytest.approx(float(timed))


ENCODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "rate": lambda x: spikegen.rate(x, num_steps=STEPS),
    "latency": lambda x: spikegen.latency(x, num_steps=STEPS, tau=2, threshold=0.01, clip=True),
    "delta": lambda x: spikegen.delta(torch.stack([x * t for t in range(STEPS)]), threshold=0.3),
}


@pytest.mark.parametrize("first", ["expand", "encode"])
@pytest.mark.parametrize("name", ENCODERS)
def test_spikegen_before_or_behind_expand(name: str, first: str) -> None:
    """Encoded once per sample, or anew for each replica: both are batches like any other."""
    net = swap_neurons(Net(), sigma=0.5)
    learner = NITLearner(net, replicas=REPLICAS, credit="none", seed=0)
    x, y = torch.rand(BATCH, 12), batch()[1]
    with learner.record():
        if first == "expand":
            events = ENCODERS[name](learner.expand(x))
        else:
            events = learner.expand(ENCODERS[name](x), dim=1)
        spikes, _ = net(events)
        losses = SF.ce_rate_loss(reduction="none")(spikes, learner.expand(y))
    assert spikes.shape == (STEPS, REPLICAS * BATCH, CLASSES) and events.sum() > 0
    learner.backward(losses)
    assert float(net.fc1.weight.grad.abs().sum()) > 0


def test_reset_and_targets_of_the_framework() -> None:
    net = nn.Sequential(nn.Linear(12, 3), snn.Leaky(beta=0.9, init_hidden=True))
    swap_neurons(net, sigma=0.5)
    net(torch.rand(BATCH, 12))
    assert net[1].mem.abs().sum() > 0
    utils.reset(net)
    assert net[1].mem.abs().sum() == 0
    assert spikegen.targets_convert(batch()[1], num_classes=CLASSES).shape == (BATCH, CLASSES)


@pytest.fixture
def outputs() -> Iterator[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        spikes, membranes = swap_neurons(Net(), sigma=0.5)(batch()[0])
    with plt.rc_context():  # spike_count changes the colours of everything that follows
        yield spikes[:, 0], membranes[:, 0]
    plt.close("all")


def test_spikeplot_draws_a_noisy_network(outputs: tuple[Tensor, Tensor]) -> None:
    reason = "snntorch.spikeplot needs pandas, which snnTorch does not bring: pip install pandas"
    pytest.importorskip("pandas", reason=reason)
    import snntorch.spikeplot as splt

    spikes, membranes = outputs
    _, ax = plt.subplots()
    dots = splt.raster(spikes, ax)
    assert np.array_equal(np.asarray(dots.get_offsets()), spikes.nonzero().numpy())
    figure = plt.figure()
    splt.traces(membranes, spk=spikes, spk_height=5, dim=(1, CLASSES))
    for neuron, panel in enumerate(figure.axes):
        drawn = panel.lines[0].get_ydata()
        assert np.allclose(drawn, (membranes + 5 * spikes)[:, neuron])
    figure, ax = plt.subplots()
    splt.spike_count(spikes, figure, ax, labels=["0", "1", "2"], num_steps=STEPS)
    assert ax.get_xlim() == (0, STEPS)
