"""A spiking policy balances a pole: an episode's return as the loss, by NIT and by REINFORCE.

    python examples/cartpole.py          # needs: pip install "nit-snn[gymnasium]"

The policy is 4-64-2 of snnTorch's Leaky neurons that remember from step to step of the environment.
Gymnasium's CartPole-v1 ends an episode when the pole falls, or after 500 steps.

    NIT         noisy neurons and nothing else random: the action with the larger output is taken.
                No derivative is asked for, neither of the environment nor of the policy.
    REINFORCE   the same policy without noise; actions are sampled from a softmax of the outputs,
                whose score goes back through time by snnTorch's surrogate gradients

Both play several environments at once. Where an episode ends, `reset_rows` starts its neurons
anew, and the next episode begins in the same pass. Each step is charged with the return to go of
its own episode. Solved: a mean return of 195 or more over 100 episodes in a row, with the policy
as it is trained, sampling or noise included. Writes results.json to --output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import snntorch as snn
import torch
from torch import Tensor, nn
from training import installed, processor

from nit_snn import NITLearner, swap_neurons
from nit_snn.errors import CarriedStateWarning

SOLVED, EPISODES = 195.0, 100
#: What observations are divided by, so that they are about 1.
UNITS = torch.tensor([1.0, 1.0, 0.1, 1.0])


class Policy(nn.Module):
    """One step: observations (N, 4) to the membranes of both outputs, (N, 2).

    The outputs keep nothing and are never reset: what they hold is the value of their action.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, hidden), nn.Linear(hidden, 2)
        self.lif1 = snn.Leaky(beta=0.5, init_hidden=True)
        self.lif2 = snn.Leaky(beta=0.0, init_hidden=True, output=True, reset_mechanism="none")

    def forward(self, observations: Tensor) -> Tensor:
        _, membranes = self.lif2(self.fc2(self.lif1(self.fc1(observations / UNITS))))
        return membranes

    def reset_rows(self, done: Tensor) -> None:
        """Episodes begin where `done` is true, (N,)."""
        kept = (~done).float().unsqueeze(1)
        self.lif1.mem = self.lif1.mem * kept

    def detach(self) -> None:
        """What comes before is no part of the next pass."""
        self.lif1.mem, self.lif2.mem = self.lif1.mem.detach(), self.lif2.mem.detach()


class Poles:
    """Environments that start anew at once where an episode ends, and count its return.

    Args:
        count: N.
        seed: Names their first states.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.envs = gymnasium.make_vec(
            "CartPole-v1",
            num_envs=count,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
        )
        first, _ = self.envs.reset(seed=seed)
        self.observations = torch.from_numpy(first)
        self.returns: list[float] = []
        self.steps = 0
        self._running = np.zeros(count)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """One step with the actions, (N,): rewards, and whether episodes ended, (N,)."""
        found, rewards, fallen, late, _ = self.envs.step(actions.numpy())
        done = fallen | late
        self.observations = torch.from_numpy(found)
        self._running += rewards
        self.returns += self._running[done].tolist()
        self._running[done] = 0
        self.steps += len(rewards)
        return torch.from_numpy(rewards).float(), torch.from_numpy(done)

    @property
    def solved(self) -> bool:
        """Whether the last episodes were long enough."""
        enough = len(self.returns) >= EPISODES
        return enough and float(np.mean(self.returns[-EPISODES:])) >= SOLVED


def returns_to_go(rewards: list[Tensor], done: list[Tensor], discount: float) -> Tensor:
    """What each step still brings within its own episode and the pass, (T, N).

    Args:
        rewards: (N,) of each step.
        done: Whether an episode ended with the step, likewise.
        discount: What is left of a reward one step earlier.
    """
    found, later = [], torch.zeros_like(rewards[0])
    for reward, end in zip(reversed(rewards), reversed(done), strict=True):
        later = reward + discount * later * ~end
        found.append(later)
    return torch.stack(found[::-1])


def nit(policy: Policy, poles: Poles, args: argparse.Namespace, seed: int) -> Any:
    """Learns from noise: gives a function that makes one pass and writes `.grad`."""
    swap_neurons(policy, sigma={"lif1": args.sigma, "lif2": args.output_sigma})
    learner = NITLearner(
        policy,
        credit="none",
        replicas=1,
        baseline="batch-mean",
        per_step_losses=True,
        seed=seed,
    )

    def one_pass() -> None:
        rewards, done = [], []
        with learner.record():
            learner.expand(poles.observations)  # one replica: nothing can be played twice
            for _ in range(args.steps):
                actions = policy(poles.observations).argmax(1)
                reward, end = poles.step(actions)
                learner.reset_rows(end)
                rewards.append(reward)
                done.append(end)
        value = returns_to_go(rewards, done, args.discount)
        # The learner adds up the losses of each step and all later ones, whatever their episode.
        learner.backward(nn.functional.pad(value, (0, 0, 0, 1))[1:] - value)

    return one_pass


def reinforce(policy: Policy, poles: Poles, args: argparse.Namespace, seed: int) -> Any:
    """Samples actions; their score goes back through time by surrogate gradients."""

    def one_pass() -> None:
        rewards, done, chosen = [], [], []
        policy.detach()
        for _ in range(args.steps):
            choice = torch.distributions.Categorical(logits=policy(poles.observations))
            actions = choice.sample()
            chosen.append(choice.log_prob(actions))
            reward, end = poles.step(actions)
            policy.reset_rows(end)
            rewards.append(reward)
            done.append(end)
        value = returns_to_go(rewards, done, args.discount)
        others = (value.sum(1, keepdim=True) - value) / (value.shape[1] - 1)
        (-(value - others) * torch.stack(chosen)).sum(0).mean().backward()

    return one_pass


METHODS = {"NIT": nit, "REINFORCE": reinforce}


def learn(method: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Plays until it is solved, or for too long."""
    torch.manual_seed(seed)
    policy, poles = Policy(args.hidden), Poles(args.environments, seed)
    one_pass = METHODS[method](policy, poles, args, seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.rate)
    started, passes = time.process_time(), 0
    while not poles.solved and len(poles.returns) < args.episodes and passes < args.passes:
        optimizer.zero_grad()
        one_pass()
        optimizer.step()
        passes += 1
        if passes % 20 == 0:
            mean = float(np.mean(poles.returns[-EPISODES:]))
            print(f"{method}: {len(poles.returns)} episodes, return {mean:.1f}", flush=True)
    recent = poles.returns[-EPISODES:]
    return {
        "method": method,
        "seed": seed,
        "solved": poles.solved,
        "episodes": len(poles.returns),
        "environment_steps": poles.steps,
        "passes": passes,
        "mean_return": round(float(np.mean(recent)), 1) if recent else None,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--environments", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64, help="of each environment in a pass")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--sigma", type=float, default=0.25, help="noise of the hidden neurons")
    parser.add_argument("--output-sigma", type=float, default=0.5, help="noise of the outputs")
    parser.add_argument("--rate", type=float, default=5e-3, help="learning rate")
    parser.add_argument("--discount", type=float, default=0.98)
    parser.add_argument("--episodes", type=int, default=5000, help="at most so many")
    parser.add_argument("--passes", type=int, default=2000, help="at most so many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/cartpole"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Episodes go on from pass to pass, and their neurons' membranes with them.
    warnings.filterwarnings("ignore", category=CarriedStateWarning)
    rows = []
    for method in args.methods:
        for seed in args.seeds:
            rows.append(learn(method, args, seed))
            print(rows[-1], flush=True)
    packages = ("nit-snn", "torch", "numpy", "snntorch", "gymnasium")
    results = {
        "command": " ".join(["python", *sys.argv]),
        "options": {k: v for k, v in vars(args).items() if k != "output"},
        "rows": rows,
        "versions": installed(*packages),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {processor()}, 1 thread",
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
