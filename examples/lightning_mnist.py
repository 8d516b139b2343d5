"""784-50-10 on MNIST by NIT inside PyTorch Lightning, with its logs and checkpoints.

    pip install ".[snntorch,train,lightning]"
    python examples/lightning_mnist.py                  # the embedded 10,000 images
    python examples/lightning_mnist.py --resume runs/lightning_mnist/last.ckpt --epochs 20
    tensorboard --logdir runs/lightning_mnist

Lightning's automatic optimisation calls `loss.backward()`, so it is switched off; all that a
training step needs is in `training_step`. Noise levels, firing rates and signal-to-noise ratios of
the layers are logged beside the loss.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
import training
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from mnist_snntorch import Net
from torch import Tensor
from torch.utils.data import DataLoader

from nit_snn import NITLearner, swap_neurons
from nit_snn.datasets import NAMES, load, split
from nit_snn.inspect.monitoring import TrainingLog


class Classifier(lightning.LightningModule):
    """A noisy 784-50-10, trained by NIT.

    Args:
        steps: T.
        replicas: Noisy copies of each sample.
        sigma: Noise level of the hidden neurons.
        lr: Adam's learning rate, decayed by a cosine.
        seed: Names the noise.
        log_every: Steps between two looks at the layers.
    """

    def __init__(
        self,
        steps: int = 8,
        replicas: int | str = "auto",
        sigma: float = 1.0,
        lr: float = 5e-3,
        seed: int = 0,
        log_every: int = 20,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.net = swap_neurons(Net(steps), sigma)
        self.learner = NITLearner(self.net, replicas=replicas, learn_sigma=True, seed=seed)

    def on_fit_start(self) -> None:
        self.watch = TrainingLog(self.learner, self.logger.experiment)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        looks = self.global_step % self.hparams.log_every == 0
        optimizer = self.optimizers()
        optimizer.zero_grad()
        if looks:
            with self.watch.watching():
                loss = self.estimate(*batch)
            self.watch.write(self.global_step)
        else:
            loss = self.estimate(*batch)
        optimizer.step()
        self.log("train_loss", loss, prog_bar=True)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Puts the gradient into `.grad`; the mean loss."""
        with self.learner.record():
            xr, yr = self.learner.expand(x, y)
            losses = F.cross_entropy(self.net(xr), yr, reduction="none")
        return self.learner.backward(losses)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        self._score("validation", *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        self._score("test", *batch)

    def _score(self, part: str, x: Tensor, y: Tensor) -> None:
        """Percent of right answers with one draw of the noise."""
        right = (self.net(x).argmax(1) == y).float().mean()
        self.log(f"{part}_accuracy", 100 * right, batch_size=len(y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.learner.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["learner"] = self.learner.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.learner.load_state_dict(checkpoint["learner"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=NAMES, default="mnist")
    add("--data-dir", help="the full data in torchvision's layout; else the subset")
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=64)
    add("--replicas", type=training.auto_or(int), default="auto")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/lightning_mnist"))
    add("--resume", type=Path, help="a checkpoint to go on from")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    training.skip_denormals()
    lightning.seed_everything(args.seed)
    splits = split(*load(args.dataset, args.data_dir), seed=args.seed)
    train = DataLoader(splits.train, args.batch_size, shuffle=True)
    validation, test = (DataLoader(part, 1000) for part in (splits.validation, splits.test))
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator="auto",
        devices=1,  # several processes: examples/distributed_mnist.py
        logger=TensorBoardLogger(args.output, name=None),
        callbacks=[ModelCheckpoint(args.output, save_last=True)],
    )
    model = Classifier(replicas=args.replicas, seed=args.seed)
    trainer.fit(model, train, validation, ckpt_path=args.resume)
    (scores,) = trainer.test(model, test)
    (args.output / "results.json").write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
