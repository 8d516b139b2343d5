"""An ordinary snnTorch network, 784-50-10, learns MNIST from its own noise.

    python examples/mnist_snntorch.py                          # the embedded 10,000 images
    python examples/mnist_snntorch.py --data-dir data --download   # all 70,000

The network below is plain snnTorch. NIT trains it after its neurons were swapped; STBP (surrogate
gradient through time) trains the same network for comparison, without noise and with it (STBP-N).
Results, checkpoints and pictures are written to --output.
"""

from __future__ import annotations

import snntorch as snn
import torch
import training
from torch import Tensor, nn


class Net(nn.Module):
    """784-50-10 of Leaky neurons, T steps of the same image.

    The readout sums the currents of the output layer over time. With `spiking_output` the ten
    outputs are Leaky neurons too, and their membranes are summed instead.
    """

    def __init__(self, steps: int, spiking_output: bool = False) -> None:
        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(784, 50)
        self.lif1 = snn.Leaky(beta=0.5, reset_mechanism="zero")
        self.fc2 = nn.Linear(50, 10)
        self.lif2 = snn.Leaky(beta=0.5, reset_mechanism="zero") if spiking_output else None

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        mem1, outputs = self.lif1.reset_mem(), []
        mem2 = self.lif2.reset_mem() if self.lif2 else None
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            out = self.fc2(spk1)
            if self.lif2:
                _, mem2 = self.lif2(out, mem2)
                out = mem2
            outputs.append(out)
        return torch.stack(outputs).sum(0)


def main() -> None:
    args = training.parse_arguments(__doc__.splitlines()[0], "runs/mnist_snntorch")
    sigma = {"lif1": args.sigma}
    if args.spiking_output:
        sigma["lif2"] = args.output_sigma
    training.main(lambda: Net(args.steps, args.spiking_output), sigma, args)


if __name__ == "__main__":
    main()
