"""The surrogate derivatives of a layer's spikes, made while the pass runs.

    nu_t = sigma eps_t + carry nu_{t-1},    b_t = (threshold - (u_t - nu_t)) / w_t

A surrogate is the density of nu, all of its own noise that a membrane still carries, at the
threshold, but of a width that reaches most membranes: `w_t = max(d_t, height / 2)` with the
deviation d_t of nu_t and the height of the threshold above the rest. A sample of the past noise
tells of one membrane, and the loss is an average over all of them; a membrane that is further than
the noise from its threshold would never learn to cross it.

Membranes and noise are kept for a few steps, then become a `Block`, and are let go. A layer that
fits into one block keeps full precision, a longer pass half of it: the estimate that is made of it
is biased anyway, by far more than that. Without learned noise levels a step takes two bytes per
neuron.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..dynamics.executor import Executor
from ..dynamics.firing import Firing, without_tails
from ..dynamics.lif import MembraneRule, number, spikes_of
from ..dynamics.needs import Needs
from ..neurons.base import NoisyNeuron
from .block import Block, Room
from .memory_budget import MemoryBudget
from .segment import Segment, drawn_again, membranes_of

#: Of a surrogate, as a share of the way from the rest to the threshold.
LEAST_WIDTH = 0.5
#: How many numbers become a block together: as many as a processor's cache holds.
_AT_ONCE = 2**18
#: How many times as many where every operator costs a launch.
_ON_A_GPU = 16

#: What a step leaves of its noise to the next: nu and its variance, (N, *) and (N or 1, *).
Rest = tuple[Tensor, Tensor]
#: Where a step starts from: the place in the block of the step that left its membrane, or what that
#: left of its noise, or neither; and 1 where that was not reset since, else 0, or None for 1.
Before = tuple[int | None, Rest | None, Tensor | None]


class Place(Protocol):
    """A membrane that a segment left behind."""

    segment: Segment


@dataclass(eq=False)
class Surrogates:
    """Those of one layer.

    Attributes:
        name: The layer's qualified name.
        neuron: Its neuron.
        executor: Who takes its steps.
        needs: What the pass has to keep.
        budget: Bytes that may be kept.
        counts: How often each neuron has fired, (N, *), by the shape of a step; if asked for.
        room: Where blocks are kept.
    """

    name: str
    neuron: NoisyNeuron
    executor: Executor
    needs: Needs
    budget: MemoryBudget
    counts: dict[torch.Size, Tensor] = field(default_factory=dict)
    room: Room = field(default_factory=Room)
    _open: dict[torch.Size, list[Segment]] = field(default_factory=dict)
    _rests: dict[Segment, Rest] = field(default_factory=dict)
    _size: int = 0

    def __post_init__(self) -> None:
        on_cpu = self.neuron.sigma.device.type == "cpu"
        self._most = _AT_ONCE * (1 if on_cpu else _ON_A_GPU)

    def add(self, segment: Segment, places: Iterable[Place]) -> None:
        """Takes in what the neuron has just done.

        Args:
            segment: With its membrane and, if it was kept, its noise.
            places: The membranes that a later step may still start from.
        """
        shape, most = segment.shape, self._most
        self._size += shape.numel() * len(segment.calls)
        if segment.several:
            left = [place.segment for place in places]
            self._close(shape, left, halved=False)
            self._sequence(segment, halved=self._size > most)
            self._tidy([segment], left)
            return
        pending = self._open.setdefault(shape, [])
        pending.append(segment)
        if shape.numel() * len(pending) >= most:
            self._close(shape, [place.segment for place in places], halved=True)

    def finish(self) -> None:
        """Makes blocks of all that is left."""
        for shape in list(self._open):
            self._close(shape, (), halved=False)

    def _close(self, shape: torch.Size, left: Iterable[Segment], halved: bool) -> None:
        """Makes a block of the single steps of one shape."""
        pending = self._open.pop(shape, None)
        if pending is None:
            return
        places = {segment: i for i, segment in enumerate(pending)}
        before = [
            (None, None, None)
            if s.origin is None
            else (places.get(s.origin), self._rests.get(s.origin), s.kept)
            for s in pending
        ]
        membrane = torch.stack(membranes_of(pending, self.name))
        noise = torch.stack(
            [s.noise if s.noise is not None else drawn_again(s, self.executor) for s in pending]
        )
        wanted = {places[s]: s for s in left if s in places}
        block, rests = self._block(pending[0], membrane, noise, before, wanted, halved)
        for i, segment in enumerate(pending):
            segment.block, segment.first = block, i
        self._rests.update({wanted[i]: rest for i, rest in rests.items()})
        self._tidy(pending, left)

    def _sequence(self, segment: Segment, halved: bool) -> None:
        """A segment of several steps, in parts that a cache holds."""
        (membranes,), noises = membranes_of([segment], self.name), segment.noise
        noises = drawn_again(segment, self.executor) if noises is None else noises
        rest = None if segment.origin is None else self._rests.get(segment.origin)
        length = max(1, self._most // max(1, segment.shape.numel()))
        blocks = []
        for start in range(0, len(membranes), length):
            membrane, noise = (x[start : start + length] for x in (membranes, noises))
            last = len(membrane) - 1
            kept = segment.kept if start == 0 else None
            before = [(None, rest, kept), *((i, None, None) for i in range(last))]
            block, rests = self._block(segment, membrane, noise, before, (last,), halved)
            rest = rests.get(last)
            if block is not None:
                blocks.append(block)
        segment.block, segment.first = Block.joined(blocks), 0
        if rest is not None:
            self._rests[segment] = rest

    def _tidy(self, segments: Iterable[Segment], left: Iterable[Segment]) -> None:
        """Lets go of what was only there to make a block."""
        wanted = self.needs.keeps_noise
        for segment in segments:
            if not self.needs.firing:
                segment.membrane = None
            kept = wanted and segment.noise is not None
            if not (kept and self.budget.take(segment.noise.nbytes)):  # type: ignore[union-attr]
                segment.noise = None
        alive = {*segments, *left}
        self._rests = {s: rest for s, rest in self._rests.items() if s in alive}

    def _block(
        self,
        segment: Segment,
        membrane: Tensor,
        noise: Tensor,
        before: Sequence[Before],
        wanted: Iterable[int],
        halved: bool,
    ) -> tuple[Block | None, dict[int, Rest]]:
        """A block, and what some of its steps leave of their noise to the next.

        Args:
            segment: One of those that it is made of.
            membrane: u, (T, N, *).
            noise: eps, likewise.
            before: Of each step, which one left the membrane that it starts from.
            wanted: Which steps a later one may start from.
            halved: Whether it is kept in half precision.
        """
        rule, sigma = segment.rule, number(self.neuron.sigma.detach().to(membrane.dtype))
        noise = noise.to(membrane.dtype)
        spike = spikes_of(membrane, rule.threshold, rule.or_equal)
        if self.needs.outputs:
            held, own = self.counts.get(segment.shape), spike.sum(0)
            self.counts[segment.shape] = own if held is None else held + own
        if not self.needs.surrogate:
            return None, {}
        carried, spread, rests = own_noise(rule, spike, noise * sigma, sigma, before, wanted)
        level = (number(rule.threshold) - membrane).add_(carried)
        least = _tensor(number(rule.height), membrane) * LEAST_WIDTH
        width = torch.maximum(_tensor(spread, membrane), least)
        block = Block.of(without_tails(Firing(spike, level / width).density).div_(width), spike)
        if self.neuron.sigma.requires_grad:
            level /= spread
            block.slope = without_tails(Firing(spike, level).density).mul_(level)
            block.carried = carried.div_(sigma)
        if halved:
            block.halve(torch.maximum(_tensor(sigma, membrane), least), self.room)
        return block, rests


def own_noise(
    rule: MembraneRule,
    spike: Tensor,
    carried: Tensor,
    sigma: float | Tensor,
    before: Sequence[Before],
    wanted: Iterable[int],
) -> tuple[Tensor, Tensor | float, dict[int, Rest]]:
    """What each membrane carries of its own noise, its deviation, and what it leaves to the next.

    From the last spike on where that wipes the membrane.

    Args:
        rule: What the neuron does.
        spike: Where it fired, (T, N, *).
        carried: The fresh noise, sigma eps; written to.
        sigma: Its deviation.
        before: Of each step, which one left the membrane that it starts from.
        wanted: The steps whose rest is asked for.
    """
    if not rule.carries:
        return carried, sigma, {}
    # Without a reset to a constant the variance is the same in all rows.
    resets = [own for _, rest, own in before if own is not None or (rest and len(rest[1]) > 1)]
    apart = rule.wiped or bool(resets)
    variance = torch.zeros_like(carried if apart else carried[:, :1]) + sigma**2
    carry = number(rule.carry)
    kept = (1 - spike) * carry if rule.wiped else torch.zeros_like(variance) + carry
    each, spread, factors = carried.unbind(0), variance.unbind(0), kept.unbind(0)
    linked = False
    for step, (place, rest, own) in enumerate(before):
        if place is not None:
            rest = each[place] * factors[place], spread[place] * factors[place] ** 2
        if rest is not None and own is not None:
            rest = rest[0] * own, rest[1] * own**2
        if rest is not None:
            each[step].add_(rest[0])
            spread[step].add_(rest[1])
            linked = True
    rests = {i: (each[i] * factors[i], spread[i] * factors[i] ** 2) for i in wanted}
    return carried, variance.sqrt_() if linked else sigma, rests


def _tensor(value: float | Tensor, like: Tensor) -> Tensor:
    """In the type of `like`; a number is not copied from the CPU."""
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)
