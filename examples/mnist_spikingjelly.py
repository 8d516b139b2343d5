"""An ordinary SpikingJelly network, 784-50-10, learns MNIST from its own noise.

    python examples/mnist_spikingjelly.py                          # the embedded 10,000 images
    python examples/mnist_spikingjelly.py --data-dir data --download   # all 70,000

The network below is plain SpikingJelly, in multi-step mode. NIT trains it after its neurons were
swapped; STBP (surrogate gradient through time) trains the same network for comparison, without
noise and with it (STBP-N). Results, checkpoints and pictures are written to --output.
"""

from __future__ import annotations

import pictures
import training
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn


class Net(nn.Module):
    """Two dense layers of LIF nodes; the output spikes are counted over time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.body = nn.Sequential(
            layer.Linear(784, 50),
            neuron.LIFNode(tau=2.0, decay_input=False),
            layer.Linear(50, 10),
            neuron.LIFNode(tau=2.0, decay_input=False),
        )
        functional.set_step_mode(self, "m")

    def forward(self, images: Tensor) -> Tensor:
        functional.reset_net(self)
        x = images.flatten(1).unsqueeze(0).expand(self.steps, -1, -1)  # the same at each step
        return self.body(x).sum(0)


def main() -> None:
    args = training.parse_arguments(__doc__.splitlines()[0], "runs/mnist_spikingjelly")
    sigma = {"body.1": args.sigma, "body.3": args.output_sigma}
    runs, splits = training.run_all(lambda: Net(args.steps), {"sigma": sigma}, args)
    pictures.accuracy_over_epochs(
        {method: run.history for method, run in runs.items()}, args.output / "accuracy.png"
    )
    if "nit" in runs:
        image = splits.test.tensors[0][0].to(args.device)
        pictures.inside(runs["nit"].net, image, args.output / "inside.png", args.seed)


if __name__ == "__main__":
    main()
