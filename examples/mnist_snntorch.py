"""An ordinary snnTorch network, 784-50-10, learns MNIST from its own noise.

    python examples/mnist_snntorch.py                          # the embedded 10,000 images
    python examples/mnist_snntorch.py --data-dir data --download   # all 70,000

The network below is plain snnTorch. NIT trains it after its neurons were swapped; STBP (surrogate
gradient through time) trains the same network for comparison, without noise and with it (STBP-N).
Results, checkpoints and pictures are written to --output.
"""

from __future__ import annotations

import pictures
import snntorch as snn
import torch
import training
from torch import Tensor, nn


class Net(nn.Module):
    """Two dense layers of Leaky neurons; the output membranes are summed over time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(784, 50)
        self.lif1 = snn.Leaky(beta=0.9, reset_mechanism="zero")
        self.fc2 = nn.Linear(50, 10)
        self.lif2 = snn.Leaky(beta=0.9, reset_mechanism="zero")

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        membranes = []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            membranes.append(mem2)
        return torch.stack(membranes).sum(0)


def main() -> None:
    args = training.parse_arguments(__doc__.splitlines()[0], "runs/mnist_snntorch")
    sigma = {"lif1": args.sigma, "lif2": args.output_sigma}
    runs, splits = training.run_all(lambda: Net(args.steps), {"sigma": sigma}, args)
    pictures.accuracy_over_epochs(
        {method: run.history for method, run in runs.items()}, args.output / "accuracy.png"
    )
    if "nit" in runs:
        image = splits.test.tensors[0][0].to(args.device)
        pictures.inside(runs["nit"].net, image, args.output / "inside.png", args.seed)


if __name__ == "__main__":
    main()
