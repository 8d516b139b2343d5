"""The probe shows what happened, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from conftest import SnnTorchNet, SpikingJellyNet

from nit_snn import NITLearner, noise_off, swap_neurons
from nit_snn.errors import RecordingError
from nit_snn.inspect.probe import probe


@torch.no_grad()
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_snntorch_activity_adds_up(reset: str) -> None:
    net = swap_neurons(SnnTorchNet(reset, steps=3), sigma=0.5)
    with probe(net) as layers:
        spikes, membranes = net.spikes_and_membranes(torch.randn(7, 4))
    assert list(layers) == ["lif1", "lif2"]
    for activity in layers.values():
        assert len(activity.spikes) == len(activity.membranes) == 3
        for drift, noise, membrane, spike in zip(
            activity.drifts, activity.noises, activity.membranes, activity.spikes, strict=True
        ):
            torch.testing.assert_close(drift + noise, membrane)
            assert torch.equal(spike, (membrane > 1).float())
    assert torch.equal(torch.stack(layers["lif2"].spikes), spikes[..., 6:])
    assert torch.equal(torch.stack(layers["lif2"].membranes), membranes)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("steps", [1, 3])
def test_spikingjelly_activity_in_both_modes(mode: str, steps: int) -> None:
    net = swap_neurons(SpikingJellyNet(mode=mode, steps=steps))
    with probe(net) as layers:
        spikes = net.spikes(torch.randn(7, 4))
    activity = layers["body.3"]
    assert torch.equal(torch.stack(activity.spikes), spikes)
    assert torch.equal(torch.stack(activity.membranes) >= 1, spikes.bool())


def test_probe_without_noise_and_while_recording() -> None:
    net = swap_neurons(SnnTorchNet())
    with noise_off(net), probe(net) as layers:
        net(torch.randn(2, 4))
    assert all((noise == 0).all() for noise in layers["lif1"].noises)
    with (
        NITLearner(net, replicas=2).record(),
        pytest.raises(RecordingError, match="records"),
        probe(net),
    ):
        pass


def test_probe_leaves_nothing_behind() -> None:
    net = swap_neurons(SnnTorchNet())
    with pytest.raises(KeyError), probe(net):
        raise KeyError
    assert not net.lif1._forward_hooks and "_recorder" not in vars(net.lif1)


def test_a_probe_does_not_cut_the_surrogate_gradient_and_lets_no_learner_in() -> None:
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, replicas=2)
    with probe(net) as layers:
        net(torch.randn(2, 4)).sum().backward()
        with pytest.raises(RecordingError, match="probing lif1, lif2"), learner.record():
            pass
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert not any(m.requires_grad for m in layers["lif1"].membranes)
