"""What a learning step costs when it is shared out over processes: work, bytes, time, memory.

Pure functions. docs/scaling.md says where they come from, `scaling.py` checks them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Bytes of a number.
FLOAT = 4


@dataclass(frozen=True)
class Step:
    """A learning step of a dense network that sees the same input at all time steps.

    Attributes:
        widths: Neurons of each layer: the input, noisy spiking layers, a linear readout.
        steps: T.
        samples: B, of all processes together.
        replicas: C of each sample, of all processes together.
        shares: What the processes share out, "replicas" or "samples".
        ranks: R, how many processes there are.

    Raises:
        ValueError: They cannot be shared out evenly.
    """

    widths: Sequence[int]
    steps: int
    samples: int
    replicas: int
    shares: str = "replicas"
    ranks: int = 1

    def __post_init__(self) -> None:
        shared = self.replicas if self.shares == "replicas" else self.samples
        if shared % self.ranks:
            raise ValueError(f"{shared} {self.shares} cannot be shared out over {self.ranks}.")

    @property
    def own_samples(self) -> int:
        """How many samples a process sees."""
        return self.samples // (self.ranks if self.shares == "samples" else 1)

    @property
    def rows(self) -> int:
        """How many rows a process puts through the network: its samples times its replicas."""
        return self.samples * self.replicas // self.ranks

    @property
    def spiking(self) -> int:
        """Neurons of all noisy layers."""
        return sum(self.widths[1:-1])


@dataclass(frozen=True)
class Processor:
    """How long one process takes; all in seconds.

    Attributes:
        fixed: For a step, whatever its size.
        flop: For a floating-point operation of a matrix product.
        neuron_step: For one noisy neuron of one row in one time step: noise, membrane, score.
        parameter: For what is done to the gradient of one parameter.
        cores: How many cores there are for all processes; None if each has a device of its own.
    """

    fixed: float
    flop: float
    neuron_step: float
    parameter: float
    cores: int | None = None


@dataclass(frozen=True)
class Fabric:
    """What connects the processes.

    Attributes:
        hop_inside: Seconds from one process to the next within a node.
        hop_between: From one node to the next.
        inside: Bytes per second that one process can send within its node.
        between: Bytes per second that a whole node can send.
        per_node: Processes of a node.
        base: Seconds for any collective.
        trees: Whether a message may go along a tree where that is faster than a ring.
        cores: How many cores move the data, if the processes do it themselves.
    """

    hop_inside: float
    inside: float
    hop_between: float = 0.0
    between: float = math.inf
    per_node: int = 2**30
    base: float = 0.0
    trees: bool = False
    cores: int | None = None


def crowding(ranks: int, cores: int | None) -> float:
    """How many processes have to share a core."""
    return 1.0 if cores is None else max(1.0, ranks / cores)


def parameters(widths: Sequence[int]) -> int:
    """Weights and biases.

    Example:
        >>> parameters([784, 50, 10])
        39760
    """
    return sum((a + 1) * b for a, b in pairwise(widths))


def messages(step: Step) -> list[int]:
    """Bytes of each message that a process sums with the others in one step.

    Whether its losses are usable; with shared replicas the sum of each sample's losses, for the
    leave-one-out baseline; the gradient, and for each parameter tensor whether there is one; and
    the mean loss, which is sent before the gradient. One process alone says nothing of the first
    two.

    Example:
        >>> messages(Step([784, 50, 10], 8, samples=64, replicas=16, ranks=2))
        [4, 256, 159056, 4]
    """
    numbers = [parameters(step.widths) + 2 * (len(step.widths) - 1), 1]
    if step.ranks > 1 and step.shares == "replicas":
        numbers.insert(0, step.own_samples)
    if step.ranks > 1:
        numbers.insert(0, 1)
    return [FLOAT * n for n in numbers]


def first_messages(widths: Sequence[int]) -> list[int]:
    """Bytes of each message that the first process sends to all when the learner is attached."""
    tensors = [n for a, b in pairwise(widths) for n in (a * b, b)]
    return [8, *(FLOAT * n for n in tensors)]  # the seed is an int64


def wire_bytes(message: int, ranks: int) -> float:
    """What a process sends of a message that all of them sum: `2 (R - 1) / R` of it.

    That is a ring's share, and the least possible (Patarasuk and Yuan 2009).
    """
    return 2 * (ranks - 1) / ranks * message


def flops(step: Step) -> float:
    """Floating-point operations of a process's matrix products.

    `2 a b` for the current and `2 a b` for the weight's gradient, for each row and time step; in
    the first layer for each sample, as its input is the same at all steps and in all replicas.
    """
    first, *others = (4 * a * b for a, b in pairwise(step.widths))
    return first * step.own_samples + sum(others) * step.steps * step.rows


def neuron_steps(step: Step) -> int:
    """How often a process updates a noisy neuron."""
    return step.spiking * step.steps * step.rows


def work(step: Step) -> list[float]:
    """How much there is of what `Processor` has a time for, in its order."""
    return [1, flops(step), neuron_steps(step), parameters(step.widths)]


def compute_seconds(step: Step, processor: Processor) -> float:
    """All that a process does by itself, on a core of its own."""
    times = (processor.fixed, processor.flop, processor.neuron_step, processor.parameter)
    return sum(amount * time for amount, time in zip(work(step), times, strict=True))


def all_reduce_seconds(message: float, ranks: int, fabric: Fabric) -> float:
    """The sum of a message over all processes.

    A ring has `2 (R - 1)` hops, `2 (nodes - 1)` of them between nodes, and sends what
    `wire_bytes` says; two binary trees over the nodes have `2 log2(nodes)` and send the message
    twice (the model that NCCL chooses by, src/graph/tuning.cc).

    Args:
        message: Bytes.
        ranks: R.
        fabric: What connects them.
    """
    if ranks == 1:
        return 0.0
    nodes = -(-ranks // fabric.per_node)
    bandwidth = fabric.inside if nodes == 1 else min(fabric.inside, fabric.between)
    hops = 2 * ((ranks - nodes) * fabric.hop_inside + (nodes - 1) * fabric.hop_between)
    found = hops + 2 * (ranks - 1) / ranks * message / bandwidth
    if fabric.trees:
        local, levels = min(ranks, fabric.per_node) - 1, math.ceil(math.log2(nodes))
        hops = 2 * (local * fabric.hop_inside + levels * fabric.hop_between)
        found = min(found, hops + 2 * message / bandwidth)
    return (fabric.base + found) * crowding(ranks, fabric.cores)


def communication_seconds(step: Step, fabric: Fabric) -> float:
    """All messages of a step, one after the other."""
    return sum(all_reduce_seconds(m, step.ranks, fabric) for m in messages(step))


def step_seconds(step: Step, processor: Processor, fabric: Fabric) -> float:
    """A learning step: nothing of it overlaps, and processes may have to share cores."""
    compute = compute_seconds(step, processor) * crowding(step.ranks, processor.cores)
    return compute + communication_seconds(step, fabric)


def balanced_row_steps(ranks: int, processor: Processor, fabric: Fabric) -> float:
    """Rows of a process times T for which a wide layer computes as long as its gradient travels.

    A weight is `4 T rows` operations and one number to send, whatever the layer's width.
    """
    nodes = -(-ranks // fabric.per_node)
    bandwidth = fabric.inside if nodes == 1 else min(fabric.inside, fabric.between)
    return wire_bytes(FLOAT, ranks) / bandwidth / (4 * processor.flop)


def break_even_widths(
    row_steps: float, ranks: int, processor: Processor, fabric: Fabric, collectives: int = 4
) -> tuple[float, float] | None:
    """Between which widths a layer of n neurons on n inputs computes longer than it communicates.

    Where `row_steps (4 n^2 flop + n neuron_step) = latency + wire_bytes(4 n^2) / bandwidth`. What
    takes the same time on any number of processes is left out of it.

    Args:
        row_steps: Rows of a process times T.
        ranks: R.
        processor: How fast a process is.
        fabric: What connects them.
        collectives: How many latencies there are in a step.

    Returns:
        From, to (infinite above `balanced_row_steps`); None if it communicates longer at any width.
    """
    surplus = row_steps - balanced_row_steps(ranks, processor, fabric)
    square, linear = 4 * processor.flop * surplus, row_steps * processor.neuron_step
    latency = collectives * all_reduce_seconds(0, ranks, fabric)
    inside = linear**2 + 4 * square * latency
    if inside < 0:
        return None
    low = 2 * latency / (linear + math.sqrt(inside))
    high = math.inf if surplus >= 0 else (linear + math.sqrt(inside)) / (-2 * square)
    return low, high


def kept_bytes(step: Step, scores: bool) -> dict[str, int]:
    """What a process keeps of the rows from the forward pass to the backward pass.

    Args:
        step: The step.
        scores: Whether the noise is kept, instead of being drawn again.

    Returns:
        The input, once per row as `expand` makes it; spikes as bits, those before the readout
        too; and the noise, of the first layer summed over time.
    """
    first, *others = step.widths[1:-1]
    noise = first + step.steps * sum(others) if scores else 0
    return {
        "input": FLOAT * step.rows * step.widths[0],
        "bits": -(-step.steps // 8) * step.rows * step.spiking,
        "noise": FLOAT * step.rows * noise,
    }


def bptt_kept_bytes(step: Step) -> int:
    """What backpropagation through time keeps at least, for the samples of a process.

    Every membrane, for its surrogate's derivative, and every spike, for the next weight's gradient.
    """
    return 2 * FLOAT * step.steps * step.own_samples * step.spiking


def bptt_flops(step: Step) -> float:
    """The matrix products of backpropagation through time: a third one for the input's gradient.

    The first layer has none, and its current is computed once per sample here, too.
    """
    first, *others = (a * b for a, b in pairwise(step.widths))
    return step.own_samples * (4 * first + 6 * step.steps * sum(others))


def gradient_bytes(widths: Sequence[int]) -> int:
    """What a process holds besides: parameters, gradients, the message, the sums taken from it."""
    return 4 * FLOAT * parameters(widths)
