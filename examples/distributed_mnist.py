"""784-50-10 on MNIST, its replicas or samples shared out over processes.

    torchrun --nproc-per-node 2 examples/distributed_mnist.py

With `--share replicas` all processes see the same batches, and each puts its part of the replicas
through the network: the run is the same, to rounding, however many processes there are. With
`--share samples` each has a part of every batch. Gloo is used on a CPU, NCCL on GPUs, one per
process. The first process writes results.json to --output.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import training
from mnist_snntorch import Net
from tqdm import tqdm

from nit_snn import NITLearner, swap_neurons
from nit_snn.datasets import NAMES, load, split


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--share", choices=("replicas", "samples"), default="replicas")
    add("--dataset", choices=NAMES, default="mnist")
    add("--data-dir", help="the full data in torchvision's layout; else the subset")
    add("--limit", type=int, help="take only so many images")
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=64, help="of all processes together")
    add("--replicas", type=int, help="of each sample, of all processes together")
    add("--lr", type=float, default=5e-3)
    add("--steps", type=int, default=8, help="time steps T")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/distributed_mnist"))
    return parser.parse_args()


def join() -> torch.device:
    """Joins the processes that torchrun started; this one's device."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def main() -> None:
    args = parse_arguments()
    device = join()
    rank, size = dist.get_rank(), dist.get_world_size()
    images, labels = load(args.dataset, args.data_dir)
    splits = split(images[: args.limit], labels[: args.limit], seed=args.seed)
    torch.manual_seed(args.seed)
    shuffle = torch.Generator().manual_seed(args.seed)  # the same in all processes
    net = swap_neurons(Net(args.steps)).to(device)
    # Replicas are what there is to share out of a likelihood ratio; of samples one is enough.
    credit, usual = ("none", 32) if args.share == "replicas" else ("layers", 1)
    replicas = usual if args.replicas is None else args.replicas
    learner = NITLearner(net, replicas=replicas, credit=credit, shard=args.share, seed=args.seed)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=args.lr, weight_decay=0.03)
    x, y = (t.to(device) for t in splits.train.tensors)
    history, started = [], time.perf_counter()
    for epoch in range(args.epochs):
        batches = torch.randperm(len(y), generator=shuffle).split(args.batch_size)
        total, batches = 0.0, batches[: len(y) // args.batch_size]
        for rows in tqdm(batches, desc=f"epoch {epoch + 1}", disable=rank > 0, leave=False):
            own = rows.chunk(size)[rank] if args.share == "samples" else rows
            optimizer.zero_grad()
            with learner.record():
                xr, yr = learner.expand(x[own], y[own])
                losses = F.cross_entropy(net(xr), yr, reduction="none")
            total += learner.backward(losses).item()  # the mean over all processes
            optimizer.step()
        history.append({"epoch": epoch + 1, "train_loss": total / len(batches)})
        if rank == 0:
            history[-1]["validation"] = training.accuracy(net, splits.validation)
            print(
                f"epoch {epoch + 1}  loss {history[-1]['train_loss']:.4f}  "
                f"validation {history[-1]['validation']:.2f}%",
                flush=True,
            )
    if rank == 0:
        args.output.mkdir(parents=True, exist_ok=True)
        results = {
            "command": f"torchrun --nproc-per-node {size} examples/distributed_mnist.py "
            f"--share {args.share}",
            "processes": size,
            "settings": {k: str(v) for k, v in vars(args).items() if k != "output"},
            "versions": training.installed("nit-snn", "torch", "snntorch"),
            "machine": training.processor(),
            "test": training.accuracy(net, splits.test),
            "seconds": time.perf_counter() - started,
            "history": history,
        }
        (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        print(f"test {results['test']:.2f}%")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
