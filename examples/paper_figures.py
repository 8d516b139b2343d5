"""The paper's Fig. 2 and Fig. 3 on artificial networks, and its Table 1, measured.

    python examples/paper_figures.py

Fig. 2: trajectories of BP, NIT and NIT-S on a problem with two weights (`trajectories`). Fig. 3: an
artificial network on MNIST, trained by BP, NIT, NIT-S and NIT-S+ (`curves`). Table 1: see
`paper_table.py`. Everything is learned by `NITLearner` on `NoisyActivation`s. Writes
benchmarks/paper_figures.json and images/paper_*.png below --output.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import paper_table
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, NITSPlus, noise_off, swap_neurons
from nit_snn.datasets import NAMES, load, split
from nit_snn.neurons import NoisyActivation

FIGURES = ("fig2", "fig3", "table1")
ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
METHODS = {
    "bp": "BP",
    "nit": "NIT",
    "nit-s+": "NIT-S+",
    "nit-s": "NIT-S",
    "nit-s+ slow": "NIT-S+, then 1/10 of the step",
}
COLOURS = {
    "bp": "tab:blue",
    "nit": "tab:red",
    "nit-s+": "tab:orange",
    "nit-s": "tab:green",
    "nit-s+ slow": "tab:purple",
}


# --- Fig. 2 -----------------------------------------------------------------------------------

START, COPIES = (-1.2, 1.3), (1, 10)


def regression(seed: int) -> tuple[Tensor, Tensor]:
    """16 points with two correlated inputs, (16, 2), and what they should give, (16,).

    The paper does not say what its two parameters are. This is the simplest problem that meets its
    assumptions: one linear neuron, squared error, so that the loss is convex. The targets
    carry noise of their own, so that no weights fit them all.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 2, generator=generator) @ torch.tensor([[1.0, 0.5], [0.0, 0.8]])
    return x, x @ torch.tensor([1.0, -0.5]) + 0.6 * torch.randn(16, generator=generator)


def one_neuron() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 1, bias=False), NoisyActivation(nn.Identity(), sigma=1.0))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([START]))
    return net


def trajectory(method: str, copies: int, seed: int, args: argparse.Namespace) -> list[Any]:
    """The two weights after each step of gradient descent on all points, from START on."""
    net, (x, y) = one_neuron(), regression(args.seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.fig2_lr)
    learner = None
    if method != "bp":
        # As in the paper, nothing is subtracted from the loss; one copy could not have more.
        options = {"credit": "none", "rule": method, "baseline": "none"}
        learner = NITLearner(net, replicas=copies, seed=seed, **options)
    path = [list(START)]
    for _ in range(args.fig2_steps):
        optimizer.zero_grad()
        if learner is None:
            with noise_off(net):
                (net(x).squeeze(1) - y).square().mean().backward()
        else:
            with learner.record():
                xr, yr = learner.expand(x, y)
                losses = (net(xr).squeeze(1) - yr).square()
            learner.backward(losses)
        optimizer.step()
        path.append(net[0].weight.detach()[0].tolist())
    return path


def trajectories(args: argparse.Namespace) -> dict[str, Any]:
    """Paths of all methods, where they should end, and how far from there they stay."""
    x, y = (t.double().numpy() for t in regression(args.seed))
    signs = np.where(x >= 0, 1.0, -1.0)
    minimum = np.linalg.solve(x.T @ x, x.T @ y)
    # Where E[L sign(eps)] sign(x), summed over the points, is zero: residuals against signs.
    rest_of_signs = np.linalg.solve(signs.T @ x, signs.T @ y)
    rows = [{"method": "bp", "copies": 1, "path": trajectory("bp", 1, 0, args)}]
    for method in tqdm(("nit", "nit-s"), desc="Fig. 2"):
        for copies in COPIES:
            paths = [trajectory(method, copies, args.seed + i, args) for i in range(args.runs)]
            rows.append({"method": method, "copies": copies, "path": paths[0]})
            tail = np.array([p[-len(p) // 3 :] for p in paths])
            for name, point in (("minimum", minimum), ("rest_of_signs", rest_of_signs)):
                rows[-1][f"rms_distance_to_{name}"] = rms(tail - point)
                rows[-1][f"mean_distance_to_{name}"] = float(
                    np.linalg.norm((tail - point).mean((0, 1)))
                )
    return {
        "problem": "one linear neuron, sigma = 1, squared error, 16 points; gradient descent",
        "step_size": args.fig2_lr,
        "runs": args.runs,
        "minimum": minimum.tolist(),
        "rest_of_signs": rest_of_signs.tolist(),
        "rows": rows,
    }


def rms(differences: Any) -> float:
    return float(np.sqrt((differences**2).sum(-1).mean()))


def draw_trajectories(found: dict[str, Any], path: Path, args: argparse.Namespace) -> None:
    """NIT left, NIT-S right, each with BP, on the contours of the loss."""
    x, y = (t.numpy() for t in regression(args.seed))
    w1, w2 = np.linspace(-1.8, 1.8, 200), np.linspace(-1.3, 1.9, 200)
    grid = np.stack(np.meshgrid(w1, w2), -1)
    loss = ((grid @ x.T - y) ** 2).mean(-1)
    levels = loss.min() + np.linspace(0.1, np.sqrt(np.ptp(loss)), 14) ** 2
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4), sharey=True, layout="constrained")
    for panel, method in zip(axes, ("nit", "nit-s"), strict=True):
        panel.contour(w1, w2, loss, levels, colors="0.82", linewidths=0.8)
        for row in found["rows"]:
            if row["method"] not in ("bp", method):
                continue
            bp, one = row["method"] == "bp", row["copies"] == 1
            label = "BP" if bp else f"{METHODS[method]}, {row['copies']} cop{'y' if one else 'ies'}"
            colour = "tab:blue" if bp else "tab:green" if one else "tab:red"
            panel.plot(
                *np.transpose(row["path"]),
                color=colour,
                label=label,
                linewidth=2.2 if bp else 1.1,
                zorder=3 if bp else 2,
            )
        panel.plot(*START, "ko", markersize=5, zorder=4)
        panel.plot(*found["minimum"], "k*", markersize=12, zorder=4, label="minimum of the loss")
        if method == "nit-s":
            panel.plot(
                *found["rest_of_signs"],
                "kX",
                markersize=8,
                zorder=4,
                label="where NIT-S comes to rest",
            )
        panel.set(title=METHODS[method], xlabel="$w_1$", xlim=w1[[0, -1]], ylim=w2[[0, -1]])
        panel.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc="lower left")
    axes[0].set_ylabel("$w_2$")
    figure.savefig(path, dpi=150)
    plt.close(figure)


# --- Fig. 3 -----------------------------------------------------------------------------------


class Images:
    """Training and test images of MNIST, flat, with the mean training image subtracted.

    Without that, no pixel would be negative, and as sign(0) = 1, NIT-S would take all for alike.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        images, labels = load(args.dataset, args.data_dir, args.download)
        if args.images is not None:
            images, labels = images[: args.images], labels[: args.images]
        parts = split(images, labels, seed=args.seed)
        x, self.y = parts.train.tensors
        mean = x.flatten(1).mean(0)
        self.x = x.flatten(1) - mean
        self.test_x, self.test_y = parts.test.tensors[0].flatten(1) - mean, parts.test.tensors[1]


class Trained:
    """A 784-50-10 network and one way of training it, all by plain gradient descent.

    For NIT, both layers are noisy, as in Eq. 1: the logits too.
    """

    def __init__(self, method: str, activation: str, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        hidden = ACTIVATIONS[activation]()
        self.net = nn.Sequential(nn.Linear(784, args.width), hidden, nn.Linear(args.width, 10))
        self.learner = self.schedule = None
        if method != "bp":
            swap_neurons(self.net, sigma=1.0)
            self.net.append(NoisyActivation(nn.Identity(), sigma=1.0))
            self.learner = NITLearner(
                self.net,
                replicas=args.replicas,
                credit="none",
                rule="nit" if method == "nit" else "nit-s",
                seed=args.seed,
            )
        if method == "nit-s+":
            self.schedule = NITSPlus(self.learner, after=switch(args))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=args.lr)

    def epoch(self, data: Images, batch_size: int) -> float:
        """Sees each image once; returns the mean loss on the way, noise included."""
        total = 0.0
        for rows in torch.randperm(len(data.y)).split(batch_size):
            x, y = data.x[rows], data.y[rows]
            self.optimizer.zero_grad()
            if self.learner is None:
                loss = F.cross_entropy(self.net(x), y)
                loss.backward()
            else:
                with self.learner.record():
                    xr, yr = self.learner.expand(x, y)
                    losses = F.cross_entropy(self.net(xr), yr, reduction="none")
                loss = self.learner.backward(losses)
            self.optimizer.step()
            total += loss.item() * len(y)
        return total / len(data.y)

    @torch.no_grad()
    def accuracy(self, data: Images) -> dict[str, float]:
        """In percent, with one draw of the noise per image, and with the noise switched off."""

        def measure() -> float:
            right = self.net(data.test_x).argmax(1) == data.test_y
            return 100 * right.float().mean().item()

        one_draw = measure()
        with noise_off(self.net):
            return {"test": one_draw, "test_noise_off": measure()}


def switch(args: argparse.Namespace) -> int:
    """After how many epochs NIT-S+ goes over to NIT: 70 of 100."""
    return round(0.7 * args.epochs)


def curves(args: argparse.Namespace) -> dict[str, Any]:
    """Loss and accuracy of every method after each epoch, for each activation."""
    data, rows = Images(args), []
    for activation in args.activations:
        before_switch: dict[str, Any] = {}
        for method in METHODS:
            run, history = Trained(method, activation, args), []
            if method in ("nit-s", "nit-s+ slow"):  # the same as NIT-S+ until that switches
                run.net.load_state_dict(before_switch["net"])
                run.learner.load_state_dict(before_switch["learner"])
                history += before_switch["history"]
            if method == "nit-s+ slow":
                run.learner.rule = "nit"
                run.optimizer.param_groups[0]["lr"] /= 10
            label = f"Fig. 3 {activation} {METHODS[method]}"
            for epoch in tqdm(range(len(history), args.epochs), desc=label, leave=False):
                torch.manual_seed(args.seed + 1000 * (epoch + 1))
                loss = run.epoch(data, args.batch_size)
                history.append({"epoch": epoch + 1, "train_loss": loss, **run.accuracy(data)})
                if method == "nit-s+":
                    if epoch + 1 == switch(args):
                        net, learner = copy.deepcopy(run.net.state_dict()), run.learner.state_dict()
                        before_switch.update(net=net, learner=learner, history=list(history))
                    run.schedule.step()
            last = history[-1]
            rows.append({"activation": activation, "method": method, "history": history})
            print(
                f"{activation:>8} {METHODS[method]:<6} loss {last['train_loss']:.3f}  test "
                f"{last['test']:.1f}%  noise off {last['test_noise_off']:.1f}%",
                flush=True,
            )
    return {
        "network": f"784-{args.width}-10, sigma = 1 in both layers, gradient descent",
        "images": {"train": len(data.y), "test": len(data.test_y)},
        "lr": args.lr,
        "batch_size": args.batch_size,
        "replicas": args.replicas,
        "switch_after": switch(args),
        "rows": rows,
    }


def draw_curves(found: dict[str, Any], path: Path) -> None:
    """Training loss above, test accuracy below, a column for each activation."""
    activations = list(dict.fromkeys(row["activation"] for row in found["rows"]))
    figure, axes = plt.subplots(
        2,
        len(activations),
        figsize=(0.5 + 2.7 * len(activations), 5.4),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for (above, below), activation in zip(axes.T, activations, strict=True):
        for row in found["rows"]:
            if row["activation"] != activation:
                continue
            colour, epochs = COLOURS[row["method"]], [h["epoch"] for h in row["history"]]
            if row["method"] == "nit-s+ slow":  # up to there it is NIT-S+
                row = {**row, "history": row["history"][found["switch_after"] - 1 :]}
                epochs = epochs[found["switch_after"] - 1 :]
            for panel, key in ((above, "train_loss"), (below, "test_noise_off")):
                values = [h[key] for h in row["history"]]
                panel.plot(epochs, values, color=colour, label=METHODS[row["method"]])
            if row["method"] != "bp":
                noisy = [h["test"] for h in row["history"]]
                below.plot(epochs, noisy, color=colour, alpha=0.35, linewidth=0.8)
        above.set(title=activation, yscale="log")
        columns = [r["history"] for r in found["rows"] if r["activation"] == activation]
        later = [h["test_noise_off"] for history in columns for h in history[5:] or history]
        below.set(xlabel="epoch", ylim=(min(later) - 3, max(later) + 1.5))
        for panel in (above, below):
            panel.axvline(found["switch_after"], color="0.5", linestyle=":", linewidth=1)
            panel.grid(alpha=0.25)
    axes[0][0].set_ylabel("training loss")
    axes[1][0].set_ylabel("test accuracy (%)\nbold: noise off, faint: one draw")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# --- the script -------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    add("--dataset", choices=NAMES, default="mnist")
    add("--data-dir", help="full data in torchvision's layout; else $NIT_SNN_DATA or the subset")
    add("--download", action="store_true", help="download the full data if it is missing")
    add("--images", type=int, help="use only the first so many")
    add("--epochs", type=int, default=100, help="of Fig. 3; NIT-S+ changes after 70%% of them")
    add(
        "--activations",
        nargs="+",
        choices=("tanh", "sigmoid", "relu"),
        default=["tanh", "sigmoid", "relu"],
    )
    add("--width", type=int, default=50, help="hidden neurons")
    add("--lr", type=float, default=0.2, help="step size of Fig. 3")
    add("--batch-size", type=int, default=100)
    add("--replicas", type=int, default=8, help="noisy copies of each image in Fig. 3")
    add("--fig2-lr", type=float, default=0.08)
    add("--fig2-steps", type=int, default=120)
    add("--runs", type=int, default=10, help="how often Fig. 2 is run, for its distances")
    paper_table.add_arguments(parser)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/paper_figures"))
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    images, numbers = args.output / "images", args.output / "benchmarks"
    images.mkdir(parents=True, exist_ok=True)
    numbers.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "dataset": args.dataset,
        "versions": {n: version(n) for n in ("nit-snn", "torch")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    if "fig2" in args.figures:
        results["fig2"] = trajectories(args)
        draw_trajectories(results["fig2"], images / "paper_fig2.png", args)
    if "table1" in args.figures:
        results["table1"] = paper_table.measure(Images(args), args)
        paper_table.draw(results["table1"], images / "paper_table1.png")
    if "fig3" in args.figures:
        results["fig3"] = curves(args)
        draw_curves(results["fig3"], images / "paper_fig3.png")
    (numbers / "paper_figures.json").write_text(json.dumps(rounded(results)) + "\n")


def rounded(value: Any) -> Any:
    """Five digits are enough for a file that people read."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(held) for key, held in value.items()}
    return [rounded(held) for held in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
