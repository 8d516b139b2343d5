"""Spoken digits: 80-128-128-10 of snnTorch's neurons hear 64 steps of ON and OFF spikes.

    python examples/spoken_digits.py                       # the official split
    python examples/spoken_digits.py --held-out jackson    # a speaker that training never hears

The data are embedded. STBP, STBP-N, NIT as it is by default and NIT forward only train the same
network in equal conditions (see examples/comparison.py): three learning rates in short runs, then
the best one for 25 epochs. Accuracy, CPU seconds and peak memory go to --output.
"""

from __future__ import annotations

import argparse

import comparison
import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn.datasets import load_spikes
from nit_snn.datasets.spikes import SPEAKERS

NAME = "spoken digits"


class Net(nn.Module):
    """80-128-128-10, beta 0.95; a linear readout of the last spikes, summed over time."""

    def __init__(self, width: int = 128, beta: float = 0.95) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(80, width), snn.Leaky(beta=beta)
        self.fc2, self.lif2 = nn.Linear(width, width), snn.Leaky(beta=beta)
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From spikes, (N, T, channels), to class scores, (N, classes)."""
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        total = torch.zeros(())
        for heard in x.unbind(1):
            spk1, mem1 = self.lif1(self.fc1(heard), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = total + self.out(spk2)
        return total


def parts(held_out: str | None) -> tuple[comparison.Data, comparison.Data, comparison.Data]:
    """To train on, to choose the rate by, and to test with.

    Of those that are not to test with, every ninth is to choose by.
    """
    data = load_spikes("spoken-digits", held_out=held_out)
    x, y = data.spikes.float(), data.labels
    rest = torch.nonzero(~data.test).flatten()
    chosen = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))]
    count = len(rest) // 9
    train, validation = chosen[count:], chosen[:count]
    return (x[train], y[train]), (x[validation], y[validation]), (x[data.test], y[data.test])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    comparison.add_arguments(parser, "docs/results/spoken_digits.json")
    parser.add_argument("--held-out", choices=SPEAKERS, help="a speaker to test with")
    args = parser.parse_args()
    name = NAME if args.held_out is None else f"{NAME}, {args.held_out} held out"
    task = comparison.Task(
        network="80-128-128-10, T = 64, beta 0.95",
        data=name,
        make=Net,
        parts=lambda: parts(args.held_out),
    )
    comparison.main({name: task}, args)


if __name__ == "__main__":
    main()
