"""Four small tasks whose answer lies in time: when spikes come, and how many.

    python examples/timing_tasks.py                 # all four
    python examples/timing_tasks.py match latency   # some of them

- match: was the second pattern the first one again? 35 steps of silence lie between the two.
- trains: five outputs learn spike trains; the loss is the van Rossum distance.
- latency: the output that spikes first names the digit; the loss reads the time of first spikes.
- energy: digits at a price for each packet of 16 hidden spikes begun, which has no derivative.

STBP, STBP-N, NIT as it is by default, forward only, unbiased (`residual=1` with 4 replicas) and
the likelihood ratio alone (`credit="none"`, 8 replicas) train the same networks with equal steps
(see examples/comparison.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import comparison
import snntorch as snn
import torch
import torch.nn.functional as F
from comparison import Data, Task
from torch import Tensor, nn

from nit_snn.datasets import load

METHODS = {
    **comparison.METHODS,
    "unbiased": {"residual": 1, "replicas": 4},
    "no derivative": {"credit": "none", "replicas": 8},
}
#: Steps of a pattern and of the silence between two, channels, and patterns of the task "match".
SHOWN, DELAY, CHANNELS, PATTERNS = 5, 35, 20, 4
#: Steps, inputs, outputs and patterns of the task "trains"; the time constant of the distance.
STEPS, INPUTS, OUTPUTS, TRAINS, TAU = 50, 40, 5, 16, 5.0
#: Steps of the two tasks with images, spikes in a packet, and its price.
LATENCY_STEPS, ENERGY_STEPS, PACKET, PRICE = 16, 8, 16, 0.05


class Recurrent(nn.Module):
    """64 neurons with feedback, beta 0.97; a linear readout of the last steps' spikes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(CHANNELS, width), snn.Leaky(beta=0.97)
        self.feedback, self.out = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """From spikes, (N, T, channels), to the scores of "another" and "the same", (N, 2)."""
        mem, total = self.lif.reset_mem(), torch.zeros(())
        spikes = x.new_zeros(len(x), self.feedback.in_features)
        for step, seen in enumerate(x.unbind(1)):
            spikes, mem = self.lif(self.fc(seen) + self.feedback(spikes), mem)
            if step >= x.shape[1] - SHOWN:
                total = total + self.out(spikes)
        return total


class Feedforward(nn.Module):
    """Two layers of neurons; the spikes of the second."""

    def __init__(self, inputs: int, hidden: int, outputs: int, beta: float) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(inputs, hidden), snn.Leaky(beta=beta)
        self.fc2, self.lif2 = nn.Linear(hidden, outputs), snn.Leaky(beta=beta)

    def forward(self, x: Tensor) -> Tensor:
        """From spikes, (N, T, inputs), to spikes, (N, T, outputs)."""
        mem1, mem2, found = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for seen in x.unbind(1):
            spk1, mem1 = self.lif1(self.fc1(seen), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            found.append(spk2)
        return torch.stack(found, 1)


class Counted(nn.Module):
    """784-64-10 on a still image; class scores, and how many hidden spikes they took."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(784, 64), snn.Leaky(beta=0.5), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From images, (N, 784), to scores and a count, (N, 11)."""
        mem, spikes = self.lif.reset_mem(), torch.zeros(())
        for _ in range(ENERGY_STEPS):
            fired, mem = self.lif(self.fc(x), mem)
            spikes = spikes + fired
        return torch.cat([self.out(spikes), spikes.detach().sum(1, keepdim=True)], 1)


def matches(count: int, seed: int) -> Data:
    """Pairs of noisy patterns, and whether both are of one kind: half of them are."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(PATTERNS, (count,), generator=random)
    same = torch.arange(count) % 2
    other = (first + torch.randint(1, PATTERNS, (count,), generator=random)) % PATTERNS
    second = torch.where(same == 1, first, other)
    x = torch.zeros(count, 2 * SHOWN + DELAY, CHANNELS)
    own = CHANNELS // PATTERNS
    for start, kind in ((0, first), (SHOWN + DELAY, second)):
        rate = 0.05 + 0.75 * F.one_hot(kind, PATTERNS).repeat_interleave(own, 1)
        shown = rate[:, None].expand(-1, SHOWN, -1)
        x[:, start : start + SHOWN] = torch.bernoulli(shown, generator=random)
    return x, same


def spike_trains(copies: int) -> Data:
    """The same inputs and the trains that belong to them, some times over."""
    random = torch.Generator().manual_seed(7)
    x = torch.bernoulli(torch.full((TRAINS, STEPS, INPUTS), 0.1), generator=random)
    y = torch.bernoulli(torch.full((TRAINS, STEPS, OUTPUTS), 0.08), generator=random)
    return x.repeat(copies, 1, 1), y.repeat(copies, 1, 1)


def van_rossum(out: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of filtered spike trains, (N,), the mean over outputs.

    `sum_t (f_t - g_t)^2 / tau` with f and g the trains behind an exponential filter (van Rossum,
    2001). One spike too much or too few adds about 1/2.
    """
    steps = torch.arange(out.shape[1], dtype=out.dtype)
    past = steps[:, None] - steps
    kernel = torch.where(past >= 0, torch.exp(-past.clamp(min=0) / TAU), torch.zeros(()))
    filtered = torch.einsum("ts,nso->nto", kernel, out - wanted)
    return filtered.square().sum(1).mean(1) / TAU


def images(start: int, end: int) -> Data:
    """Embedded MNIST, (N, 784) in [0, 1]."""
    x, y = load("mnist", "")
    return x[start:end].flatten(1) / 255, y[start:end]


def early_pixels(start: int, end: int) -> Data:
    """The same; each bright pixel spikes once, the brighter the sooner, (N, T, 784)."""
    x, y = images(start, end)
    when = ((1 - x) * (LATENCY_STEPS - 4)).long()
    spikes = F.one_hot(when, LATENCY_STEPS).transpose(1, 2) * (x > 0.2)[:, None]
    return spikes.float(), y


def first_spikes(spikes: Tensor) -> Tensor:
    """The time of the first spike, T if there is none, (N, outputs), from (N, T, outputs).

    As a product over what has not spiked yet, so that it has a derivative in each spike.
    """
    return (1 - spikes).cumprod(1).sum(1)


def latency_loss(out: Tensor, y: Tensor) -> Tensor:
    """The right output should spike before all others, and soon."""
    latency = first_spikes(out)
    right = latency.gather(1, y[:, None])[:, 0]
    return F.cross_entropy(-latency / 2, y, reduction="none") + 0.05 * right


def first_is_right(out: Tensor, y: Tensor) -> Tensor:
    """100 where the right output spikes before all others, else 0."""
    latency = first_spikes(out)
    right = latency.gather(1, y[:, None])
    sooner = (latency <= right).sum(1)  # itself counts
    return 100.0 * ((sooner == 1) & (right[:, 0] < out.shape[1])).float()


def energy_loss(out: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, and a price for each packet begun, which has no derivative."""
    packets = (out[:, 10].detach() / PACKET).ceil()
    return F.cross_entropy(out[:, :10], y, reduction="none") + PRICE * packets


def scores_right(out: Tensor, y: Tensor) -> Tensor:
    """Of the class scores alone."""
    return comparison.percent_right(out[:, :10], y)


@torch.no_grad()
def hidden_spikes(net: nn.Module, data: Data) -> dict[str, float]:
    """How many an image takes, and the loss with their price."""
    out = net(data[0])
    return {
        "spikes": round(float(out[:, 10].mean()), 1),
        "loss": round(float(energy_loss(out, data[1]).mean()), 3),
    }


@torch.no_grad()
def when_decided(net: nn.Module, data: Data) -> dict[str, float]:
    """The mean time of the first output spike."""
    return {"latency": round(float(first_spikes(net(data[0])).amin(1).mean()), 2)}


def parts(make: Callable[[int, int], Data], train: int) -> Callable[[], tuple[Data, Data, Data]]:
    """Of a kind of images: the first to train on, 1,000 each to choose by and to test with."""
    return lambda: (make(0, train), make(8000, 9000), make(9000, 10_000))


TASKS = {
    "match": Task(
        network="20-64 recurrent-2, T = 45, beta 0.97",
        data="delayed match to sample",
        make=Recurrent,
        parts=lambda: (matches(960, 0), matches(500, 1), matches(1000, 2)),
        epochs=(4, 14),
        methods=METHODS,
    ),
    "trains": Task(
        network="40-64-5, T = 50, beta 0.9, spiking outputs",
        data="16 spike trains, van Rossum distance",
        make=lambda: Feedforward(INPUTS, 64, OUTPUTS, 0.9),
        parts=lambda: (spike_trains(20), spike_trains(1), spike_trains(1)),
        loss=van_rossum,
        score=van_rossum,
        unit="",
        lower=True,
        epochs=(4, 24),
        batch=32,
        methods=METHODS,
    ),
    "latency": Task(
        network="784-64-10, T = 16, beta 0.9, first spike decides",
        data="MNIST, one spike a pixel",
        make=lambda: Feedforward(784, 64, 10, 0.9),
        parts=parts(early_pixels, 3000),
        loss=latency_loss,
        score=first_is_right,
        epochs=(1, 4),
        methods=METHODS,
        facts=when_decided,
    ),
    "energy": Task(
        network="784-64-10, T = 8, beta 0.5, packets of spikes cost",
        data="MNIST",
        make=Counted,
        parts=parts(images, 4000),
        loss=energy_loss,
        score=scores_right,
        epochs=(1, 5),
        methods=METHODS,
        facts=hidden_spikes,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(TASKS)}; all if none")
    comparison.add_arguments(parser, "docs/results/timing_tasks.json")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in TASKS]
    if unknown:
        parser.error(f"no such task: {', '.join(unknown)}")
    names = [args.task] if args.task else args.names or list(TASKS)
    comparison.main({name: TASKS[name] for name in names}, args)


if __name__ == "__main__":
    main()
