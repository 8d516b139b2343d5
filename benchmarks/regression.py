"""Regression with the membrane of a leaky readout, against backpropagation through time.

    python benchmarks/regression.py

The network is that of snnTorch's first tutorial on regression: 1-128-128-1 with random decays and
thresholds, and a leaky integrator as its output. The integrator has no noise
(`swap_neurons(net, keep=["li_out"])`), so autograd trains it. Both methods take the same number of
steps with Adam. The loss is the mean of the last 20 steps, and once more without noise.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from nit_snn import NITLearner, __version__, noise_off, swap_neurons

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training

METHODS = ("BPTT", "NIT")
TARGETS = ("line", "wave")
LAST = 20


class Regressor(nn.Module):
    """(T, N, 1) to the membranes of the readout, (T, N, 1)."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()

        def lif() -> snn.Leaky:
            return snn.Leaky(beta=torch.rand(hidden), threshold=torch.rand(hidden), learn_beta=True)

        self.fc_in, self.lif_in = nn.Linear(1, hidden), lif()
        self.fc_hidden, self.lif_hidden = nn.Linear(hidden, hidden), lif()
        self.fc_out = nn.Linear(hidden, 1)
        self.li_out = snn.Leaky(beta=torch.rand(1), learn_beta=True, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif_in.reset_mem(), self.lif_hidden.reset_mem()
        mem3, membranes = self.li_out.reset_mem(), []
        for step in x:
            spk1, mem1 = self.lif_in(self.fc_in(step), mem1)
            spk2, mem2 = self.lif_hidden(self.fc_hidden(spk1), mem2)
            _, mem3 = self.li_out(self.fc_out(spk2), mem3)
            membranes.append(mem3)
        return torch.stack(membranes)


def target(kind: str, steps: int) -> Tensor:
    """A line from 0 to 0.8, or two oscillations around 0.5; (T, 1, 1)."""
    t = torch.linspace(0, 1, steps).view(-1, 1, 1)
    return 0.8 * t if kind == "line" else 0.5 + 0.4 * torch.sin(4 * math.pi * t)


def train(kind: str, method: str, seed: int, steps: int, time_steps: int) -> dict[str, Any]:
    """The loss at the end, with the noise and without, and CPU seconds."""
    torch.manual_seed(seed)
    net, y = Regressor(), target(kind, time_steps)
    learner = None
    if method == "NIT":
        learner = NITLearner(swap_neurons(net, keep=["li_out"]), seed=seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses, started = [], time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        if learner is None:
            loss = (net(y) - y).square().mean()
            loss.backward()
        else:
            with learner.record():
                xr, yr = learner.expand(y, y, dim=1)
                each = (net(xr) - yr).square().mean((0, 2))
            loss = learner.backward(each)
        optimizer.step()
        losses.append(loss.item())
    seconds = time.process_time() - started
    with torch.no_grad(), noise_off(net):
        quiet = (net(y) - y).square().mean().item()
    return {
        "target": kind,
        "method": method,
        "seed": seed,
        "loss": sum(losses[-LAST:]) / len(losses[-LAST:]),
        "noise_off": quiet,
        "cpu_seconds": round(seconds, 1),
    }


def ratios(rows: list[dict[str, Any]], which: str) -> dict[str, float]:
    """For each target NIT's loss over BPTT's, both averaged over the seeds.

    Args:
        rows: All runs.
        which: "loss", with NIT's noise, or "noise_off", without.
    """

    def mean(kind: str, method: str) -> float:
        own = [r[which] for r in rows if (r["target"], r["method"]) == (kind, method)]
        return sum(own) / len(own)

    return {kind: round(mean(kind, "NIT") / mean(kind, "BPTT"), 2) for kind in TARGETS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer")
    parser.add_argument("--time-steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/regression.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        train(kind, method, seed, args.steps, args.time_steps)
        for kind in TARGETS
        for seed in args.seeds
        for method in METHODS
    ]
    found = {
        "steps": args.steps,
        "time_steps": args.time_steps,
        "ratio_with_noise": ratios(rows, "loss"),
        "ratio_noise_off": ratios(rows, "noise_off"),
        "rows": rows,
        "versions": {"nit_snn": __version__, "torch": torch.__version__},
        "machine": f"{platform.machine()}, {training.processor()}, 1 thread",
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print({name: found[name] for name in ("ratio_with_noise", "ratio_noise_off")})


if __name__ == "__main__":
    main()
