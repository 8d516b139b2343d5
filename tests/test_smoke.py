"""What each extra is for works where it is installed, and names the extra where it is not.

Needs nothing but torch and pytest, so that `noxfile.py` can run it, with --noconftest, in
environments that have one extra or none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons


def spiking(lif: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), lif)


def learns(net: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
    """A step of learning, a checkpoint, and the plain network given back."""
    learner = NITLearner(net, replicas=8, seed=0)
    with learner.record():
        losses = run(learner.expand(torch.rand(5, 4))).sum(1)
    learner.backward(losses)
    assert net[0].weight.grad.abs().sum() > 0
    learner.load_state_dict(learner.state_dict())
    net.load_state_dict(net.state_dict())
    learner.close()
    with noise_off(net):
        assert torch.isfinite(run(torch.rand(2, 4))).all()
    restore_neurons(net)


def snntorch() -> None:
    import nit_snn.neurons.snntorch as family

    net = swap_neurons(spiking(family.snn.Leaky(beta=0.5, init_hidden=True)))
    learns(net, net)


def spikingjelly() -> None:
    import nit_snn.neurons.spikingjelly as family

    for mode in ("s", "m"):
        net = swap_neurons(spiking(family.sj.LIFNode(step_mode=mode)))

        def run(x: Tensor, net: nn.Module = net, mode: str = mode) -> Tensor:
            net[1].reset()
            return net(x) if mode == "s" else net(x.repeat(2, 1, 1)).sum(0)

        learns(net, run)


def train() -> None:
    from nit_snn import plotting
    from nit_snn.probe import probe

    net = swap_neurons(spiking(nn.Hardtanh(0, 1)))
    with probe(net) as layers:
        for _ in range(3):
            net(torch.rand(2, 4))
    assert len(plotting.activity(layers["1"])) == 3


def robustness() -> None:
    from nit_snn.robustness.attacks import _torchattacks

    assert _torchattacks().PGD


def nir() -> None:
    from nit_snn.nir_exchange import from_nir, to_nir

    try:
        snn = importlib.import_module("snntorch")
        lif = snn.Leaky(beta=0.5, reset_mechanism="zero", init_hidden=True)
    except ImportError:  # without nir no neuron is looked at
        lif = nn.Identity()
    assert from_nir(to_nir(spiking(lif), torch.rand(1, 4)), "snntorch")


#: What an extra is for, and the package whose absence has to name it.
EXTRAS = {
    snntorch: "snntorch",
    spikingjelly: "spikingjelly",
    train: "matplotlib",
    robustness: "torchattacks",
    nir: "nir",
}


@pytest.mark.parametrize("use", EXTRAS, ids=lambda use: use.__name__)
def test_an_extra_works_or_is_named(use: Callable[[], None]) -> None:
    try:
        importlib.import_module(EXTRAS[use])
    except ImportError:
        with pytest.raises(ImportError, match=rf"pip install .nit-snn\[{use.__name__}\]"):
            use()
    else:
        use()


def test_torch_alone_is_enough() -> None:
    net = swap_neurons(spiking(nn.Tanh()))
    learns(net, net)
