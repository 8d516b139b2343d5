"""What each extra is for works where it is installed, and names the extra where it is not.

Needs nothing but torch and pytest, so that `noxfile.py` can run it, with --noconftest, in
environments that have one extra or none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib import metadata

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor, nn

from nit_snn import NITLearner, noise_off, restore_neurons, swap_neurons
from nit_snn.errors import ExchangeError


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
    from nit_snn.inspect import plotting
    from nit_snn.inspect.probe import probe

    net = swap_neurons(spiking(nn.Hardtanh(0, 1)))
    with probe(net) as layers:
        for _ in range(3):
            net(torch.rand(2, 4))
    assert len(plotting.activity(layers["1"])) == 3


def robustness() -> None:
    from nit_snn.robustness.attacks import _torchattacks

    assert _torchattacks().PGD


def nir() -> None:
    from nit_snn.exchange import from_nir, to_nir

    try:
        snn = importlib.import_module("snntorch")
    except ImportError:  # no neuron that NIR could carry; but without nir none is looked at
        try:
            to_nir(spiking(nn.Identity()), torch.rand(1, 4))
        except ExchangeError as error:
            assert "no spiking neuron" in str(error)
        return
    lif = snn.Leaky(beta=0.5, reset_mechanism="zero", init_hidden=True)
    assert from_nir(to_nir(spiking(lif), torch.rand(1, 4)), "snntorch")


def lightning() -> None:
    """Where the loss is no part of a graph, the update is made by hand."""
    from lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = swap_neurons(spiking(nn.Tanh()))
            self.learner = NITLearner(self.net, replicas=8, seed=0)

        def training_step(self, batch: Tensor) -> None:
            with self.learner.record():
                losses = self.net(self.learner.expand(batch)).sum(1).detach()
            self.optimizers().zero_grad()
            self.learner.backward(losses)
            self.optimizers().step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.learner.parameters(), lr=0.1)

    module = Module()
    before = module.net[0].weight.detach().clone()
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **silent)
    trainer.fit(module, torch.utils.data.DataLoader(torch.rand(5, 4), batch_size=5))
    assert not torch.equal(module.net[0].weight, before)


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


def test_lightning_takes_a_learner() -> None:
    pytest.importorskip("lightning", reason="pip install 'nit-snn[lightning]'")
    lightning()


#: What lies in another's wheel, and is not what it is for.
STRANGERS = {"robustbench"}


def brought(extra: str) -> Iterator[str]:
    """The distributions that an extra names, itself or by another extra."""
    for line in metadata.requires("nit-snn") or []:
        requirement = Requirement(line)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "nit-snn":
            for other in sorted(requirement.extras):
                yield from brought(other)
        else:
            yield requirement.name


@pytest.mark.parametrize("extra", metadata.metadata("nit-snn").get_all("Provides-Extra"))
def test_all_that_an_extra_brings_can_be_imported(extra: str) -> None:
    modules: dict[str, list[str]] = {}
    for module, names in metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(name.lower().replace("_", "-"), []).append(module)
    wanted = list(brought(extra))
    missing = [name for name in wanted if name not in modules]
    if missing:
        pytest.skip(f"without {', '.join(missing)}")
    for name in wanted:
        for module in modules[name]:
            if module.isidentifier() and not module.startswith("_") and module not in STRANGERS:
                importlib.import_module(module)
