"""Rows that are not what they are taken for: named, refused, or found out; right ones unheard."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import BiasWarning, LossError, MisuseWarning, RecordingError
from nit_snn.recording.find_orders import find_orders
from nit_snn.recording.orders import Order, possible_orders

REPLICAS, SAMPLES, PARTS, SIZE = 4, 6, 2, 5
Y = torch.randint(3, (SAMPLES,), generator=torch.Generator().manual_seed(0))
X = torch.rand(SAMPLES, SIZE, generator=torch.Generator().manual_seed(1))
VIEWS = torch.rand(SAMPLES, PARTS, SIZE, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Spikes of the hidden layer, and scores."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda s: s) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(SIZE, 8), snn.Leaky(beta=0.8)
        self.fc2, self.lif2 = nn.Linear(8, 8), snn.Leaky(beta=0.8)
        self.fc3, self.between = nn.Linear(8, 3), between
        swap_neurons(self, sigma=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, scores, total = self.lif1.reset_mem(), self.lif2.reset_mem(), 0, 0
        for _ in range(3):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            last, mem2 = self.lif2(self.fc2(self.between(spikes)), mem2)
            scores, total = scores + self.fc3(last), total + spikes
        return scores, total


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", BiasWarning)
        warnings.simplefilter("error", MisuseWarning)
        yield


def passed(
    net: nn.Module,
    loss: Callable[[Tensor, Tensor, Tensor], Any],
    passes: int = 1,
    x: Tensor = X,
    rows: Callable[[Tensor], Tensor] = lambda x: x,
    **options: Any,
) -> NITLearner:
    learner = NITLearner(net, **{"replicas": REPLICAS, "seed": 0, **options})
    for _ in range(passes):
        with learner.record():
            xr, yr = learner.expand(x, Y)
            losses = loss(*net(rows(xr)), yr)
        learner.backward(losses)
    return learner


def plain(scores: Tensor, _: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, reduction="none")


def penalty(scores: Tensor, total: Tensor, y: Tensor) -> Tensor:
    return plain(scores, total, y) + 0.5 * total.mean()


def triplet(scores: Tensor, total: Tensor, y: Tensor) -> Tensor:
    return F.triplet_margin_loss(scores, scores.roll(1, 0), scores.roll(2, 0), reduction="none")


def in_batch(scores: Tensor, total: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores @ scores.T, torch.arange(len(scores)), reduction="none")


SCORES = [{"credit": "none"}, {"credit": "layers", "residual": 1}, {"rule": "nit-s"}]


@pytest.mark.parametrize("options", SCORES, ids=["none", "layers", "nit-s"])
@pytest.mark.parametrize("loss", [penalty, triplet, in_batch])
def test_a_loss_of_other_samples_is_biased_and_said_so_once(
    loss: Any, options: dict[str, Any]
) -> None:
    with pytest.warns(BiasWarning, match="lif.*losses.*shared=term"):
        learner = passed(Net(), loss, **options)
    with learner.record():
        xr, yr = learner.expand(X, Y)
        losses = loss(*learner.net(xr), yr)
    learner.backward(losses)


@pytest.mark.parametrize("loss", [penalty, triplet, in_batch])
def test_the_usual_estimate_leaves_the_likelihood_ratio_out_then(loss: Any) -> None:
    net = Net()
    with pytest.warns(MisuseWarning, match="residual='auto' leaves the likelihood ratio out"):
        learner = passed(net, loss)
    assert "residual=0" in learner._choice.describe()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    learner.close()
    passed(net, loss, residual=0)  # the derivative of the whole loss, by its own formula
    for parameter, own in zip(net.parameters(), found, strict=True):
        torch.testing.assert_close(parameter.grad, own)


def test_one_replica_needs_no_word() -> None:
    passed(Net(), penalty, replicas="auto")
    passed(Net(), in_batch, residual=0)


def mixed(spikes: Tensor) -> Tensor:
    rows = spikes.unflatten(0, (-1, SAMPLES))
    return (rows + rows.roll(1, 1)).flatten(0, 1)


@pytest.mark.parametrize("options", SCORES, ids=["none", "layers", "nit-s"])
def test_rows_mixed_between_layers(options: dict[str, Any]) -> None:
    with pytest.warns(BiasWarning, match="between lif1 and lif2"):
        passed(Net(mixed), plain, **options)


def test_a_term_that_comes_later_is_noticed_later() -> None:
    for credit in ("none", "layers"):
        net = Net()
        learner = passed(net, plain, 3, credit=credit, residual=1 if credit == "layers" else "auto")
        with pytest.warns(BiasWarning):
            for _ in range(2):
                with learner.record():
                    xr, yr = learner.expand(X, Y)
                    losses = penalty(*net(xr), yr)
                learner.backward(losses)


def test_losses_of_replicas_and_shared_terms_are_not_warned_of() -> None:
    def whole(scores: Tensor, total: Tensor, y: Tensor) -> Tensor:
        z = scores.unflatten(0, (REPLICAS, -1))
        return (z @ z.transpose(1, 2)).flatten(1).logsumexp(1)

    for options in SCORES:
        passed(Net(mixed), whole, **options)
    net = Net()
    learner = NITLearner(net, replicas=REPLICAS, credit="none")
    with learner.record():
        xr, yr = learner.expand(X, Y)
        scores, total = net(xr)
        losses = plain(scores, total, yr)
        rate = total.unflatten(0, (REPLICAS, -1)).flatten(1).mean(1)
    mean = learner.backward(losses, shared=rate)
    torch.testing.assert_close(mean, (losses.mean() + rate.mean()).detach())


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        (lambda total: total.mean(), r"shape \(4,\), got \(\)"),
        (lambda total: total.mean(1), r"shape \(4,\), got \(24,\)"),
        (lambda total: total[:REPLICAS].mean(1) + total.mean(), "mixes those of lif1"),
    ],
)
def test_a_shared_term_of_another_kind(shared: Any, said: str) -> None:
    net = Net()
    learner = NITLearner(net, replicas=REPLICAS, credit="none")
    with learner.record():
        xr, yr = learner.expand(X, Y)
        scores, total = net(xr)
        losses = plain(scores, total, yr)
    with pytest.raises(LossError, match=said):
        learner.backward(losses, shared=shared(total))
    assert all(p.grad is None for p in net.parameters())


def test_a_term_without_derivative_is_not_left_to_the_derivative_of_the_other() -> None:
    net = Net()
    learner = NITLearner(net, seed=0)
    for _ in range(2):
        with learner.record():
            xr, yr = learner.expand(X, Y)
            scores, total = net(xr)
            wrong = (scores.argmax(1) != yr).float()
        rate = total.unflatten(0, (learner.replicas, -1)).flatten(1).mean(1)
        learner.backward(wrong, shared=rate)
    assert learner._choice.kind == "none"


def fold(order: str) -> Callable[[Tensor], Tensor]:
    if order == "cat":
        return lambda s: s.unflatten(0, (PARTS, -1)).mean(0)
    return lambda s: s.unflatten(0, (-1, PARTS)).mean(1)


def rows(order: str) -> Callable[[Tensor], Tensor]:
    return (lambda x: torch.cat(x.unbind(1))) if order == "cat" else lambda x: x.flatten(0, 1)


def zero_one(scores: Tensor, _: Tensor, y: Tensor) -> Tensor:
    return (scores.argmax(1) != y).float()


@pytest.mark.parametrize("loss", [plain, zero_one])
@pytest.mark.parametrize("where", ["behind", "between"])
@pytest.mark.parametrize("order", ["flatten", "cat"])
def test_the_order_is_found_with_and_without_a_derivative(
    order: str, where: str, loss: Any
) -> None:
    together = fold(order)
    net = Net(together) if where == "between" else Net()

    def own(scores: Tensor, total: Tensor, y: Tensor) -> Tensor:
        return loss(together(scores) if where == "behind" else scores, total, y)

    learner = NITLearner(net, replicas=REPLICAS, credit="none", seed=0)
    for size in (SAMPLES, SAMPLES, 3):  # the last batch is smaller
        with learner.record():
            xr, yr = learner.expand(VIEWS[:size], Y[:size])
            losses = own(*net(rows(order)(xr)), yr)
        trace = learner._session.pending().trace
        layers = {layer.name: layer for layer in trace.active}
        learner.backward(losses)
        expected = Order(REPLICAS, size, *((PARTS, 1, 1) if order == "cat" else (1, 1, PARTS)))
        assert layers["lif1"].order == expected
        assert layers["lif2"].order == (expected if where == "behind" else Order(REPLICAS, size))


def test_the_default_finds_it_for_a_loss_without_a_derivative() -> None:
    for order in ("flatten", "cat"):
        together = fold(order)
        learner = passed(
            Net(),
            lambda scores, total, y, f=together: zero_one(f(scores), total, y),
            3,
            VIEWS,
            rows(order),
            replicas="auto",
        )
        assert learner.replicas == 16


def test_where_nothing_tells_it_is_said() -> None:
    def poisson(x: Tensor) -> Tensor:
        return (torch.rand_like(x) < x).float().flatten(0, 1)

    with pytest.raises(LossError, match=r"Nobody can say .*lif1 \(48 rows\)"):
        passed(
            Net(),
            lambda scores, total, y: zero_one(fold("flatten")(scores), total, y),
            x=VIEWS,
            rows=poisson,
            credit="none",
        )
    passed(  # its derivative tells
        Net(),
        lambda scores, total, y: plain(fold("flatten")(scores), total, y),
        x=VIEWS,
        rows=poisson,
        credit="none",
    )


def test_views_put_together_before_and_no_derivative() -> None:
    net = Net()
    learner = NITLearner(net, replicas=REPLICAS, credit="none", seed=0)
    with learner.record():
        xr, yr = learner.expand(torch.cat(VIEWS.unbind(1))), learner.expand(Y)
        scores, total = net(xr)
        losses = zero_one(
            scores.unflatten(0, (REPLICAS, PARTS, -1)).mean(1).flatten(0, 1), total, yr
        )
    with pytest.warns(MisuseWarning, match="All rows of a replica are charged"):
        learner.backward(losses)


def test_antithetic_views() -> None:
    with pytest.raises(LossError, match="antithetic=True would give"):
        passed(
            Net(),
            lambda scores, total, y: plain(fold("cat")(scores), total, y),
            x=VIEWS,
            rows=rows("cat"),
            credit="none",
            antithetic=True,
        )


def test_feedback_to_layers_of_other_rows() -> None:
    def together(scores: Tensor, total: Tensor, y: Tensor) -> Tensor:
        return plain(fold("flatten")(scores), total, y)

    passed(Net(), together, 2, VIEWS, rows("flatten"), forward_only=True)
    with pytest.raises(LossError, match=r"lif1 \(48\), lif2 \(24\).*credit='layers'"):
        passed(Net(fold("flatten")), plain, 1, VIEWS, rows("flatten"), forward_only=True)


def test_unequal_numbers_of_rows() -> None:
    def ragged(x: Tensor) -> Tensor:
        return torch.cat([x.flatten(0, 1), x[:, 0][:REPLICAS]])

    with pytest.raises(RecordingError, match="fill up those of fewer rows"):
        passed(Net(), plain, x=VIEWS, rows=ragged)


class ChannelsFirst(nn.Module):
    """(channel, N, feature) into a neuron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.lif = nn.Conv1d(1, channels, 1), snn.Leaky(beta=0.8)
        self.fc = nn.Linear(channels * SIZE, 3)
        swap_neurons(self, sigma=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, total = self.lif.reset_mem(), 0
        for _ in range(3):
            spikes, mem = self.lif(self.mix(x[:, None]).transpose(0, 1), mem)
            total = total + spikes
        return self.fc(total.transpose(0, 1).flatten(1)), total


@pytest.mark.parametrize("channels", [24, 12, 48, 5])
def test_the_batch_along_another_dimension(channels: int) -> None:
    with pytest.raises((RecordingError, LossError), match=r"imension 1.*transpose\(0, 1\)"):
        passed(ChannelsFirst(channels), plain)


def test_the_batch_along_another_dimension_of_a_random_code() -> None:
    with pytest.raises(LossError, match=r"dimension 1, not 0, in: lif"):
        passed(ChannelsFirst(24), plain, rows=lambda x: (torch.rand_like(x) < x).float())


class Misplaced(nn.Module):
    """The second neuron has its batch along dimension 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(SIZE, 8), snn.Leaky(beta=0.8)
        self.mix, self.lif2 = nn.Conv1d(1, channels, 1), snn.Leaky(beta=0.8)
        self.fc = nn.Linear(channels * 8, 3)
        swap_neurons(self, sigma=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, total = self.lif1.reset_mem(), self.lif2.reset_mem(), 0
        for _ in range(3):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, mem2 = self.lif2(self.mix(spikes[:, None]).transpose(0, 1), mem2)
            total = total + spikes
        return self.fc(total.transpose(0, 1).flatten(1)), total


@pytest.mark.parametrize("options", SCORES, ids=["none", "layers", "nit-s"])
@pytest.mark.parametrize("channels", [24, 12, 48])
def test_the_batch_along_another_dimension_behind_noise(
    channels: int, options: dict[str, Any]
) -> None:
    with pytest.raises((RecordingError, LossError), match=r"imension 1.*transpose\(0, 1\)"):
        passed(Misplaced(channels), plain, **options)


def test_one_random_current_for_all_neurons_is_not_a_batch_of_neurons() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gain, self.lif, self.fc = nn.Linear(1, 1), snn.Leaky(beta=0.8), nn.Linear(24, 3)
            swap_neurons(self, sigma=0.5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            coded = (torch.rand_like(x[:, :1]) < x[:, :1]).float()
            spikes, _ = self.lif(self.gain(coded).expand(-1, 24), self.lif.reset_mem())
            return self.fc(spikes), spikes

    passed(Broadcast(), plain, credit="none")


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("no derivative")


def test_what_has_no_derivative_is_no_obstacle() -> None:
    passed(Net(Refuses.apply), plain, credit="none")


def test_the_obvious_way_out_for_several_rows_is_named() -> None:
    def repeated(scores: Tensor, total: Tensor, y: Tensor) -> Tensor:
        return plain(fold("flatten")(scores), total, y).repeat_interleave(PARTS)

    with pytest.warns(BiasWarning, match="one for each sample"):
        passed(Net(), repeated, x=VIEWS, rows=rows("flatten"), credit="none")


def test_orders_of_rows() -> None:
    for order in possible_orders(REPLICAS * SAMPLES * 6, REPLICAS, SAMPLES):
        units = order.unit_of_each_row()
        values = torch.arange(order.rows)
        grouped = order.group(values)
        assert torch.equal(order.ungroup(grouped), values)
        same = units[grouped]
        expected = torch.arange(order.units).view(REPLICAS, SAMPLES, 1)
        assert torch.equal(same, expected.expand_as(same))
        assert torch.equal(order.whole.unit_of_each_row(), units // SAMPLES)
    assert len(possible_orders(24 * 6, REPLICAS, SAMPLES)) == 9
    assert len(possible_orders(6 * 6, 1, 6)) == len(possible_orders(6 * 6, 6, 1)) == 4


def test_no_evidence_leaves_all_that_cat_and_flatten_make() -> None:
    found = find_orders({"lif": 48}, REPLICAS, SAMPLES, None, [24])
    assert {(o.outer, o.middle, o.inner) for o in found.open["lif"]} == {(2, 1, 1), (1, 1, 2)}
