"""Networks from the frameworks' own tutorials and examples, trained by NIT.

    python examples/their_networks.py tutorial5                # the embedded 10,000 images
    python examples/their_networks.py conv_fashion_mnist --steps 4 --channels 32

    tutorial5           snnTorch, tutorial 5: 784-1000-10, loss of the membranes at every step
    tutorial6           snnTorch, tutorial 6: 12C5-MP2-64C5-MP2-1024-10, loss of the spikes
    lif_fc_mnist        SpikingJelly: one layer of LIF neurons, Poisson spikes
    conv_fashion_mnist  SpikingJelly: two convolutions with BatchNorm, and two dense layers

Each network is what it was; the three lines that make it learn from noise are marked in `main`. Of
the losses only the reduction is another: one number for each row.

The noise teaches by the spikes that it adds or takes away, so a network that is nearly silent at
the start learns slowly. That of tutorial 6 is: without noise, none of its outputs spikes. Its
weights are therefore multiplied by four before training (--gain 1 leaves them as they are).
Results go to --output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
import training
from snntorch import surrogate as snn_surrogate
from snntorch import utils
from spikingjelly.activation_based import encoding, functional, layer, neuron, surrogate
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, swap_neurons
from nit_snn.datasets import load, split


class Tutorial5(nn.Module):
    """784-1000-10 of Leaky neurons that see the same image at every step.

    Args:
        steps: T; 25 in the tutorial.
        hidden: Hidden neurons; 1000 in the tutorial.
    """

    def __init__(self, steps: int = 25, hidden: int = 1000) -> None:
        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(28 * 28, hidden)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(hidden, 10)
        self.lif2 = snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the membranes, summed over time."""
        _, membranes = self(x)
        return sum(F.cross_entropy(mem, y, reduction="none") for mem in membranes)

    def scores(self, x: Tensor) -> Tensor:
        return self(x)[0].sum(0)


class Tutorial6(nn.Module):
    """12C5-MP2-64C5-MP2-1024-10 of Leaky neurons that keep their state themselves.

    Args:
        steps: T; 50 in the tutorial.
        channels: Channels of the second convolution; 64 in the tutorial.
    """

    def __init__(self, steps: int = 50, channels: int = 64) -> None:
        super().__init__()
        self.steps = steps
        options = {"beta": 0.5, "spike_grad": snn_surrogate.fast_sigmoid(slope=25)}
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 5),
            nn.MaxPool2d(2),
            snn.Leaky(**options, init_hidden=True),
            nn.Conv2d(12, channels, 5),
            nn.MaxPool2d(2),
            snn.Leaky(**options, init_hidden=True),
            nn.Flatten(),
            nn.Linear(channels * 4 * 4, 10),
            snn.Leaky(**options, init_hidden=True, output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self.net)
        return torch.stack([self.net(x)[0] for _ in range(self.steps)])

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return SF.ce_rate_loss(reduction="none")(self(x), y)

    def scores(self, x: Tensor) -> Tensor:
        return self(x).sum(0)


class LifFcMnist(nn.Module):
    """784-10 of LIF nodes, step by step, over Poisson spikes.

    Args:
        steps: T; 100 in the example.
        tau: Time constant of the membranes, in steps.
    """

    def __init__(self, steps: int = 100, tau: float = 2.0) -> None:
        super().__init__()
        self.steps = steps
        self.encoder = encoding.PoissonEncoder()
        self.layer = nn.Sequential(
            layer.Flatten(),
            layer.Linear(28 * 28, 10, bias=False),
            neuron.LIFNode(tau=tau, surrogate_function=surrogate.ATan()),
        )

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return sum(self.layer(self.encoder(x)) for _ in range(self.steps)) / self.steps

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared distance of the firing rates to 1 and 0."""
        return F.mse_loss(self(x), F.one_hot(y, 10).float(), reduction="none").mean(1)

    def scores(self, x: Tensor) -> Tensor:
        return self(x)


class ConvFashionMnist(LifFcMnist):
    """Two convolutions with BatchNorm and two dense layers of IF nodes, in multi-step mode.

    The second BatchNorm lies behind noisy neurons, and so is a `BiasWarning`'s case.

    Args:
        steps: T; 4 in the example.
        channels: Channels of the convolutions; 128 in the example.
    """

    def __init__(self, steps: int = 4, channels: int = 128) -> None:
        nn.Module.__init__(self)
        self.steps = steps

        def block(inputs: int) -> list[nn.Module]:
            return [
                layer.Conv2d(inputs, channels, 3, padding=1, bias=False),
                layer.BatchNorm2d(channels),
                neuron.IFNode(surrogate_function=surrogate.ATan()),
                layer.MaxPool2d(2, 2),
            ]

        self.conv_fc = nn.Sequential(
            *block(1),
            *block(channels),
            layer.Flatten(),
            layer.Linear(channels * 7 * 7, channels * 4 * 4, bias=False),
            neuron.IFNode(surrogate_function=surrogate.ATan()),
            layer.Linear(channels * 4 * 4, 10, bias=False),
            neuron.IFNode(surrogate_function=surrogate.ATan()),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        x_seq = x.unsqueeze(0).expand(self.steps, *x.shape)
        return self.conv_fc(x_seq).mean(0)


@dataclass(frozen=True)
class Setting:
    """How a network is trained here.

    Attributes:
        build: Makes the plain network.
        data: Which data set it was shown with.
        lr: Adam's learning rate.
        sigma: Noise level of all neurons.
        gain: What the initial weights are multiplied by.
    """

    build: Callable[..., Any]
    data: str = "mnist"
    lr: float = 2e-3
    sigma: float = 0.5
    gain: float = 1.0


SETTINGS = {
    "tutorial5": Setting(Tutorial5),
    "tutorial6": Setting(Tutorial6, gain=4.0),
    "lif_fc_mnist": Setting(LifFcMnist),
    "conv_fashion_mnist": Setting(ConvFashionMnist, data="fashion-mnist"),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("network", choices=SETTINGS)
    add("--data-dir", help="the full data in torchvision's layout; else the subset")
    add("--steps", type=int, help="T; by default as in the original")
    add("--channels", type=int, help="of a convolutional network; by default as in the original")
    add("--gain", type=float, help="factor of the initial weights; by default the network's")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, default=64)
    add("--replicas", type=training.auto_or(int), default="auto")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/their_networks"))
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    setting = SETTINGS[args.network]
    training.skip_denormals()
    torch.manual_seed(args.seed)
    splits = split(*load(setting.data, args.data_dir), seed=args.seed)
    images, labels = splits.train.tensors
    sizes = {n: getattr(args, n) for n in ("steps", "channels") if getattr(args, n) is not None}
    net = setting.build(**sizes)
    amplify(net, setting.gain if args.gain is None else args.gain)

    swap_neurons(net, setting.sigma)  # the first line
    learner = NITLearner(net, replicas=args.replicas, seed=args.seed)  # the second
    optimizer = torch.optim.Adam(net.parameters(), lr=setting.lr)
    history = []
    for epoch in range(args.epochs):
        total = 0.0
        batches = list(training.shuffled(len(labels), args.batch_size))
        for rows in tqdm(batches, desc=f"{args.network} {epoch + 1}", leave=False):
            optimizer.zero_grad()
            with learner.record():
                losses = net.losses(*learner.expand(images[rows], labels[rows]))
            total += len(rows) * float(learner.backward(losses))  # the third: not loss.backward()
            optimizer.step()
        found = {"loss": total / len(labels), "validation": accuracy(net, splits.validation)}
        history.append({"epoch": epoch + 1, **found})
        print(f"epoch {epoch + 1}  loss {found['loss']:.3f}  validation {found['validation']:.2f}%")
    args.output.mkdir(parents=True, exist_ok=True)
    results = {
        "network": args.network,
        "dataset": setting.data,
        "images": {part: len(getattr(splits, part)) for part in splits._fields},
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "test": accuracy(net, splits.test),
        "history": history,
    }
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"test {results['test']:.2f}%")


@torch.no_grad()
def amplify(net: nn.Module, gain: float) -> None:
    """Multiplies the weights of all synapses."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight *= gain


@torch.no_grad()
def accuracy(net: Any, dataset: Any, size: int = 500) -> float:
    """Percent of right answers, in evaluation mode and with one draw of the noise."""
    net.eval()
    batches = zip(*(t.split(size) for t in dataset.tensors), strict=True)
    right = sum(int((net.scores(x).argmax(1) == y).sum()) for x, y in batches)
    net.train()
    return 100 * right / len(dataset)


if __name__ == "__main__":
    main()
