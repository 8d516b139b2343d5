"""Networks of snnTorch's tutorials and SpikingJelly's examples learn by NIT, as they are.

They are smaller here, in channels and time steps, and learn ten images by heart in a few seconds.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.datasets import load, split
from nit_snn.errors import BiasWarning

EXAMPLES = Path(__file__).parents[2] / "examples"
LOG_10 = math.log(10)

# Sizes, iterations, learning rate, and the loss of outputs that tell no class from another.
SHORT: dict[str, tuple[dict[str, int], int, float, float]] = {
    "tutorial5": ({"steps": 10, "hidden": 100}, 25, 1e-2, 10 * LOG_10),
    "tutorial6": ({"steps": 5, "channels": 8}, 36, 5e-3, LOG_10),
    "lif_fc_mnist": ({"steps": 10}, 25, 2e-3, 0.09),
    "conv_fashion_mnist": ({"steps": 4, "channels": 4}, 32, 1e-2, 0.09),
}


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)
    torch.set_flush_denormal(True)
    return importlib.import_module("their_networks")


@pytest.mark.parametrize("name", SHORT)
def test_it_learns_ten_images(name: str, theirs: Any) -> None:
    sizes, iterations, lr, told_nothing = SHORT[name]
    setting = theirs.SETTINGS[name]
    x, y = (t[:10] for t in split(*load(setting.data)).train.tensors)
    net = setting.build(**sizes)
    swap_neurons(net, setting.sigma)
    learner = NITLearner(net, seed=0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=lr)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasWarning)  # see below
        for _ in range(iterations):
            optimizer.zero_grad()
            with learner.record():
                rows = net.losses(*learner.expand(x, y))
            losses.append(float(learner.backward(rows)))
            optimizer.step()
    reached = sum(losses[-5:]) / 5
    assert reached < losses[0]
    assert reached < 0.95 * told_nothing, (losses[::10], reached)


@pytest.mark.parametrize("name", SHORT)
def test_without_noise_it_is_the_network_that_it_was(name: str, theirs: Any) -> None:
    sizes = SHORT[name][0]
    net = theirs.SETTINGS[name].build(**sizes).eval()
    theirs.amplify(net, 4.0)
    x = load("mnist")[0][:5].float().unsqueeze(1) / 255
    outputs = []
    for context in (None, noise_off, None):
        torch.manual_seed(3)  # of the Poisson spikes
        if context is noise_off:
            swap_neurons(net, 0.5)
            with noise_off(net), torch.no_grad():
                outputs.append(net.scores(x))
            restore_neurons(net)
        else:
            with torch.no_grad():
                outputs.append(net.scores(x))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert outputs[0].abs().sum() > 0


def test_batch_norm_between_noisy_layers_is_named_and_can_be_frozen(theirs: Any) -> None:
    net = swap_neurons(theirs.ConvFashionMnist(steps=2, channels=2), 0.5)
    x, y = torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])

    def step() -> None:
        learner = NITLearner(net, replicas=2, credit="none")
        with learner.record():
            losses = net.losses(*learner.expand(x, y))
        learner.backward(losses)
        learner.close()

    with pytest.warns(BiasWarning, match=r"conv_fc\.5\. "):
        step()
    net.conv_fc[5].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", BiasWarning)
        step()


def test_the_networks_have_the_sizes_of_the_originals(theirs: Any) -> None:
    """Their numbers of parameters, from the descriptions, weights and biases."""

    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    assert count(theirs.Tutorial5()) == 785 * 1000 + 1001 * 10
    assert count(theirs.Tutorial6()) == 12 * 26 + 64 * (12 * 25 + 1) + 1025 * 10
    assert count(theirs.LifFcMnist()) == 784 * 10
    convolutions, norms = 128 * 9 + 128 * 128 * 9, 4 * 128
    dense = 128 * 49 * 2048 + 2048 * 10
    assert count(theirs.ConvFashionMnist()) == convolutions + norms + dense


def test_the_example_trains_and_writes_what_it_found(
    theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--steps", "10", "--batch-size", "100", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["their_networks.py", "lif_fc_mnist", *options])
    theirs.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test"] > 60  # chance is 10
    assert results["images"]["train"] == 7000 and len(results["history"]) == 1
