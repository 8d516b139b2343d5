"""What the paper's Table 1 says of BP and LR, measured: see `paper_figures.py`.

Variance: gradients of a 784-50-10 network from fresh batches, against the gradient of the whole
training set, by BP, by BP through the noise and by LR. Cost: a step of each. Parallelism: how
long the gradient of the first layer alone takes, by the depth of the network. Generalisation:
training a hard step on the 0-1 loss. "No gradient issue": signal and noise in every layer
of a deep sigmoid network. Times are processor time, medians of rounds in which all take their turn.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nit_snn import NITLearner, noise_off
from nit_snn.neurons import NoisyActivation

SIGMA = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What Table 1 needs of the command line."""
    add = parser.add_argument
    add("--copies", type=int, nargs="+", default=[1, 2, 4, 16, 64, 256], help="C, in Table 1")
    add("--estimates", type=int, default=60, help="gradients per variance in Table 1")
    add("--table-batch", type=int, default=64, help="images per gradient in Table 1")
    add("--table-steps", type=int, default=30, help="steps of training before the variance")
    add("--depths", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="layers in Table 1")
    add("--step-epochs", type=int, default=30, help="epochs of the hard step on the 0-1 loss")
    add("--deep", type=int, default=10, help="hidden layers of the deep sigmoid network")
    add("--draws", type=int, default=10_000, help="draws behind the truth of the deep network")


def measure(data: Any, args: argparse.Namespace) -> dict[str, Any]:
    """All five claims.

    Args:
        data: `paper_figures.Images`.
    """
    return {
        "batch_size": args.table_batch,
        "sigma": SIGMA,
        "estimates": args.estimates,
        "variance": variance(data, args),
        "cost": cost(data, args),
        "depth": depth(args),
        "hard_step": hard_step(data, args),
        "deep_sigmoid": deep_sigmoid(data, args),
    }


# --- networks and gradients -------------------------------------------------------------------


def noisy_mlp(
    sizes: list[int], activation: Callable[[], Callable[[Tensor], Tensor]]
) -> nn.Sequential:
    """Linear layers with noise in every activation, and on the logits."""
    net = nn.Sequential()
    for i, pair in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        net.append(nn.Linear(*pair))
        net.append(NoisyActivation(nn.Identity() if last else activation(), SIGMA))
    return net


def flat(net: nn.Module) -> Tensor:
    """The gradient in one vector; a parameter without one counts as zero."""
    grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters())
    return torch.cat([g.flatten() for g in grads]).clone()


def by_autograd(net: nn.Module, x: Tensor, y: Tensor, copies: int = 1) -> None:
    """BP, through one draw of the noise in each copy."""
    F.cross_entropy(net(x.repeat(copies, 1)), y.repeat(copies)).backward()


def lr_learner(
    net: nn.Module, copies: int, args: argparse.Namespace, baseline: str = "leave-one-out"
) -> NITLearner:
    """The likelihood ratio alone, as in the paper."""
    return NITLearner(net, replicas=copies, credit="none", baseline=baseline, seed=args.seed)


def by_lr(net: nn.Module, learner: NITLearner, x: Tensor, y: Tensor) -> None:
    with learner.record():
        xr, yr = learner.expand(x, y)
        losses = F.cross_entropy(net(xr), yr, reduction="none")
    learner.backward(losses)


def medians(steps: dict[Any, Callable[[], None]], rounds: int) -> dict[Any, float]:
    """Milliseconds of each; every round runs all of them, each twice, and times the second."""
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    return {name: 1000 * sorted(taken)[rounds // 2] for name, taken in seconds.items()}


# --- variance and cost ------------------------------------------------------------------------


def trained(data: Any, args: argparse.Namespace) -> nn.Sequential:
    """A 784-50-10 tanh network, early in its training."""
    torch.manual_seed(args.seed)
    net = noisy_mlp([784, args.width, 10], nn.Tanh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for _ in range(args.table_steps):
        rows = torch.randint(len(data.y), (args.batch_size,))
        optimizer.zero_grad()
        by_autograd(net, data.x[rows], data.y[rows])
        optimizer.step()
    return net


def variance(data: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Of gradients from fresh batches of equal size, and their cosine to the exact gradient.

    The exact gradient is that of the whole training set: of the plain network for BP without
    noise; else of the expected loss, by autograd through 100 draws of the noise.
    """
    net = trained(data, args)
    net.zero_grad()
    for _ in range(100):
        by_autograd(net, data.x, data.y)
    smoothed = flat(net) / 100
    net.zero_grad()
    with noise_off(net):
        by_autograd(net, data.x, data.y)
    plain = flat(net)

    def row(estimator: str, copies: int, gradient: Callable[..., None], truth: Tensor) -> Any:
        torch.manual_seed(args.seed + 1)  # the same batches for all
        found = []
        for _ in range(args.estimates):
            rows = torch.randint(len(data.y), (args.table_batch,))
            state = torch.get_rng_state()  # ... whatever noise an estimator draws
            net.zero_grad()
            gradient(data.x[rows], data.y[rows])
            torch.set_rng_state(state)
            found.append(flat(net))
        stacked = torch.stack(found)
        return {
            "estimator": estimator,
            "copies": copies,
            "variance_per_coordinate": stacked.var(0).mean().item(),
            "cosine": F.cosine_similarity(stacked, truth, dim=1).mean().item(),
        }

    def without_noise(x: Tensor, y: Tensor) -> None:
        with noise_off(net):
            by_autograd(net, x, y)

    rows = [row("BP", 1, without_noise, plain)]
    for copies in tqdm(args.copies, desc="Table 1, variance"):
        rows.append(
            row(
                "BP through the noise",
                copies,
                lambda x, y, c=copies: by_autograd(net, x, y, c),
                smoothed,
            )
        )
        for baseline in ("none", "leave-one-out")[: 1 if copies == 1 else 2]:
            learner = lr_learner(net, copies, args, baseline)
            rows.append(
                row(
                    f"LR, baseline {baseline}",
                    copies,
                    lambda x, y, held=learner: by_lr(net, held, x, y),
                    smoothed,
                )
            )
            learner.close()
    return rows


def cost(data: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of one gradient of a 784-50-10 network, and the ratio to BP's."""
    x, y = data.x[: args.table_batch], data.y[: args.table_batch]
    plain = nn.Sequential(nn.Linear(784, args.width), nn.Tanh(), nn.Linear(args.width, 10))
    steps: dict[Any, Callable[[], None]] = {("BP", 1): lambda: by_autograd(plain, x, y)}
    for copies in args.copies:
        net = noisy_mlp([784, args.width, 10], nn.Tanh)
        baseline = "none" if copies == 1 else "leave-one-out"
        learner = lr_learner(net, copies, args, baseline)
        steps["LR", copies] = lambda n=net, held=learner: by_lr(n, held, x, y)
        steps["BP on as many rows", copies] = lambda c=copies: by_autograd(plain, x, y, c)
    taken = medians(steps, rounds=max(1, args.estimates // 3))
    return [
        {"estimator": name, "copies": c, "milliseconds": ms, "times_bp": ms / taken["BP", 1]}
        for (name, c), ms in taken.items()
    ]


def depth(args: argparse.Namespace) -> list[dict[str, Any]]:
    """How long the backward pass takes for the first layer alone, by the number of layers.

    All other layers are frozen, so BP computes only what it needs to get there. Both have 1024
    rows. The gradient must be the one that the layer gets when all of them learn.
    """
    rows = []
    for layers in tqdm(args.depths, desc="Table 1, depth"):
        torch.manual_seed(args.seed)
        net = noisy_mlp([64] * layers + [10], nn.Tanh)
        x, y = torch.randn(64, 64), torch.randint(10, (64,))
        learner = lr_learner(net, 16, args)
        by_lr(net, learner, x, y)
        together = net[0].weight.grad.clone()
        net.zero_grad()
        for layer in list(net)[1:]:
            layer.requires_grad_(False)
        learner.passes = 0  # the same noise again
        by_lr(net, learner, x, y)
        alone = net[0].weight.grad.clone()
        plain = nn.Sequential(*(m.activation if isinstance(m, NoisyActivation) else m for m in net))
        taken: dict[str, list[float]] = {"lr": [], "bp": [], "lr_forward": [], "bp_forward": []}
        for _ in range(args.estimates):
            started = time.process_time()
            with learner.record():
                xr, yr = learner.expand(x, y)
                losses = F.cross_entropy(net(xr), yr, reduction="none")
            recorded = time.process_time()
            learner.backward(losses)
            done = time.process_time()
            taken["lr_forward"].append(recorded - started)
            taken["lr"].append(done - recorded)
            started = time.process_time()
            loss = F.cross_entropy(plain(xr), yr)
            reached = time.process_time()
            loss.backward()
            done = time.process_time()
            taken["bp_forward"].append(reached - started)
            taken["bp"].append(done - reached)
        milliseconds = {k: 1000 * sorted(v)[len(v) // 2] for k, v in taken.items()}
        same = torch.equal(together, alone)
        rows.append({"layers": layers, "same_gradient_alone": same, **milliseconds})
    return rows


# --- any activation, any loss -----------------------------------------------------------------


def step_function(v: Tensor) -> Tensor:
    return (v > 0).to(v.dtype)


def hard_step(data: Any, args: argparse.Namespace) -> dict[str, Any]:
    """A hidden layer of hard steps, learned by LR from the 0-1 loss; and what BP makes of it."""
    torch.manual_seed(args.seed)
    net = noisy_mlp([784, args.width, 10], lambda: step_function)
    by_autograd(net, data.x[:100], data.y[:100])
    first = net[0].weight.grad
    wrong = (net(data.x[:100]).argmax(1) != data.y[:100]).float()
    found: dict[str, Any] = {
        "bp_gradient_of_the_first_layer": 0.0 if first is None else first.norm().item(),
        "bp_can_differentiate_the_0_1_loss": wrong.requires_grad,
        "replicas": 32,
        "history": [],
    }
    learner = lr_learner(net, found["replicas"], args)
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)
    for epoch in tqdm(range(args.step_epochs), desc="Table 1, hard step on the 0-1 loss"):
        total = 0.0
        for rows in torch.randperm(len(data.y)).split(args.batch_size):
            optimizer.zero_grad()
            with learner.record():
                xr, yr = learner.expand(data.x[rows], data.y[rows])
                losses = (net(xr).argmax(1) != yr).float()
            total += learner.backward(losses).item() * len(rows)
            optimizer.step()
        with torch.no_grad(), noise_off(net):
            right = (net(data.test_x).argmax(1) == data.test_y).float().mean().item()
        found["history"].append(
            {"epoch": epoch + 1, "train_error": 100 * total / len(data.y), "test": 100 * right}
        )
    return found


# --- deep networks ----------------------------------------------------------------------------


def deep_sigmoid(data: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Signal and noise of the weights' gradient in every layer of a deep sigmoid network.

    `signal` is the norm of the exact gradient of the expected loss on one batch, by autograd
    through `draws` draws of the noise per image; `lr_norm` that of one LR estimate, root mean
    square; `lr_noise` its standard deviation. `bp_norm` is the plain network's.
    """
    torch.manual_seed(args.seed)
    net = noisy_mlp([784, *[args.width] * args.deep, 10], nn.Sigmoid)
    layers = [module for module in net if isinstance(module, nn.Linear)]
    x, y = data.x[: args.table_batch], data.y[: args.table_batch]

    def gradients() -> list[Tensor]:
        found = [layer.weight.grad.clone() for layer in layers]
        net.zero_grad()
        return found

    with noise_off(net):
        by_autograd(net, x, y)
    plain = gradients()
    # Two independent halves: their product has no bias from the noise that is left in either.
    halves = []
    copies = 100
    for _ in range(2):
        half = [torch.zeros_like(g) for g in plain]
        for _ in tqdm(range(max(1, args.draws // 2 // copies)), desc="Table 1, deep truth"):
            by_autograd(net, x, y, copies)
        for total, g in zip(half, gradients(), strict=True):
            total += g / max(1, args.draws // 2 // copies)
        halves.append(half)
    learner = lr_learner(net, 16, args)
    estimates: list[list[Tensor]] = [[] for _ in layers]
    for _ in range(5 * args.estimates):
        by_lr(net, learner, x, y)
        for held, g in zip(estimates, gradients(), strict=True):
            held.append(g)
    rows = []
    for i, held in enumerate(estimates):
        stacked = torch.stack(held).flatten(1)
        truth = (halves[0][i] + halves[1][i]).flatten() / 2
        signal = (halves[0][i] * halves[1][i]).sum().clamp(min=0).sqrt()
        noise = stacked.var(0).sum().sqrt()
        # The estimate's share of the truth, which is 1 if it is unbiased.
        shares = stacked @ truth / truth.square().sum()
        rows.append(
            {
                "layer": i + 1,
                "bp_norm": plain[i].norm().item(),
                "signal": signal.item(),
                "lr_norm": stacked.square().sum(1).mean().sqrt().item(),
                "lr_noise": noise.item(),
                "share_of_truth": shares.mean().item(),
                "share_standard_error": (shares.std() / len(shares) ** 0.5).item(),
            }
        )
    return {"hidden_layers": args.deep, "copies": learner.replicas, "rows": rows}


# --- the picture ------------------------------------------------------------------------------


def draw(found: dict[str, Any], path: Path) -> None:
    """A panel for each claim, two for the variance."""
    figure, axes = plt.subplots(3, 2, figsize=(8.6, 9.6), layout="constrained")
    (first, second), (third, fourth), (fifth, sixth) = axes
    for panel, key, label in (
        (first, "variance_per_coordinate", "variance per coordinate"),
        (second, "cosine", "cosine to the exact gradient"),
    ):
        for name, colour in (
            ("LR, baseline none", "tab:orange"),
            ("LR, baseline leave-one-out", "tab:red"),
            ("BP through the noise", "tab:blue"),
        ):
            rows = [row for row in found["variance"] if row["estimator"] == name]
            panel.plot(
                [r["copies"] for r in rows], [r[key] for r in rows], "o-", color=colour, label=name
            )
            bp = found["variance"][0][key]
        panel.axhline(bp, color="0.3", linestyle="--", linewidth=1, label="BP without noise")
        panel.set_ylabel(label)
    first.set(yscale="log", title="Variance: high, and falling with C")
    first.legend(frameon=False, fontsize=8)
    second.set(title="The same, as a direction", ylim=(0, 1))
    for name, colour in (("LR", "tab:red"), ("BP on as many rows", "tab:blue")):
        rows = [row for row in found["cost"] if row["estimator"] == name]
        copies, times = [r["copies"] for r in rows], [r["times_bp"] for r in rows]
        third.plot(copies, times, "o-", color=colour, label=name)
    third.set(yscale="log", ylabel="time of a step / BP's on one copy")
    third.set_title("Cost of C copies")
    third.legend(frameon=False, fontsize=8)
    for panel in (first, second, third):
        copies = sorted({row["copies"] for row in found["cost"]})
        panel.set(xscale="log", xlabel="copies C")
        panel.set_xticks(copies, [str(c) for c in copies])
        panel.minorticks_off()
    layers = [row["layers"] for row in found["depth"]]
    fourth.plot(layers, [r["bp"] for r in found["depth"]], "o-", color="tab:blue", label="BP")
    fourth.plot(layers, [r["lr"] for r in found["depth"]], "o-", color="tab:red", label="LR")
    fourth.set(xlabel="layers", ylabel="ms of backward, for the first layer", ylim=(0, None))
    fourth.set_title("Parallelism: LR needs no layer but its own")
    fourth.legend(frameon=False, fontsize=8)
    history = found["hard_step"]["history"]
    epochs = [h["epoch"] for h in history]
    fifth.plot(epochs, [h["test"] for h in history], color="tab:red", label="LR, noise off")
    chance = {"color": "tab:blue", "linestyle": ":", "label": "BP: no gradient, stays at chance"}
    fifth.axhline(10, **chance)
    fifth.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100))
    fifth.set_title("Generality: a hard step and the 0-1 loss")
    fifth.legend(frameon=False, fontsize=8, loc="center right")
    deep = found["deep_sigmoid"]["rows"]
    copies = found["deep_sigmoid"]["copies"]
    for key, label, style, colour in (
        ("lr_norm", f"one LR estimate, C = {copies}", "o-", "tab:red"),
        ("bp_norm", "BP without noise", "o--", "0.3"),
        ("signal", "exact, of the expected loss", "o-", "tab:blue"),
    ):
        norms = [r[key] for r in deep]
        sixth.plot([r["layer"] for r in deep], norms, style, color=colour, label=label)
    sixth.set(yscale="log", xlabel="layer", ylabel="norm of the weights' gradient")
    sixth.set_title("Vanishing: the noise hides it")
    sixth.legend(frameon=False, fontsize=8, loc="lower right")
    for panel in axes.flat:
        panel.grid(alpha=0.25)
    figure.savefig(path, dpi=150)
    plt.close(figure)
