"""Events of moving eyes: a convolutional network on what an event sensor sees, or hears.

    python examples/events.py                                  # a simulated sensor, no download
    python examples/events.py --data n-mnist --data-dir data   # files that tonic has downloaded
    python examples/events.py --data dvs-gesture --data-dir data
    python examples/events.py --data shd --data-dir data

The simulated sensor makes saccades over the embedded MNIST. The other data need
`pip install "nit-snn[events]"`. Images go through 12C5-MP2-32C5-MP2 and a dense layer as in
snnTorch's tutorial on N-MNIST, sounds through two dense layers; the loss reads the outputs' spikes.
STBP, STBP-N, NIT as it is by default and NIT forward only train the same network in equal
conditions (see examples/comparison.py).
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

import comparison
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nit_snn.datasets import EventFrames, load, saccades

CHANNELS = (12, 32)
BODY = "12C5-MP2-32C5-MP2"


class Conv(nn.Module):
    """12C5-MP2-32C5-MP2-classes, beta 0.5, as in snnTorch's tutorial 7; spikes of each class."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        first, second = CHANNELS
        self.conv1, self.lif1 = nn.Conv2d(2, first, 5), snn.Leaky(beta=0.5)
        self.conv2, self.lif2 = nn.Conv2d(first, second, 5), snn.Leaky(beta=0.5)
        left = ((side - 4) // 2 - 4) // 2
        self.fc, self.lif3 = nn.Linear(second * left**2, classes), snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """From events, (N, T, 2, side, side), to spike counts, (N, classes)."""
        mem1, mem2, mem3 = (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        counts = torch.zeros(())
        for seen in x.unbind(1):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(seen.float()), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            counts = counts + spk3
        return counts


class Dense(nn.Module):
    """700-256-256-20, beta 0.95, a linear readout summed over time."""

    def __init__(self, channels: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(channels, width), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(width, width), snn.Leaky(beta=0.95)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From spikes, (N, T, channels), to class scores, (N, classes)."""
        mem1, mem2, total = self.lif1.reset_mem(), self.lif2.reset_mem(), torch.zeros(())
        for heard in x.unbind(1):
            spk1, mem1 = self.lif1(self.fc1(heard.float()), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = total + self.out(spk2)
        return total


@dataclass(frozen=True)
class Sensor:
    """How recordings become frames.

    Attributes:
        steps: T.
        window: Of a frame, in milliseconds.
        pool: How many pixels, or channels, become one along each side.
        classes: How many there are.
    """

    steps: int
    window: float
    pool: int
    classes: int


SENSORS = {
    "n-mnist": Sensor(25, 12.0, 1, 10),
    "dvs-gesture": Sensor(60, 25.0, 4, 11),
    "shd": Sensor(100, 10.0, 1, 20),
    "ssc": Sensor(100, 10.0, 1, 35),
}


def simulated(train: int, steps: int) -> tuple[comparison.Data, comparison.Data, comparison.Data]:
    """Saccades over embedded images: some to train on, 500 to choose by, 1,000 to test with."""
    images, labels = load("mnist", "")
    ends = {"train": (0, train), "validation": (8500, 9000), "test": (9000, 10_000)}
    first, second, third = (
        (saccades(images[start:end], steps), labels[start:end]) for start, end in ends.values()
    )
    return first, second, third


def recorded(
    name: str, data_dir: str, samples: int
) -> tuple[comparison.Data, comparison.Data, comparison.Data]:
    """The same of recordings, which lie in the order of their classes: a random part of them."""
    sensor = SENSORS[name]

    def take(part: str, count: int) -> comparison.Data:
        data = EventFrames(
            name, data_dir, part, steps=sensor.steps, window=sensor.window, pool=sensor.pool
        )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        pairs = [data[i] for i in order[:count].tolist()]
        return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])

    x, y = take("train", samples)
    held = len(y) // 10
    return (x[held:], y[held:]), (x[:held], y[:held]), take("test", max(1, samples // 4))


def task_of(args: argparse.Namespace) -> comparison.Task:
    """What is trained on the data that the command line names."""
    if args.data == "saccades":
        return comparison.Task(
            network=f"{BODY}-10, T = {args.steps}, beta 0.5, spike counts",
            data="simulated saccades over MNIST",
            make=lambda: Conv(28, 10),
            parts=lambda: simulated(args.train, args.steps),
            epochs=(1, 3),
        )
    if args.data_dir is None:
        raise SystemExit(f"--data {args.data} needs --data-dir, the folder that tonic has filled")
    sensor = SENSORS[args.data]
    sides = {"n-mnist": 34, "dvs-gesture": 32}
    side = sides.get(args.data)
    make = (
        (lambda: Dense(700, sensor.classes))
        if side is None
        else (lambda: Conv(side, sensor.classes))
    )
    return comparison.Task(
        network=f"{'700-256-256' if side is None else BODY}-{sensor.classes}, T = {sensor.steps}",
        data=args.data,
        make=make,
        parts=lambda: recorded(args.data, args.data_dir, args.train),
        epochs=(2, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    comparison.add_arguments(parser, "docs/results/events.json")
    parser.add_argument("--data", choices=["saccades", *SENSORS], default="saccades")
    parser.add_argument("--data-dir", default=os.environ.get("NIT_SNN_DATA") or None)
    parser.add_argument("--train", type=int, default=2500, help="samples to train on")
    parser.add_argument("--steps", type=int, default=12, help="T of the simulated sensor")
    args = parser.parse_args()
    task = task_of(args)
    comparison.main({task.data: task}, args)


if __name__ == "__main__":
    main()
