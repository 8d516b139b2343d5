"""Deep, convolutional and recurrent spiking networks, and losses without a gradient, by NIT.

    python examples/architectures.py deep                      # the embedded 10,000 images
    python examples/architectures.py deep --data-dir data      # all 70,000

Each name is an experiment with settings of its own, and any setting can be changed:

    deep         784-100-100-100-10
    conv         two convolutions of stride 2, 16 and 32 channels, and a linear readout
    recurrent    128 recurrent neurons (snn.RLeaky) that see one row of the image per step
    polystep     784-128-10 with spiking outputs: the network of PolyStep (arXiv:2605.01928)
    zero-one     spiking outputs; the loss is the share of wrong decisions
    first-spike  spiking outputs; the first spike decides, and lateness and every spike cost

The losses of the last two have no gradient anywhere: nothing but the noise trains them. STBP, with
`--methods nit stbp`, is the same network trained through its surrogate gradient.
Results, checkpoints and a picture are written to --output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pictures
import snntorch as snn
import torch
import torch.nn.functional as F
import training
from torch import Tensor, nn

from nit_snn import NITLearner
from nit_snn.datasets import NAMES, Splits, load, split

LATENESS, PRICE = 0.3, 0.001  # of the last possible step, and of one spike, in mistakes


class Layers(nn.Module):
    """Layers of Leaky neurons that see the same image at every step.

    Args:
        synapses: What lies before each layer of neurons.
        readout: Reads the last layer's spikes; without it these are the outputs.
        steps: T.
        beta: Decay of the membranes.
        decide: Turns outputs (T, N, 10) into scores (N, 10); their sum over time by default.
    """

    def __init__(
        self,
        *synapses: nn.Module,
        steps: int,
        readout: nn.Module | None = None,
        beta: float = 0.5,
        decide: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.synapses = nn.ModuleList(synapses)
        self.neurons = nn.ModuleList(snn.Leaky(beta=beta, reset_mechanism="zero") for _ in synapses)
        self.readout, self.steps, self.decide = readout, steps, decide

    def activity(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of all steps, (T, N, 10), and how many spikes each image took, (N,)."""
        if isinstance(self.synapses[0], nn.Linear):
            images = images.flatten(1)
        membranes = [neuron.reset_mem() for neuron in self.neurons]
        outputs, count = [], torch.zeros(len(images), device=images.device)
        for _ in range(self.steps):
            x = images
            for i, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                x, membranes[i] = neuron(synapse(x), membranes[i])
                count += x.detach().flatten(1).sum(1)
            outputs.append(self.readout(x.flatten(1)) if self.readout else x)
        return torch.stack(outputs), count

    def forward(self, images: Tensor) -> Tensor:
        outputs, _ = self.activity(images)
        return self.decide(outputs) if self.decide else outputs.sum(0)


class Rows(nn.Module):
    """Recurrent neurons that see the image row by row, from top to bottom.

    Args:
        hidden: Number of neurons.
        window: A linear readout sums what the neurons say at the last so many rows.
        memory: Without it there is neither recurrence nor leak nor reset: a neuron knows
            nothing but the row that it sees.
    """

    def __init__(self, hidden: int, window: int, memory: bool = True) -> None:
        super().__init__()
        self.window = window
        self.synapses = nn.ModuleList([nn.Linear(28, hidden)])
        recurrent = snn.RLeaky(
            beta=0.8 if memory else 0.0,
            linear_features=hidden,
            learn_recurrent=memory,
            reset_mechanism="subtract" if memory else "none",
        )
        nn.init.normal_(recurrent.recurrent.weight, std=0.3 / hidden**0.5 if memory else 0.0)
        nn.init.zeros_(recurrent.recurrent.bias)
        self.neurons = nn.ModuleList([recurrent])
        self.readout = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        spikes, membrane = self.neurons[0].reset_mem()
        read = []
        for t, row in enumerate(images.squeeze(1).unbind(1)):
            spikes, membrane = self.neurons[0](self.synapses[0](row), spikes, membrane)
            if t >= 28 - self.window:
                read.append(self.readout(spikes))
        return torch.stack(read).sum(0)


@torch.no_grad()
def balance(net: Layers | Rows, images: Tensor, std: float, mean: float) -> None:
    """Scales the synapses, first to last, so that the currents of `images` have this spread.

    Every neuron's current gets the mean, so that none is silent and none fires all the time; the
    default initialisation leaves deep layers close to silence.
    """
    for synapse in net.synapses:
        seen: list[Tensor] = []
        hook = synapse.register_forward_hook(
            lambda _module, _input, out, seen=seen: seen.append(out)
        )
        net(images)
        hook.remove()
        currents = torch.cat(seen).transpose(0, 1).flatten(1)  # neurons or channels first
        centers = currents.mean(1)
        factor = std / (currents - centers[:, None]).std()
        synapse.weight *= factor
        synapse.bias.copy_(mean - (centers - synapse.bias) * factor)


def first_spikes(outputs: Tensor) -> Tensor:
    """How early each neuron fires first: T at the first step, 1 at the last, 0 never; (N, 10)."""
    earliness = torch.arange(len(outputs), 0, -1, device=outputs.device).to(outputs.dtype)
    return (outputs * earliness[:, None, None]).amax(0)


def earliest_then_most(outputs: Tensor) -> Tensor:
    """Scores where the first spike decides, and among equals the number of spikes."""
    return first_spikes(outputs) + outputs.sum(0) / (len(outputs) + 1)


def mistakes(scores: Tensor, labels: Tensor) -> Tensor:
    """1 for a wrong decision, 0 for a right one; between equals chance decides: its mean."""
    best = scores == scores.amax(1, keepdim=True)
    return 1 - best.gather(1, labels[:, None]).squeeze(1) / best.sum(1)


def cross_entropy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(images), labels, reduction="none")


def zero_one(net: Layers, images: Tensor, labels: Tensor) -> Tensor:
    return mistakes(net(images), labels)


def late_and_costly(net: Layers, images: Tensor, labels: Tensor) -> Tensor:
    """A mistake costs 1, the right neuron's delay up to `LATENESS`, and every spike `PRICE`."""
    outputs, count = net.activity(images)
    early = first_spikes(outputs).gather(1, labels[:, None]).squeeze(1) / len(outputs)
    wrong = mistakes(earliest_then_most(outputs), labels)
    return wrong + LATENESS * (1 - early) + PRICE * count


@dataclass(frozen=True)
class Experiment:
    """A network and how it is trained.

    Attributes:
        build: Makes the plain network from the command line.
        spread: Standard deviation and mean of the currents before training.
        sigma: Noise of the neurons, layer by layer; the last for all that follow.
        loss: One number per row, from network, images and labels.
        settings: Defaults of its command line.
    """

    build: Callable[[argparse.Namespace], nn.Module]
    spread: tuple[float, float]
    sigma: tuple[float, ...]
    settings: dict[str, Any]
    loss: Callable[[Any, Tensor, Tensor], Tensor] = cross_entropy


def dense(*sizes: int) -> list[nn.Module]:
    return [nn.Linear(n, m) for n, m in pairwise(sizes)]


# The likelihood ratio alone: what part of the loss has a derivative does not lead far.
WITHOUT_GRADIENT: dict[str, Any] = {
    "steps": 8,
    "epochs": 10,
    "replicas": 32,
    "credit": "none",
    "lr": 2e-3,
    "conditional": True,
}
EXPERIMENTS = {
    "deep": Experiment(
        lambda args: Layers(
            *dense(784, 100, 100, 100), readout=nn.Linear(100, 10), steps=args.steps
        ),
        spread=(1.0, 0.6),
        sigma=(0.4,),
        settings={"steps": 4, "epochs": 16, "lr": 3e-3},
    ),
    "conv": Experiment(
        lambda args: Layers(
            nn.Conv2d(1, 16, 5, stride=2),
            nn.Conv2d(16, 32, 5, stride=2),
            readout=nn.Linear(32 * 4 * 4, 10),
            steps=args.steps,
        ),
        spread=(0.5, 0.3),
        sigma=(0.3,),
        settings={"steps": 4, "epochs": 20, "lr": 5e-3},
    ),
    "recurrent": Experiment(
        lambda args: Rows(128, args.window, memory=not args.memoryless),
        spread=(1.0, 0.3),
        sigma=(0.4,),
        settings={"epochs": 8, "lr": 5e-3, "credit": "time"},
    ),
    "polystep": Experiment(
        lambda args: Layers(*dense(784, 128, 10), steps=args.steps, beta=0.95),
        spread=(0.3, 0.1),
        sigma=(0.5, 0.3),
        settings={"steps": 15, "epochs": 10, "lr": 2e-3},
    ),
    "zero-one": Experiment(
        lambda args: Layers(*dense(784, 100, 10), steps=args.steps),
        spread=(1.0, 0.5),
        sigma=(1.0, 1.0),
        loss=zero_one,
        # The outputs' likelihood ratio, and a credit from there on.
        settings={**WITHOUT_GRADIENT, "replicas": 16, "credit": "layers", "residual": 0},
    ),
    "first-spike": Experiment(
        lambda args: Layers(*dense(784, 100, 10), steps=args.steps, decide=earliest_then_most),
        spread=(1.0, 0.5),
        sigma=(1.0, 1.0),
        loss=late_and_costly,
        settings=WITHOUT_GRADIENT,
    ),
}


class Run(training.Run):
    """A run of one experiment: its own loss, balanced weights, and the processor's time."""

    def __init__(
        self, method: str, experiment: Experiment, images: Tensor, args: argparse.Namespace
    ) -> None:
        def build() -> nn.Module:
            net = experiment.build(args)
            balance(net, images, *experiment.spread)
            return net

        layers = len(experiment.build(args).neurons)
        levels = experiment.sigma + experiment.sigma[-1:] * layers
        sigma = {f"neurons.{i}": level for i, level in enumerate(levels[:layers])}
        super().__init__(method, build, sigma, args)
        self.loss = experiment.loss
        if self.learner is not None:
            self.learner.close()
            self.learner = NITLearner(self.net, **training.learner_options(args))

    def step(self, x: Tensor, y: Tensor) -> float:
        """One update; returns the mean loss."""
        self.optimizer.zero_grad()
        if self.learner is not None:
            with self.learner.record():
                losses = self.loss(self.net, *self.learner.expand(x, y))
            loss = self.learner.backward(losses)
        else:
            loss = self.loss(self.net, x, y).mean()
            loss.backward()
        self.optimizer.step()
        return loss.item()

    def _clocks(self) -> dict[str, float]:
        return {**super()._clocks(), "cpu_seconds": time.process_time()}


def what_a_row_tells(splits: Splits, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Linear classifiers of what can be seen without memory, and of the whole image."""
    views: dict[str, Callable[[Tensor], Tensor]] = {
        f"linear, last {args.window} rows": lambda x: x[:, 0, -args.window :].flatten(1),
        "linear, mean row": lambda x: x[:, 0].mean(1),
        "linear, all pixels": lambda x: x.flatten(1),
    }
    return [
        {"method": name, "test": linear_accuracy(view, splits, args.seed), "history": []}
        for name, view in views.items()
    ]


def linear_accuracy(view: Callable[[Tensor], Tensor], splits: Splits, seed: int) -> float:
    """Test accuracy of logistic regression in percent."""
    torch.manual_seed(seed)
    images, labels = splits.train.tensors
    seen = view(images)
    net = nn.Sequential(View(view), nn.Linear(seen.shape[1], 10))
    epochs, size = 20, 256
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, epochs * -(-len(labels) // size)
    )
    for _ in range(epochs):
        for rows in training.shuffled(len(labels), size):
            optimizer.zero_grad()
            F.cross_entropy(net[1](seen[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return training.accuracy(net, splits.test)


class View(nn.Module):
    """A function as a module."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        return self.view(x)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line: the experiment's name, then settings that differ from its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = parser.add_subparsers(dest="network", required=True)
    for name, experiment in EXPERIMENTS.items():
        own = names.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        add = own.add_argument
        add("--dataset", choices=NAMES, default="mnist")
        add("--data-dir", help="the full data in torchvision's layout; else the subset")
        add("--download", action="store_true", help="download the full data if it is missing")
        add("--methods", nargs="+", choices=("nit", "stbp", "stbp-n"), default=["nit"])
        add("--epochs", type=int)
        add("--batch-size", type=int, default=64)
        add("--lr", type=float, help="NIT's learning rate, decayed to 0 by a cosine")
        add("--stbp-lr", type=float, default=2e-3, help="learning rate of STBP and STBP-N")
        add("--weight-decay", type=float, default=0.03, help="AdamW's")
        training.add_learner(add)
        add("--steps", type=int, help="time steps T")
        add("--window", type=int, default=28, help="recurrent: how many last rows are read out")
        add("--memoryless", action="store_true", help="recurrent: neurons without any memory")
        add("--seed", type=int, default=0)
        add("--device", default="cpu")
        add("--output", type=Path, default=Path("runs") / name, help="where the results go")
        add("--resume", action="store_true", help="go on from the checkpoints in --output")
        add("--save-seconds", type=float, default=60, help="save at least so often")
        own.set_defaults(sign_share=0.0, **experiment.settings)  # no NIT-S+ here
    return parser.parse_args(argv)


def main() -> None:
    training.skip_denormals()
    args = parse_arguments()
    experiment = EXPERIMENTS[args.network]
    args.output.mkdir(parents=True, exist_ok=True)
    splits = split(*load(args.dataset, args.data_dir, args.download), seed=args.seed)
    first = splits.train.tensors[0][:1000].to(args.device)
    runs = {}
    for method in args.methods:
        runs[method] = Run(method, experiment, first, args)
        runs[method].train(splits)
    rows = [run.result(splits) for run in runs.values()]
    if args.network == "recurrent":
        rows += what_a_row_tells(splits, args)
    training.write_results(rows, splits, args)
    training.print_table(rows)
    pictures.accuracy_over_epochs(
        {method: run.history for method, run in runs.items()}, args.output / "accuracy.png"
    )


if __name__ == "__main__":
    main()
