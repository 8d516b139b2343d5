"""An ordinary SpikingJelly network, 784-50-10, learns MNIST from its own noise.

    python examples/mnist_spikingjelly.py                          # the embedded 10,000 images
    python examples/mnist_spikingjelly.py --data-dir data --download   # all 70,000

The network below is plain SpikingJelly, in multi-step mode. NIT trains it after its neurons were
swapped; STBP (surrogate gradient through time) trains the same network for comparison, without
noise and with it (STBP-N). Results, checkpoints and pictures are written to --output.
"""

from __future__ import annotations

import training
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn


class Net(nn.Module):
    """784-50-10 of LIF nodes in multi-step mode, T steps of the same image.

    The readout sums the currents of the output layer over time. With `spiking_output` the ten
    outputs are LIF nodes too, and their spikes are counted instead.
    """

    def __init__(self, steps: int, spiking_output: bool = False) -> None:
        super().__init__()
        self.steps = steps
        self.fc1 = layer.Linear(784, 50)
        self.lif1 = neuron.LIFNode(tau=2.0, decay_input=False)
        self.fc2 = layer.Linear(50, 10)
        self.lif2 = neuron.LIFNode(tau=2.0, decay_input=False) if spiking_output else None
        functional.set_step_mode(self, "m")

    def forward(self, images: Tensor) -> Tensor:
        functional.reset_net(self)
        x = images.flatten(1).unsqueeze(0).expand(self.steps, -1, -1)  # the same at each step
        out = self.fc2(self.lif1(self.fc1(x)))
        if self.lif2:
            out = self.lif2(out)
        return out.sum(0)


def main() -> None:
    args = training.parse_arguments(__doc__.splitlines()[0], "runs/mnist_spikingjelly")
    sigma = {"lif1": args.sigma}
    if args.spiking_output:
        sigma["lif2"] = args.output_sigma
    training.main(lambda: Net(args.steps, args.spiking_output), sigma, args)


if __name__ == "__main__":
    main()
