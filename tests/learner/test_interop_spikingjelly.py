"""SpikingJelly's monitors, encoders and functions, unchanged, with noisy networks; event data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SpikingJellyNet
from spikingjelly.activation_based import encoding, functional, layer, monitor, neuron
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.neurons import NoisyLIFNode

STEPS, BATCH, REPLICAS = 5, 4, 8
LABELS = torch.tensor([0, 1, 2, 1])
closes_itself = pytest.mark.skipif(
    not hasattr(monitor.OutputMonitor, "__enter__"),
    reason="SpikingJelly's monitors are context managers since 2.0",
)


def gradients(
    net: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, **options: Any
) -> list[Tensor]:
    """The estimates for one batch, (T, N, *), with the noise of one seed."""
    learner = NITLearner(net, **{"replicas": REPLICAS, "credit": "none", "seed": 5, **options})
    net.zero_grad()
    functional.reset_net(net)
    with learner.record():
        counts = run(learner.expand(x, dim=1)).sum(0)
        losses = F.cross_entropy(counts, learner.expand(LABELS), reduction="none")
    learner.backward(losses)
    learner.close()
    return [p.grad.clone() for p in net.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    assert sum(float(g.abs().sum()) for g in first) > 0
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, second, strict=True))


@closes_itself
@pytest.mark.parametrize("recorded", [False, True])
def test_monitors_of_outputs_inputs_and_attributes(recorded: bool) -> None:
    net = swap_neurons(SpikingJellyNet(steps=STEPS), sigma=0.5)
    learner = NITLearner(net, replicas=REPLICAS)
    for node in (net.body[1], net.body[3]):
        node.store_v_seq = True
    spiking, every = (neuron.LIFNode, NoisyLIFNode), layer.Linear
    with (
        monitor.OutputMonitor(net, instance=spiking) as outputs,
        monitor.InputMonitor(net, instance=every) as inputs,
        monitor.AttributeMonitor("v_seq", False, net, instance=spiking) as membranes,
    ):
        x = torch.randn(BATCH, 4)
        if recorded:
            with learner.record():
                counts = net(learner.expand(x))
            learner.backward(F.cross_entropy(counts, learner.expand(LABELS), reduction="none"))
        else:
            counts = net(x)
    assert outputs.monitored_layers == membranes.monitored_layers == ["body.1", "body.3"]
    (spikes,) = outputs["body.3"]
    assert torch.equal(spikes.sum(0), counts) and spikes.sum() > 0
    assert torch.equal(inputs["body.2"][0], outputs["body.1"][0])
    (after,) = membranes["body.3"]
    assert after.shape == spikes.shape and (after[spikes.bool()] == 0).all()


@closes_itself
def test_a_monitor_of_gradients_sees_none_in_a_recorded_pass() -> None:
    """Without a credit there is no graph through a spike, and the gradient is the same with it."""
    net = swap_neurons(SpikingJellyNet(steps=STEPS))
    x = torch.randn(STEPS, BATCH, 4)
    alone = gradients(net, net.body, x)
    with monitor.GradOutputMonitor(net, instance=NoisyLIFNode) as seen:
        assert same(gradients(net, net.body, x), alone)
    assert not seen.records


def test_reset_step_mode_and_detach() -> None:
    net = swap_neurons(SpikingJellyNet(steps=STEPS))
    x = torch.randn(STEPS, BATCH, 4)
    functional.set_step_mode(net, "m")
    functional.reset_net(net)
    with noise_off(net):
        whole = net.body(x)
    node = net.body[1]
    assert isinstance(node.v, Tensor) and node.v.abs().sum() > 0
    functional.detach_net(net)
    assert not node.v.requires_grad
    functional.reset_net(net)
    assert node.v == 0.0
    functional.set_step_mode(net, "s")
    assert all(module.step_mode == "s" for module in net.body)
    with noise_off(net):
        assert torch.equal(torch.stack([net.body(step) for step in x]), whole)
    functional.reset_net(net)
    restore_neurons(net)
    assert torch.equal(torch.stack([net.body(step) for step in x]), whole)


RUNS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "multi_step_forward": lambda net, x: functional.multi_step_forward(x, net.body),
    "chunk_multi_step_forward": lambda net, x: functional.chunk_multi_step_forward(2, x, net.body),
    "seq_to_ann_forward": lambda net, x: net.body[3](
        functional.seq_to_ann_forward(
            net.body[1](functional.seq_to_ann_forward(x, net.body[0])), net.body[2]
        )
    ),
}


@pytest.mark.parametrize(
    "options",
    [{}, {"credit": "auto", "replicas": 1}, {"credit": "time", "residual": 1}],
    ids=["none", "auto", "time"],
)
@pytest.mark.parametrize("name", RUNS)
def test_ways_of_running_a_sequence_give_the_same_gradient(
    name: str, options: dict[str, Any]
) -> None:
    net = swap_neurons(SpikingJellyNet(steps=STEPS))
    x = torch.randn(STEPS, BATCH, 4)
    plain = gradients(net, net.body, x, **options)
    functional.set_step_mode(net, "s" if name == "multi_step_forward" else "m")
    if name == "seq_to_ann_forward":
        functional.set_step_mode(net.body[0], "s")
        functional.set_step_mode(net.body[2], "s")
    assert same(gradients(net, lambda seq: RUNS[name](net, seq), x, **options), plain)


def test_temporal_efficient_training_as_one_number_per_row() -> None:
    """The framework's function gives one number; its mean over rows is that of docs/interop.md."""
    net = swap_neurons(SpikingJellyNet(steps=STEPS))
    learner = NITLearner(net, replicas=REPLICAS)
    with learner.record():
        spikes = net.spikes(learner.expand(torch.randn(BATCH, 4)))
        yr = learner.expand(LABELS)
        losses = torch.stack([F.cross_entropy(s, yr, reduction="none") for s in spikes]).mean(0)
    theirs = functional.temporal_efficient_training_cross_entropy(spikes, yr)
    assert torch.allclose(learner.backward(losses), theirs, atol=1e-6)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "Poisson": encoding.PoissonEncoder,
    "latency": lambda: encoding.LatencyEncoder(STEPS),
    "phase": lambda: encoding.WeightedPhaseEncoder(STEPS),
}


@pytest.mark.parametrize("first", ["expand", "encode"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_before_or_behind_expand(name: str, first: str) -> None:
    net = swap_neurons(SpikingJellyNet(steps=STEPS))
    learner = NITLearner(net, replicas=REPLICAS)
    encoder, x = ENCODERS[name](), 0.9 * torch.rand(BATCH, 4)
    with learner.record():
        image = learner.expand(x) if first == "expand" else x
        events = torch.stack([encoder(image) for _ in range(STEPS)])
        if first == "encode":
            events = learner.expand(events, dim=1)
        functional.reset_net(net)
        counts = net.body(events).sum(0)
        losses = F.cross_entropy(counts, learner.expand(LABELS), reduction="none")
    assert set(events.unique().tolist()) == {0.0, 1.0}
    learner.backward(losses)
    assert float(net.body[0].weight.grad.abs().sum()) > 0


def test_an_encoder_inside_the_network() -> None:
    net = swap_neurons(
        nn.Sequential(encoding.PoissonEncoder(step_mode="m"), SpikingJellyNet().body)
    )
    x = torch.rand(STEPS, BATCH, 4)
    assert len(gradients(net, net, x)) == 4


def event_network() -> nn.Sequential:
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        neuron.LIFNode(tau=2.0, decay_input=False),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(4 * 4 * 4, 3),
        neuron.LIFNode(tau=2.0, decay_input=False),
    )
    functional.set_step_mode(net, "m")
    return net


def learns_directions(frames: Tensor) -> None:
    """Trains on events (T, N, 2, H, W) of three kinds, and checks that the loss falls."""
    net = swap_neurons(event_network(), sigma=0.5)
    learner = NITLearner(net, replicas=16, credit="none", seed=0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-2)
    labels = torch.arange(frames.shape[1]) % 3
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with learner.record():
            functional.reset_net(net)
            rates = net(learner.expand(frames, dim=1)).mean(0)
            rows = F.cross_entropy(5 * rates, learner.expand(labels), reduction="none")
        losses.append(float(learner.backward(rows)))
        optimizer.step()
    assert sum(losses[-3:]) / 3 < 0.75 * sum(losses[:3]) / 3, losses


def moving_edge(kind: int, rng: np.random.Generator) -> Any:
    """Events of an edge on an 8 by 8 sensor, as tonic holds them: x, y, t in microseconds, p."""
    dtype = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.int16)])
    events = np.zeros(160, dtype)
    events["t"] = np.sort(rng.integers(0, STEPS * 1000, len(events)))
    place, where = events["t"] * 8 // (STEPS * 1000), rng.integers(0, 8, len(events))
    events["x"], events["y"] = ((place, where), (where, place), (7 - place, where))[kind]
    events["p"] = rng.integers(0, 2, len(events))
    return events


def test_event_tensors() -> None:
    """(T, N, 2, H, W), as event datasets are framed, made by hand."""
    rng = np.random.default_rng(0)
    frames = torch.zeros(STEPS, 12, 2, 8, 8)
    for sample in range(12):
        for event in moving_edge(sample % 3, rng):
            step = int(event["t"]) // 1000
            frames[step, sample, int(event["p"]), int(event["y"]), int(event["x"])] += 1
    learns_directions(frames)


def test_frames_from_tonic() -> None:
    reason = "tonic is not installed: pip install tonic"
    transforms = pytest.importorskip("tonic.transforms", reason=reason)
    from tonic.collation import PadTensors

    rng = np.random.default_rng(0)
    to_frame = transforms.ToFrame(sensor_size=(8, 8, 2), n_time_bins=STEPS)
    samples = [(to_frame(moving_edge(i % 3, rng)).astype(np.float32), i % 3) for i in range(12)]
    frames, labels = PadTensors(batch_first=False)(samples)
    assert frames.shape == (STEPS, 12, 2, 8, 8) and labels.tolist() == [i % 3 for i in range(12)]
    learns_directions(frames)
