"""An ordinary network that computes what a noisy spiking network computes on average.

    784 -> hidden -> 10,   logits = scale (W2 r(W1 x + b1) + b2)

where r(I) is how often a noisy LIF neuron fires per step under the constant current I. It has no
noise and no spikes, and backpropagation trains it: how well it learns tells what the shape of r is
good for.
"""

from __future__ import annotations

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from nit_snn import swap_neurons

LOW, STEP, COUNT = -8.0, 0.1, 201  # currents from -8 to 12


def firing_rates(sigma: float, steps: int, pieces: int = 50, draws: int = 4000) -> Tensor:
    """r at the currents LOW, LOW + STEP, ...: mean over draws of the noise, piece by piece.

    Returns:
        (COUNT,).
    """
    lif = nn.Sequential(neuron.LIFNode(tau=2.0, decay_input=False, v_reset=0.0, step_mode="m"))
    swap_neurons(lif, sigma=sigma)
    currents = LOW + STEP * torch.arange(COUNT)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        found = torch.zeros(COUNT)
        for _ in range(pieces):
            lif[0].reset()
            found += lif(currents.expand(steps, draws, COUNT)).mean((0, 1)) / pieces
    return found


class MeanRates(nn.Module):
    """784-hidden-10 of mean firing rates.

    Args:
        hidden: Number of hidden neurons.
        sigma: Noise level of the neurons that it is the mean of.
        steps: Their T.
        scale: What the readout is multiplied by.
    """

    def __init__(self, hidden: int, sigma: float, steps: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.fc1, self.fc2 = nn.Linear(784, hidden), nn.Linear(hidden, 10)
        self.register_buffer("rates", firing_rates(sigma, steps), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        place = ((self.fc1(images.flatten(1)) - LOW) / STEP).clamp(0, COUNT - 1.001)
        left = place.detach().long()
        part = place - left  # linear between two currents
        rate = self.rates[left] * (1 - part) + self.rates[left + 1] * part
        return self.scale * self.fc2(rate)
