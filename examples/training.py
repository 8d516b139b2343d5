"""What the two MNIST examples share: arguments, the training loops, checkpoints and results.

A network is trained in up to five ways: NIT (noisy neurons, likelihood-ratio gradient), STBP
(the plain network, surrogate gradient through time), STBP-N (the noisy network, surrogate
gradient), NIT-S (the sign direction) and NIT-S+ (first NIT-S, then NIT). All start from the same
weights and see the same batches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pictures
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from nit_snn import NITLearner, NITSPlus, keep_freed_memory, noise_off, swap_neurons
from nit_snn.datasets import NAMES, Splits, load, split
from nit_snn.errors import CheckpointError
from nit_snn.training.batches import Batches
from nit_snn.training.checkpoints import Checkpoints

METHODS = ("nit", "stbp", "stbp-n", "nit-s", "nit-s+")
CREDITS = ("auto", "none", "readout", "layers", "time")


def auto_or(kind: Callable[[str], float]) -> Callable[[str], float | str]:
    """How a command line reads an option that may be left to the learner."""

    def read(text: str) -> float | str:
        return text if text == "auto" else kind(text)

    return read


def learner_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `NITLearner` on a command line; what is "auto" is the learner's choice."""
    return {
        "replicas": args.replicas,
        "credit": args.credit,
        "residual": args.residual,
        "conditional": args.conditional or "auto",
        "seed": args.seed,
    }


def parse_arguments(description: str, default_output: str) -> argparse.Namespace:
    """The command line of both examples."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=NAMES, default="mnist")
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--download", action="store_true", help="download the full data if it is missing")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS[:3]))
    add("--epochs", type=int, default=10)
    add("--sign-share", type=float, default=0.7, help="NIT-S+: share of the epochs that are NIT-S")
    add("--batch-size", type=int, default=64)
    add("--center", action="store_true", help="subtract the mean of the training images")
    add("--lr", type=float, default=5e-3, help="NIT's learning rate, decayed to 0 by a cosine")
    add("--sign-lr", type=float, default=2e-3, help="learning rate of NIT-S")
    add("--stbp-lr", type=float, default=2e-3, help="learning rate of STBP and STBP-N")
    add("--weight-decay", type=float, default=0.03, help="AdamW's, for all methods")
    add_learner(add)
    add("--steps", type=int, default=8, help="time steps T")
    add("--sigma", type=float, default=1.0, help="noise of the hidden neurons")
    add("--spiking-output", action="store_true", help="spiking neurons in the output layer too")
    add("--output-sigma", type=float, default=0.15, help="noise of these")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--output", type=Path, default=Path(default_output), help="where the results go")
    add("--resume", action="store_true", help="go on from the checkpoints in --output")
    add("--save-seconds", type=float, default=60, help="save at least so often, and after epochs")
    return parser.parse_args()


def add_learner(add: Callable[..., Any]) -> None:
    """The options of NIT and NIT-S; without them the learner chooses."""
    add("--replicas", type=auto_or(int), default="auto", help="noisy copies of each sample")
    add("--credit", choices=CREDITS, default="auto", help="'none' is the paper's NIT")
    add("--residual", type=auto_or(float), default="auto", help="1 is unbiased, 0 is cheap")
    add("--conditional", action="store_true", help="condition the scores on the spikes")


class Run:
    """One network, one way of training it.

    Args:
        method: One of `METHODS`.
        build: Makes the plain network of the framework.
        sigma: Noise level of each of its neurons.
        args: The command line.
    """

    def __init__(
        self,
        method: str,
        build: Callable[[], nn.Module],
        sigma: dict[str, float],
        args: argparse.Namespace,
    ) -> None:
        torch.manual_seed(args.seed)
        self.method, self.args = method, args
        self.net = build().to(args.device)
        if method != "stbp":
            swap_neurons(self.net, sigma)
        self.learner: NITLearner | None = None
        if method.startswith("nit"):
            rule = "nit" if method == "nit" else "nit-s"
            self.learner = NITLearner(self.net, rule=rule, **learner_options(args))
        self.plus: NITSPlus | None = None
        if self.learner is not None and method == "nit-s+":
            self.plus = NITSPlus(self.learner, after=self.switch)
        self.optimizer: torch.optim.Optimizer
        self.history: list[dict[str, float]] = []
        self.running = {"total": 0.0}  # what the running epoch has come to
        self.checkpoints = Checkpoints(args.output / method, settings=self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on from."""
        places = ("output", "resume", "save_seconds", "device", "methods", "data_dir", "download")
        return {name: value for name, value in vars(self.args).items() if name not in places}

    @property
    def switch(self) -> int:
        """The epoch from which NIT-S+ is NIT."""
        share = self.args.sign_share if self.method == "nit-s+" else 1.0
        return round(share * self.args.epochs)

    def _begin(self, epoch: int, batches: int) -> None:
        """An optimizer and a cosine for the epochs from here on; at the switch of NIT-S+, too.

        The two directions differ in scale, so Adam's moments of the one mislead the other. Before
        the switch the learning rate stays: it is NIT that has to settle.
        """
        end = self.switch if epoch < self.switch else self.args.epochs
        lr = self.args.stbp_lr
        if self.learner is not None:
            lr = self.args.lr if self.learner.rule == "nit" else self.args.sign_lr
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=lr, weight_decay=self.args.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, (end - epoch) * batches, lr if end < self.args.epochs else 0.0
        )

    def train(self, splits: Splits) -> None:
        """Trains for what is still missing; writes checkpoints on the way and after each epoch."""
        images, labels = (t.to(self.args.device) for t in splits.train.tensors)
        self.batches = Batches(len(labels), self.args.batch_size)
        if self.args.resume:
            self._load()
        for epoch in range(self.batches.epoch, self.args.epochs):
            if not self.batches.done:
                if epoch in (0, self.switch):
                    self._begin(epoch, len(self.batches))
                torch.manual_seed(self.args.seed + 1000 * (epoch + 1))
                self.running = {"total": 0.0}
            self._started = self._clocks()
            bar = tqdm(total=len(self.batches), initial=self.batches.done, leave=False)
            bar.set_description(f"{self.method} {epoch + 1}")
            for rows in self.batches:
                self.running["total"] += self.step(images[rows], labels[rows]) * len(rows)
                self.schedule.step()
                bar.update()
                if self.checkpoints.due(self.args.save_seconds):
                    self._save()
            bar.close()
            self._stop_clocks()
            train_loss = self.running.pop("total") / len(labels)
            self.history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    **self.running,
                    "validation": accuracy(self.net, splits.validation),
                }
            )
            if self.plus is not None:
                self.plus.step()
            self._save()
            last = self.history[-1]
            print(
                f"{self.method:>6} epoch {epoch + 1:>2}  loss {last['train_loss']:.3f}  "
                f"validation {last['validation']:.2f}%  {last['seconds']:.1f} s",
                flush=True,
            )

    def _clocks(self) -> dict[str, float]:
        """What an epoch is timed by."""
        return {"seconds": time.perf_counter()}

    def _stop_clocks(self) -> None:
        """Adds the time since they were started, in whichever process, and starts them anew."""
        now = self._clocks()
        for name, value in now.items():
            self.running[name] = self.running.get(name, 0.0) + value - self._started[name]
        self._started = now

    def step(self, x: Tensor, y: Tensor) -> float:
        """One update; returns the mean loss."""
        self.optimizer.zero_grad()
        if self.learner is not None:
            with self.learner.record():
                xr, yr = self.learner.expand(x, y)
                losses = F.cross_entropy(self.net(xr), yr, reduction="none")
            loss = self.learner.backward(losses)
        else:
            loss = F.cross_entropy(self.net(x), y)
            loss.backward()
        self.optimizer.step()
        return loss.item()

    def result(self, splits: Splits) -> dict[str, Any]:
        """The row of the results' table: test accuracies in percent."""
        torch.manual_seed(self.args.seed)
        row = {"method": self.method, "test": accuracy(self.net, splits.test)}
        if self.method != "stbp":
            row["test_mean_of_16_draws"] = accuracy(self.net, splits.test, draws=16)
            with noise_off(self.net):
                row["test_noise_off"] = accuracy(self.net, splits.test)
        return {**row, "history": self.history}

    def _parts(self) -> dict[str, Any]:
        return {
            "net": self.net,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "learner": self.learner,
            "plus": self.plus,
            "batches": self.batches,
        }

    def _save(self) -> None:
        if "total" in self.running:  # in the midst of an epoch
            self._stop_clocks()
        self.checkpoints.save({"history": self.history, "running": self.running}, **self._parts())

    def _load(self) -> None:
        try:
            saved = self.checkpoints.newest()
            if saved is None:
                return
            place = tuple(saved.parts["batches"][name] for name in ("epoch", "done"))
            self._begin(self.switch if place > (self.switch, 0) else 0, len(self.batches))
            saved.restore(**self._parts())
        except CheckpointError as error:
            raise SystemExit(str(error)) from error
        self.history, self.running = saved.progress["history"], saved.progress["running"]


def skip_denormals() -> None:
    """Zero for numbers too small to matter, on which many processors are very slow."""
    torch.set_flush_denormal(True)


def shuffled(count: int, size: int) -> Iterator[Tensor]:
    """Row numbers of the batches of one epoch."""
    yield from torch.randperm(count).split(size)


def centered(splits: Splits) -> Splits:
    """All images less the mean of the training images, so that a sign tells ink from paper."""
    mean = splits.train.tensors[0].mean(0)
    return Splits(*(TensorDataset(x - mean, y) for x, y in (part.tensors for part in splits)))


@torch.no_grad()
def accuracy(net: nn.Module, dataset: Any, draws: int = 1, size: int = 2000) -> float:
    """Percent of right answers, with `draws` draws of the noise averaged per image."""
    device = next(net.parameters()).device
    right = 0
    for x, y in zip(*(t.split(size) for t in dataset.tensors), strict=True):
        scores = sum(F.softmax(net(x.to(device)), 1) for _ in range(draws))
        right += (scores.argmax(1).cpu() == y).sum().item()
    return 100 * right / len(dataset)


def main(build: Callable[[], nn.Module], sigma: dict[str, float], args: argparse.Namespace) -> None:
    """Trains by every method asked for; writes results and pictures, and prints the table.

    Args:
        build: Makes the plain network of the framework.
        sigma: Noise level of each of its neurons.
        args: The command line.
    """
    skip_denormals()
    keep_freed_memory()
    args.output.mkdir(parents=True, exist_ok=True)
    splits = split(*load(args.dataset, args.data_dir, args.download), seed=args.seed)
    if args.center:
        splits = centered(splits)
    runs = {}
    for method in args.methods:
        run = Run(method, build, sigma, args)
        run.train(splits)
        runs[method] = run
    rows = [run.result(splits) for run in runs.values()]
    write_results(rows, splits, args)
    print_table(rows)
    pictures.accuracy_over_epochs(
        {method: run.history for method, run in runs.items()}, args.output / "accuracy.png"
    )
    noisy = [run for run in runs.values() if run.method != "stbp"]
    if noisy:
        image = splits.test.tensors[0][0].to(args.device)
        pictures.inside(
            noisy[0].net, image, args.output / "inside.png", args.seed, 32 // args.steps
        )


def write_results(rows: list[dict[str, Any]], splits: Splits, args: argparse.Namespace) -> None:
    """results.json: the numbers, and all it takes to get them again."""
    results = {
        "dataset": args.dataset,
        "images": {part: len(getattr(splits, part)) for part in splits._fields},
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "versions": installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {processor()}, {torch.get_num_threads()} threads",
        "rows": rows,
    }
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def installed(*names: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def print_table(rows: list[dict[str, Any]]) -> None:
    """Test accuracies in percent."""
    print(f"\n{'method':<8}{'test':>8}{'16 draws':>10}{'noise off':>11}")
    for row in rows:
        cells = [row.get(key) for key in ("test", "test_mean_of_16_draws", "test_noise_off")]
        shown = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        print(f"{row['method']:<8}{shown[0]:>8}{shown[1]:>10}{shown[2]:>11}")


def processor() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"
