"""Networks trained against attacks, each judged by the worst of many attacks, image by image.

    python examples/adversarial_training.py --dataset mnist --hidden 50 --data-dir data

Adversarial training (Madry et al. 2018) of one hidden layer in three ways, with settings from the
trials of `benchmarks/adversarial_search.py` on validation images; STBP-N takes NIT's:

- NIT: a noisy spiking network; the attacked images and the weights' gradient both by the
  likelihood ratio, with no surrogate and nothing carried back through time;
- STBP-N: the same noisy network, both by a surrogate and backpropagation through time;
- ReLU: an ordinary network of the same size, both by backpropagation.

(A fourth, "mean rates", is for the search: ReLU's training of what NIT's network is on average.)

The finished networks meet the adaptive protocol (`nit_snn.robustness.adaptive`) on test images;
the noisy ones decide by the mean of `--decision-draws` draws of their noise. With `--stop-images`
each keeps the weights of the epoch that withstands an attack on so many validation images best:
what new images withstand can fall long before training is over (robust overfitting, Rice et al.
2020). Writes adversarial_<dataset>_<hidden>.json and a table beside it to --output, checkpoints to
--work; --resume goes on from these.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import training
from adversarial_table import pairs, table
from mean_rates import MeanRates
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, keep_freed_memory, swap_neurons
from nit_snn.datasets import NAMES, Splits, load, split
from nit_snn.errors import CheckpointError
from nit_snn.inspect.audit import noise_density
from nit_snn.robustness import (
    EOTPGD,
    AdversarialExpand,
    Defender,
    NoisyClassifier,
    adaptive,
    check,
    loss_of_mean,
    trades,
)
from nit_snn.training.batches import Batches
from nit_snn.training.checkpoint_file import write_whole
from nit_snn.training.checkpoints import Checkpoints

EPS = 0.1
TIME = {"conditional": True, "credit": "time"}
JUDGING = (
    "images",
    "check_images",
    "decision_draws",
    "attack_draws",
    "attack_steps",
    "apgd_steps",
    "queries",
    "seed",
)
ACCOUNTS = ("average", "best", "made", "total", "seconds", "history")  # beside what has a state


@dataclass(frozen=True)
class Setting:
    """How a network is trained.

    Attributes:
        method: "NIT", "STBP-N", "ReLU" or "mean rates".
        epochs: How often it sees every image.
        batch_size: Images in a batch.
        lr: Adam's, rising over 200 batches and then falling to 0 in a straight line.
        weight_decay: AdamW's.
        eps: Radius of the ball that training attacks in.
        warmup: Epochs over which this grows from 0.
        inner: Steps of the attack on each batch.
        draws: Draws of the noise in each of its gradients.
        replicas: Draws of the noise in the weights' gradient.
        sigma: Noise level of the hidden neurons.
        learn_sigma: NIT: learn one for each neuron.
        density: STBP-N: the noise's density as surrogate; else a sigmoid of slope 4.
        steps: T.
        scale: What the mean over time of the readout is multiplied by.
        beta: Weight of TRADES' term; None trains on attacked images alone.
        of_mean: The loss of the mean logits over replicas, which is what decides; else the mean
            loss of single draws.
        ema: Decay per batch of the average of the weights that is kept; 0 keeps the last ones.
        shift: Pixels, up to which each training image is moved at random in both directions.
        stop_images: Validation images that are attacked after each epoch, the last ones there are;
            kept is the epoch that keeps most of them. 0 keeps the last epoch.
    """

    method: str
    epochs: int = 4
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.0
    eps: float = EPS
    warmup: float = 1.0
    inner: int = 3
    draws: int = 4
    replicas: int = 4
    sigma: float = 0.5
    learn_sigma: bool = False
    density: bool = True
    steps: int = 8
    scale: float = 2.0
    beta: float | None = None
    of_mean: bool = False
    ema: float = 0.0
    shift: int = 0
    stop_images: int = 0


NOISY = Setting("", lr=5e-3, warmup=3.0, of_mean=True, eps=0.11, inner=5, sigma=1.5, scale=10.0)
SETTINGS = {
    "NIT": replace(NOISY, method="NIT", epochs=30),
    "ReLU": Setting("ReLU", epochs=30, lr=1e-2, warmup=3.0, eps=0.11, inner=7),
    "STBP-N": replace(NOISY, method="STBP-N", epochs=30),
}
WIDE = {  # from 256 hidden neurons on
    name: replace(setting, epochs=20, lr=2.5e-3, eps=0.12) for name, setting in SETTINGS.items()
}


class Spiking(nn.Module):
    """784-hidden-10: one layer of LIF neurons that see the same image for T steps."""

    def __init__(self, hidden: int, setting: Setting) -> None:
        super().__init__()
        self.steps, self.scale = setting.steps, setting.scale
        self.fc1, self.fc2 = layer.Linear(784, hidden), layer.Linear(hidden, 10)
        spike = noise_density(setting.sigma) if setting.density else surrogate.Sigmoid(alpha=4.0)
        self.lif = neuron.LIFNode(tau=2.0, decay_input=False, v_reset=0.0, surrogate_function=spike)
        functional.set_step_mode(self, "m")
        swap_neurons(self, sigma=setting.sigma)

    def forward(self, images: Tensor) -> Tensor:
        functional.reset_net(self)
        x = images.flatten(1)
        spikes = self.lif(self.fc1(x.expand(self.steps, *x.shape)))
        return self.scale * self.fc2(spikes).mean(0)


def network(hidden: int, setting: Setting) -> nn.Module:
    if setting.method == "ReLU":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    if setting.method == "mean rates":
        return MeanRates(hidden, setting.sigma, setting.steps, setting.scale)
    return Spiking(hidden, setting)


class Run:
    """One network and its way of being trained.

    Args:
        setting: What it is.
        hidden: Number of hidden neurons.
        seed: Of weights, order of the images, attacks and noise.
    """

    def __init__(self, setting: Setting, hidden: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.setting, self.hidden, self.seed = setting, hidden, seed
        self.net = network(hidden, setting)
        self.learner: NITLearner | None = None
        self.expand: AdversarialExpand | None = None
        if setting.method == "NIT":
            self.learner = NITLearner(
                self.net,
                replicas=setting.replicas,
                noise_reuse=True,
                learn_sigma=setting.learn_sigma,
                sigma_bounds=(0.1, 2.0),
                seed=seed,
                residual=1,
                **TIME,
            )
            self.expand = AdversarialExpand(self.learner, steps=setting.inner, draws=setting.draws)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=setting.lr,
            betas=(0.9, 0.99),
            weight_decay=setting.weight_decay,
            fused=True,
        )
        self.average = copy.deepcopy(self.net.state_dict())
        self.best: dict[str, Any] = {"attacked": -1.0}  # with its epoch and weights, once there
        self.made = 0
        self.total = self.seconds = self.started = 0.0
        self.history: list[dict[str, float]] = []

    def train(
        self,
        splits: Splits,
        folder: Path | None = None,
        resume: bool = False,
        save_seconds: float = 60,
    ) -> None:
        """Trains for what is still missing, and takes the weights that are to be kept.

        Checkpoints go to `folder`, at least so often, and after each epoch.
        """
        images, labels = splits.train.tensors
        self.batches = Batches(len(labels), self.setting.batch_size, drop_last=True)
        checkpoints = Checkpoints(folder or "", settings=self._settings())
        if resume and folder is not None:
            self._load(checkpoints)
        for epoch in range(self.batches.epoch, self.setting.epochs):
            if not self.batches.done:
                torch.manual_seed(self.seed + 1000 * (epoch + 1))
                self.total = self.seconds = 0.0
            self.started = time.perf_counter()
            bar = tqdm(total=len(self.batches), initial=self.batches.done, leave=False)
            bar.set_description(f"{self.setting.method} {epoch + 1}")
            for rows in self.batches:
                self.total += self.step(images[rows], labels[rows], len(self.batches))
                bar.update()
                if folder is not None and checkpoints.due(save_seconds):
                    self._save(checkpoints)
            bar.close()
            self._stop_clock()
            self.history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": self.total / len(self.batches),
                    "seconds": self.seconds,
                    "validation": training.accuracy(self.net, splits.validation),
                }
            )
            if self.setting.stop_images:
                self._compare(splits)
            self.started = time.perf_counter()
            if folder is not None:
                self._save(checkpoints)
        if self.learner is not None:
            self.learner.close()
        self.net.load_state_dict(self.best.get("weights", self._kept()))

    def _kept(self) -> dict[str, Any]:
        """The weights that would be kept if training ended here."""
        return self.average if self.setting.ema else self.net.state_dict()

    def _compare(self, splits: Splits) -> None:
        """Notes what an attack leaves of validation images, and the weights if it is most so far.

        Every epoch meets the same noise and starts, so that they differ by their weights alone.
        """
        images, labels = (t[-self.setting.stop_images :] for t in splits.validation.tensors)
        running, kept = copy.deepcopy(self.net.state_dict()), copy.deepcopy(self._kept())
        self.net.load_state_dict(kept)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            attacked = withstood(self.net, images, labels)
        self.net.load_state_dict(running)
        self.history[-1]["attacked"] = attacked
        if attacked > self.best["attacked"]:
            self.best = {"attacked": attacked, "epoch": len(self.history), "weights": kept}

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now

    def step(self, x: Tensor, y: Tensor, batches: int) -> float:
        """One update on a batch; returns the mean loss."""
        setting = self.setting
        warm = min(1.0, (self.made + 1) / max(1.0, setting.warmup * batches))
        rising = min(1.0, (self.made + 1) / 200)
        falling = 1 - self.made / (setting.epochs * batches)
        self.optimizer.param_groups[0]["lr"] = setting.lr * rising * falling
        if setting.shift:
            x = shifted(x, setting.shift)
        attacked = self.attack(x, y, warm * setting.eps)
        self.optimizer.zero_grad()
        if self.learner is not None:
            with self.learner.record():
                losses = self.losses(*self.learner.expand(x, attacked, y))
            loss = self.learner.backward(losses)
        else:
            copies = setting.replicas if setting.method == "STBP-N" else 1
            loss = self.losses(*(t.repeat(copies, *[1] * (t.dim() - 1)) for t in (x, attacked, y)))
            loss = loss.mean()
            loss.backward()
        self.optimizer.step()
        self.made += 1
        if setting.ema:
            decay = min(setting.ema, self.made / (self.made + 9))
            for name, value in self.net.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
        return loss.item()

    def losses(self, x: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        """(rows,)."""
        if self.setting.of_mean:
            return loss_of_mean(self.net(attacked), y, self.setting.replicas)
        if self.setting.beta is None:
            return F.cross_entropy(self.net(attacked), y, reduction="none")
        return trades(self.net(x), self.net(attacked), y, self.setting.beta)

    def attack(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """Attacked images of a batch, by the method's own gradient."""
        if self.expand is not None:
            self.expand.eps = eps
            return self.expand.attack(x, y)
        model: nn.Module = self.net
        if self.setting.method == "STBP-N":
            model = NoisyClassifier(self.net, draws=self.setting.draws)
        return pgd(model, x, y, eps, self.setting.inner)

    def _parts(self) -> dict[str, Any]:
        return {
            "net": self.net,
            "optimizer": self.optimizer,
            "learner": self.learner,
            "batches": self.batches,
        }

    def _save(self, checkpoints: Checkpoints) -> None:
        self._stop_clock()
        progress = {name: getattr(self, name) for name in ACCOUNTS}
        checkpoints.save(progress, **self._parts())

    def _load(self, checkpoints: Checkpoints) -> None:
        try:
            saved = checkpoints.newest()
            if saved is not None:
                saved.restore(**self._parts())
                vars(self).update({name: saved.progress[name] for name in ACCOUNTS})
        except CheckpointError as error:
            raise SystemExit(str(error)) from error

    def _settings(self) -> dict[str, Any]:
        return {**asdict(self.setting), "hidden": self.hidden, "seed": self.seed}


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Attacked images as `AdversarialExpand.attack` makes them, by autograd through the model."""
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    alpha = eps * (1.25 if steps == 1 else 1.5 / steps)
    found = low + (high - low) * torch.rand_like(x)
    for _ in range(steps):
        leaf = found.detach().requires_grad_()
        loss = F.cross_entropy(model(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        found = torch.maximum(torch.minimum(found + alpha * gradient.sign(), high), low)
    return found.detach()


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Images (N, 1, H, W), each moved by up to so many pixels in both directions; black follows."""
    count, _, height, width = images.shape
    windows = F.pad(images, [pixels] * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * pixels + 1, (2, count))
    return windows[torch.arange(count), :, down, right]


def withstood(
    net: nn.Module, images: Tensor, labels: Tensor, steps: int = 10, draws: int = 4
) -> float:
    """Accuracy in percent under a short EOT-PGD, by the likelihood ratio or by autograd.

    Cheap enough for every epoch, and strong enough to tell them apart; what the network withstands
    is a matter for `adaptive`.
    """
    noisy = isinstance(net, Spiking)
    defender = Defender(net, draws=100 if noisy else 1)
    model = defender.classifier(**({"draws": draws, "gradient": "lr", **TIME} if noisy else {}))
    attack = EOTPGD(
        model, eps=EPS, alpha=2.5 * EPS / steps, steps=steps, draws=1, restarts=1, judgements=1
    )
    return 100 * defender.right(attack(images, labels), labels).float().mean().item()


def validated(
    net: nn.Module, splits: Splits, images: int = 1000, steps: int = 40, draws: int = 20
) -> dict[str, float]:
    """Accuracy in percent on validation images, clean and under EOT-PGD.

    By the likelihood ratio and by the noise's density, or by autograd in a network without noise.
    """
    x, y = (t[:images] for t in splits.validation.tensors)
    noisy = isinstance(net, Spiking)
    defender = Defender(net, draws=100 if noisy else 1)
    ways: dict[str, dict[str, Any]] = {"PGD": {}}
    if noisy:
        ways = {"LR": {"gradient": "lr", **TIME}}
        ways["density"] = {"surrogate": {"lif": noise_density(net.lif.sigma.detach())}}
    alive = defender.right(x, y)
    found = {"clean": 100 * alive.float().mean().item()}
    for name, way in ways.items():
        model = defender.classifier(draws=draws if noisy else 1, **way)
        attack = EOTPGD(model, eps=EPS, steps=steps, draws=1, restarts=1, judgements=1)
        right = defender.right(attack(x, y), y)
        found[name] = 100 * right.float().mean().item()
        alive &= right
    return {**found, "worst": 100 * alive.float().mean().item()}


def described(dataset: str, seed: int) -> dict[str, Any]:
    """What it takes to get the numbers of a file again."""
    return {
        "dataset": dataset,
        "command": shlex.join(["python", *sys.argv]),
        "seed": seed,
        "versions": training.installed("nit-snn", "torch", "spikingjelly", "torchattacks"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, "
        f"{torch.get_num_threads()} threads",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=NAMES, default="mnist")
    add("--hidden", type=int, default=50, help="hidden neurons")
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--download", action="store_true", help="download the full data if it is missing")
    add("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    add("--epochs", type=int, help="of the noisy networks; ReLU gets three times as many")
    add("--steps", type=int, default=8, help="T of the noisy networks")
    add("--stop-images", type=int, default=0, help="validation images that choose the epoch")
    add("--images", type=int, default=1000, help="test images attacked")
    add("--check-images", type=int, default=0, help="of them, for the sanity checks")
    add("--decision-draws", type=int, default=100, help="draws that a noisy network decides by")
    add("--attack-draws", type=int, default=20, help="draws in each gradient of an attack")
    add("--attack-steps", type=int, default=40, help="steps of EOT-PGD")
    add("--apgd-steps", type=int, default=50)
    add("--queries", type=int, default=1000, help="of Square, for each image")
    add("--seed", type=int, default=0, help="of the first training; the split is always the same")
    add("--runs", type=int, default=1, help="trainings of each method, by one seed after another")
    add("--work", type=Path, default=Path("runs/adversarial"), help="where checkpoints go")
    add("--output", type=Path, default=Path("docs/results"), help="where the results go")
    add("--resume", action="store_true", help="go on from --work, with the same options")
    add("--save-seconds", type=float, default=60, help="save at least so often, and after epochs")
    return parser.parse_args()


def judged(
    method: str, run: Run, splits: Splits, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """The row of the results' table."""
    path, options = folder.with_suffix(".json"), {name: getattr(args, name) for name in JUDGING}
    if args.resume and path.exists():
        held: dict[str, Any] = json.loads(path.read_text())
        if held["options"] != options:
            raise SystemExit(f"{path} was judged with {held['options']}, not with {options}.")
        row: dict[str, Any] = held["row"]
        return row
    torch.manual_seed(args.seed)
    images, labels = (t[: args.images] for t in splits.test.tensors)
    defender = Defender(run.net, draws=1 if method == "ReLU" else args.decision_draws)
    verdict = adaptive(
        defender,
        images,
        labels,
        eps=EPS,
        steps=args.attack_steps,
        draws=args.attack_draws,
        apgd_steps=args.apgd_steps,
        queries=args.queries,
        seed=args.seed,
        progress=True,
    )
    few = slice(0, args.check_images)
    if args.check_images:
        check(verdict, defender, images[few], labels[few], progress=True)
    told = verdict.row(method)
    if not verdict.checks:  # an empty list would read as if all had been passed
        del told["masked"], told["checks"]
    row = {
        **told,
        "seed": run.seed,
        "withstood": "".join(str(int(right)) for right in verdict.robust),
        "training": asdict(run.setting),
        "kept_epoch": run.best.get("epoch", run.setting.epochs),
        "history": run.history,
    }
    write(path, json.dumps({"options": options, "row": row}))
    return row


def write(path: Path, text: str) -> None:
    """All of it or nothing."""
    write_whole(path, text.encode())


def main() -> None:
    args = arguments()
    training.skip_denormals()
    keep_freed_memory()
    args.work.mkdir(parents=True, exist_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)
    splits = split(*load(args.dataset, args.data_dir, args.download))
    rows = []
    for seed, method in itertools.product(range(args.seed, args.seed + args.runs), args.methods):
        setting = (WIDE if args.hidden >= 256 else SETTINGS)[method]
        setting = replace(setting, steps=args.steps, stop_images=args.stop_images)
        if args.epochs is not None:
            epochs = args.epochs * (3 if method == "ReLU" else 1)
            setting = replace(setting, epochs=epochs)
        run = Run(setting, args.hidden, seed)
        folder = args.work / f"{args.dataset}_{args.hidden}_{method}_{seed}"
        run.train(splits, folder, args.resume, args.save_seconds)
        rows.append(judged(method, run, splits, args, folder))
        results = {
            **described(args.dataset, args.seed),
            "hidden": args.hidden,
            "images": len(splits.test.tensors[0][: args.images]),
            "eps": EPS,
            "rows": rows,
            "pairs": pairs(rows),
        }
        path = args.output / f"adversarial_{args.dataset}_{args.hidden}.json"
        write(path, json.dumps(results, indent=1) + "\n")
        write(path.with_suffix(".md"), table(results))
    print(
        f"\naccuracy in percent, eps = {EPS}, {results['images']} test images\n\n{table(results)}"
    )


if __name__ == "__main__":
    main()
