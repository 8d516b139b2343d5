"""How many Python functions of the toolkit run for one neuron layer and time step.

    python benchmarks/calls.py

784-50-10 with two noisy layers of snnTorch's Leaky, 128 steps, a batch of 4: record, forward and
backward of one batch, after some that settle what "auto" chooses. Counted are the calls of the
functions and generators that this repository defines, over layers and steps, and all Python calls
besides; snnTorch's own step, learned by backpropagation through time, stands beside them. A count
is the same on any machine, but not in any Python: 3.12 has no calls for comprehensions. Writes
calls.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nit_snn
from nit_snn import NITLearner, swap_neurons

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import training

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "likelihood ratio, 4 replicas": {"credit": "none", "replicas": 4},
}
LAYERS, ROWS, SETTLED = 2, 4, 6
#: Where the toolkit's own code lies; `neurons/` is apart in a checkout.
OURS = tuple({str(Path(p).parent) for p in (nit_snn.__file__, nit_snn.neurons.__file__)})


class TwoLayers(nn.Module):
    """Step by step, as snnTorch's tutorials do; the spikes of the last layer are counted."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 50), nn.Linear(50, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        one, two, counted = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spikes, one = self.lif1(self.fc1(x), one)
            spikes, two = self.lif2(self.fc2(spikes), two)
            counted.append(spikes)
        return torch.stack(counted).sum(0)


def counted(step: Callable[[], None]) -> dict[str, int]:
    """The Python calls of one step: of the toolkit, and all."""
    found = {"ours": 0, "all": 0}

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found["all"] += 1
            found["ours"] += frame.f_code.co_filename.startswith(OURS)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        step()
    finally:
        sys.setprofile(before)
    return found


def calls(options: dict[str, Any] | None, steps: int) -> dict[str, float]:
    """Calls of a learning step with a learner's options, or of backpropagation through time."""
    torch.manual_seed(0)
    net = TwoLayers(steps)
    x, y = torch.rand(ROWS, 784), torch.randint(10, (ROWS,))
    learner = None if options is None else NITLearner(swap_neurons(net), seed=0, **options)

    def step() -> None:
        net.zero_grad()
        if learner is None:
            F.cross_entropy(net(x), y).backward()
            return
        with learner.record():
            xr, yr = learner.expand(x, y)
            losses = F.cross_entropy(net(xr), yr, reduction="none")
        learner.backward(losses)

    for _ in range(SETTLED):
        step()
    found = counted(step)
    share = LAYERS * steps
    return {"of_a_step": found["all"], "ours_per_layer_and_step": found["ours"] / share}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    rows = {name: calls(options, args.steps) for name, options in METHODS.items()}
    rows["snnTorch, BPTT"] = calls(None, args.steps)
    args.output.mkdir(parents=True, exist_ok=True)
    results = {
        "command": " ".join(["python", *sys.argv]),
        "network": f"784-50-10, T={args.steps}, batch {ROWS}",
        "seed": 0,
        "versions": training.installed("nit-snn", "torch", "snntorch"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}",
        "rows": rows,
    }
    (args.output / "calls.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, row in rows.items():
        ours, whole = row["ours_per_layer_and_step"], row["of_a_step"]
        print(f"{name:30}{whole:8,.0f} calls a step{ours:8.1f} of ours per layer and time step")


if __name__ == "__main__":
    main()
