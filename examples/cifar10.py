"""CIFAR-10: a small VGG of spiking neurons sees each image for four steps.

    python examples/cifar10.py --data-dir data                        # 10,000 images
    python examples/cifar10.py --data-dir data --network opzo --train 50000 --epochs 10 100

The images come from torchvision's layout (`cifar-10-batches-py`) in --data-dir, or from
`CIFAR10/cifar10-jpeg.npz` there, whose images were re-encoded as JPEG: accuracies on those are
close to the original's, but not strictly comparable, and the results say which it was. The image
itself is the input current (direct encoding). Networks: "vgg", 32-64-128 channels, for a CPU;
"opzo", 128-256-512-512 channels, about as large as those that Xiao et al. (OPZO, ICLR 2026) report
on, for a GPU (--device cuda).
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

import comparison
import numpy as np
import torch
from comparison import Data
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

STEPS = 4
#: Channels of each convolution; "P" halves the sides.
PLANS = {
    "vgg": [32, "P", 64, "P", 128, "P"],
    "opzo": [128, "P", 256, "P", 512, "P", 512],
}


class Vgg(nn.Module):
    """Convolutions with BatchNorm and LIF neurons (tau 2); firing rates behind a linear readout."""

    def __init__(self, plan: list[int | str]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels, side = 3, 32
        for item in plan:
            if isinstance(item, str):
                blocks.append(layer.AvgPool2d(2))
                side //= 2
                continue
            blocks.append(layer.Conv2d(channels, item, 3, padding=1, bias=False))
            blocks += [layer.BatchNorm2d(item), neuron.LIFNode(detach_reset=True)]
            channels = item
        self.body = nn.Sequential(*blocks, layer.Flatten(), layer.Linear(channels * side**2, 10))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        """From images, (N, 3, 32, 32), to class scores, (N, 10)."""
        functional.reset_net(self)
        return self.body(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)).mean(0)


def read(data_dir: Path, train: int, test: int) -> tuple[Data, Data, str]:
    """The first training and test images, (N, 3, 32, 32) uint8, and what they came from."""
    jpeg = data_dir / "CIFAR10" / "cifar10-jpeg.npz"
    if (data_dir / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10

        parts = [CIFAR10(data_dir, train=train) for train in (True, False)]
        first, second = (
            (torch.from_numpy(p.data).permute(0, 3, 1, 2), torch.tensor(p.targets)) for p in parts
        )
        return comparison.few(first, train), comparison.few(second, test), "CIFAR-10"
    if jpeg.is_file():
        with np.load(jpeg) as held:
            first, second = decoded(held, "train", train), decoded(held, "test", test)
            return first, second, "CIFAR-10, re-encoded as JPEG"
    raise SystemExit(f"neither cifar-10-batches-py nor CIFAR10/cifar10-jpeg.npz in {data_dir}")


def decoded(held: np.lib.npyio.NpzFile, part: str, count: int) -> Data:
    """The JPEG images of a part: files end to end, `ends` says where each ends."""
    from PIL import Image

    content, ends = held[f"{part}_jpeg"].tobytes(), held[f"{part}_ends"][:count]
    starts = np.concatenate([[0], ends[:-1]])
    images = [
        np.asarray(Image.open(io.BytesIO(content[start:end])).convert("RGB"))
        for start, end in zip(starts, ends, strict=True)
    ]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(held[f"{part}_labels"][:count].astype(np.int64))


def parts(first: Data, second: Data, device: str) -> tuple[Data, Data, Data]:
    """Standardised: to train on, a tenth to choose the rate by, and those to test with."""
    held = first[0].float() / 255
    mean, spread = (f(held, (0, 2, 3)).view(3, 1, 1) for f in (torch.mean, torch.std))
    ready = [((x.float() / 255 - mean) / spread).to(device) for x in (first[0], second[0])]
    y, tenth = first[1].to(device), len(first[1]) // 10
    train, validation = (ready[0][tenth:], y[tenth:]), (ready[0][:tenth], y[:tenth])
    return train, validation, (ready[1], second[1].to(device))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    comparison.add_arguments(parser, "docs/results/cifar10.json")
    folder = os.environ.get("NIT_SNN_DATA")
    parser.add_argument("--data-dir", type=Path, default=folder, required=not folder)
    parser.add_argument("--network", choices=PLANS, default="vgg")
    parser.add_argument("--train", type=int, default=10_000, help="images to train on")
    parser.add_argument("--test", type=int, default=2000, help="images to test with")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    first, second, data = read(Path(args.data_dir), args.train, args.test)
    plan = "-".join(str(item) for item in PLANS[args.network])
    task = comparison.Task(
        network=f"VGG {plan}-10, T = {STEPS}, BatchNorm",
        data=f"{data}, {args.train:,} images",
        make=lambda: Vgg(PLANS[args.network]).to(args.device),
        parts=lambda: parts(first, second, args.device),
        epochs=(1, 4),
    )
    comparison.main({task.data: task}, args)


if __name__ == "__main__":
    main()
