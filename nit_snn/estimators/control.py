"""Control variates: what the loss's own derivative already explains of its variation.

Where the loss has a derivative `g` in the spikes, most of its variation with those spikes is linear
and known. With `p = P(spike | past)`, each `s - p` is a martingale difference, so
for any coefficient `c` that does not depend on the replica's own noise

    L      ->  L - sum c (s - p)
    dL/dm  ->  dL/dm + c phi(a) / sigma,     a = (threshold - m) / sigma

leaves the expected gradient as it is: the score of every other membrane is uncorrelated with
`s - p`, and with its own it has covariance `phi(a) / sigma`, which is put back. Under NIT-S the
score is the noise's sign, whose covariance with `s - p` is `Q(|a|)`, the smaller of p and 1 - p.
The coefficient is the mean of `g` over the other replicas of the sample.

Control "readout" takes `g` in the spikes that the loss reads itself. Control "network" follows it
further, from layer to layer through the derivative `phi(a) / sigma` of the firing probability,
within each time step: a coefficient for every layer, as in MuProp (Gu et al. 2016), which takes it
from the mean-field network. Control "time" follows it through the membranes and their resets, too,
and also subtracts what the loss owes to the noise that membranes carry on,
`sum c (u - E[u | s])`: backpropagation through time in a smoothed network, here for nothing but the
coefficients. Whatever they leave out, the likelihood ratio puts back: the estimate stays
unbiased, however good or bad a coefficient is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..dynamics.closed_form import add, number
from ..dynamics.conditioned import Conditioned
from ..dynamics.firing import _DENSITY_AT_0, _SQRT_HALF, Firing, bell_
from ..dynamics.pathwise import Link
from .baselines import Sharing
from .control_coefficients import Entry, Settled, settle
from .control_steps import Followed, FollowedSteps

if TYPE_CHECKING:
    from ..neurons.base import Lif, NoisyNeuron

NAMES = ("none", "readout", "network", "time")


@dataclass(frozen=True, eq=False)
class Memory:
    """How the membrane that a call leaves behind varies; each (N, *).

    Attributes:
        decay: du/dm, given the spike.
        wandering: `u - E[u | s]`.
        gap: `E[u | s = 1] - E[u | s = 0]`; None where a spike wipes the membrane out.
    """

    decay: Tensor
    wandering: Tensor
    gap: Tensor | None


@dataclass(eq=False)
class Ledger:
    """What a collecting backward pass needs, and what it finds, call by call; each entry (N, *).

    The graph holds it, so it holds nothing that has a graph: that would never be freed.

    Attributes:
        densities: phi(a) / sigma, the derivative of p in the drift.
        decays: du/dm, the derivative of what a call leaves behind, if time is followed.
        gaps: `E[u | s = 1] - E[u | s = 0]`, likewise, where a spike does not wipe it out.
        gains: Factors of the currents whose graphs the drift does not hold.
        gradients: The loss's derivative in the spikes, once collected.
        membranes: Its derivative in the membranes that calls leave behind, likewise.
        settled: By entry what a backward pass through a sequence has made of them already.
        collecting: Whether a backward pass is to collect them, or to be stopped.
    """

    densities: list[Tensor] = field(default_factory=list)
    decays: list[Tensor | None] = field(default_factory=list)
    gaps: list[Tensor | None] = field(default_factory=list)
    gains: list[list[float | Tensor]] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    membranes: list[Tensor | None] = field(default_factory=list)
    settled: dict[int, Settled] = field(default_factory=dict)
    collecting: bool = False


class Watched:
    """What a layer does in a sequence of steps, taken down step by step; each (T, N, *).

    Attributes:
        residuals: s - p.
        densities: phi(a) / sigma.
        levels: a, if the noise level is learned.
    """

    def __init__(
        self, like: Tensor, sigma: Tensor, threshold: float | Tensor, levels: bool
    ) -> None:
        self.residuals, self.densities = like.new_empty(like.shape), like.new_empty(like.shape)
        self.levels = like.new_empty(like.shape) if levels else None
        level = number(sigma)
        self._rate, self._height = -1 / level, _DENSITY_AT_0 / level
        self._threshold = number(threshold) / level

    def __call__(self, step: int, eps: Tensor, membrane: Tensor, spikes: Tensor) -> None:
        """One step: its noise, membrane before the reset, and spikes, (N, *)."""
        level = add(eps + self._threshold, membrane, self._rate)
        if self.levels is not None:
            self.levels[step] = level
        density, residual = self.densities[step], self.residuals[step]
        bell_(torch.mul(level, level, out=density)).mul_(self._height)
        half = level.mul_(_SQRT_HALF).erf_()  # cheaper than erfc: p = (1 - erf) / 2
        torch.add(spikes, half, alpha=0.5, out=residual).sub_(0.5)

    def lesser(self, spikes: Tensor) -> Tensor:
        """Q(|a|), the smaller of p and 1 - p."""
        probability = spikes - self.residuals
        return torch.minimum(probability, 1 - probability)


@dataclass(frozen=True, eq=False)
class Known:
    """What a layer did in a call, and how likely; each (N, *).

    Attributes:
        residual: s - p.
        level: a, if the noise level is learned; else nobody asks.
        covariance: Of s and the score of the drift.
        density: phi(a) / sigma.
    """

    residual: Tensor
    level: Tensor
    covariance: Tensor
    density: Tensor

    @staticmethod
    def of_firing(firing: Firing, sigma: Tensor, signed: bool) -> Known:
        """Under NIT-S (`signed`) the score is the noise's sign."""
        density = firing.density / sigma
        covariance = firing.lesser if signed else density
        return Known(firing.residual, firing.level, covariance, density)

    @staticmethod
    def of_steps(told: Conditioned) -> Known:
        """Of calls that are conditioned pathwise; likewise (T, N, *)."""
        assert told.residual is not None and told.density is not None
        level = told.density if told.level is None else told.level
        return Known(told.residual, level, told.density, told.density)


@dataclass(eq=False)
class FiringRecord:
    """What one layer's spikes were, and how likely, call by call; each entry (N, *).

    Attributes:
        follows: Whether derivatives are followed through the firing probability.
        signed: Whether the rule is NIT-S.
        replicas: C, if they share no noise.
        residuals: s - p.
        levels: a, so that `a phi(a) / sigma` is the derivative of p in sigma.
        covariances: Of s and the score of the drift.
        wanderings: `u - E[u | s]`, if time is followed and the membrane lives on.
        entries: Which entry holds a call, or a sequence of calls, (N, T, *), by the first of them.
        ledger: What the graph knows.
        followed: Entries of sequences that were remembered by `follow`.
    """

    follows: bool = False
    signed: bool = False
    replicas: int | None = None
    residuals: list[Tensor] = field(default_factory=list)
    levels: list[Tensor] = field(default_factory=list)
    covariances: list[Tensor] = field(default_factory=list)
    wanderings: list[Tensor | None] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    entries: dict[int, int] = field(default_factory=dict)
    followed: set[int] = field(default_factory=set)
    _handles: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _calls: int = 0
    _emitted: int = 0

    def add(
        self,
        known: Known,
        drift: Tensor,
        anchor: Tensor,
        fast: list[tuple[Tensor, float | Tensor]],
        memory: Memory | None = None,
        link: Link | None = None,
    ) -> None:
        """Remembers one call.

        Args:
            known: What the layer did.
            drift: m, (N, *), with its local graph.
            anchor: A scalar that every call leads to, so that a backward pass to it visits all.
            fast: Currents that `drift` has no graph of, with their own to the spikes before, and
                their factors in the drift.
            memory: What is known of the membrane that it leaves, if time is followed.
            link: To an earlier call, if time is followed.
        """
        gains = [gain for _, gain in fast] if self.follows else []
        own = (known.residual, known.level, known.covariance, known.density)
        self._enter(*own, gains, memory)
        with torch.enable_grad():
            if link is not None:
                handles = self._left_by(link.origin)
                drift = _Linked.apply(drift, *handles, link, self.ledger)  # type: ignore[no-untyped-call]
            followed = drift if self.follows and drift.requires_grad else None
            self._handle(drift, followed, anchor, [x for x, _ in fast] if self.follows else [])

    def _enter(
        self,
        residual: Tensor,
        level: Tensor,
        covariance: Tensor,
        density: Tensor,
        gains: Sequence[float | Tensor] = (),
        memory: Memory | None = None,
    ) -> None:
        self.residuals.append(residual)
        self.levels.append(level)
        self.covariances.append(covariance)
        self.ledger.densities.append(density)
        self.ledger.decays.append(None if memory is None else memory.decay)
        self.ledger.gaps.append(None if memory is None else memory.gap)
        self.ledger.gains.append(list(gains))
        self.ledger.gradients.append(None)
        self.ledger.membranes.append(None)
        self.wanderings.append(None if memory is None else memory.wandering)

    def _handle(
        self, like: Tensor, drift: Tensor | None, anchor: Tensor, currents: Sequence[Tensor] = ()
    ) -> None:
        """What stands for a call's spike and membrane in the graph of whatever reads them."""
        entry = self._begin(1)
        with torch.enable_grad():
            self._handles.append(
                _Call.apply(like.detach(), drift, anchor, self.ledger, entry, *currents)  # type: ignore[no-untyped-call]
            )

    def _begin(self, steps: int) -> int:
        """The number of the entry that so many calls get."""
        entry = self.entries[self._calls] = len(self._handles)
        self._calls += steps
        return entry

    def _left_by(self, call: int) -> tuple[Tensor, Tensor]:
        """What stands for the spike of a call, the last of its sequence, and for its membrane."""
        entry = max(entry for first, entry in self.entries.items() if first <= call)
        spike, membrane = self._handles[entry]
        return (spike[-1] if entry in self.followed else spike), membrane

    def sequence(self, seen: Watched, spikes: Tensor, anchor: Tensor) -> Tensor:
        """Remembers a sequence of calls as one, for a layer whose derivatives are not followed.

        Args:
            seen: What the layer did.
            spikes: (T, N, *).
            anchor: See `add`.

        Returns:
            The spikes, with a graph for whatever reads them.
        """
        covariance = seen.lesser(spikes) if self.signed else seen.densities
        level = seen.densities if seen.levels is None else seen.levels
        self._enter(
            seen.residuals.transpose(0, 1),
            level.transpose(0, 1),
            covariance.transpose(0, 1),
            seen.densities.transpose(0, 1),
        )
        self._handle(spikes.transpose(0, 1), None, anchor)
        self._calls += len(spikes) - 1
        (handle, _), self._emitted = self._handles[-1], len(self._handles)
        with torch.enable_grad():
            return _Emission.apply(spikes, self.ledger, False, handle.transpose(0, 1))  # type: ignore[no-any-return, no-untyped-call]

    def follow(
        self,
        steps: Conditioned,
        spikes: Tensor,
        current: Tensor | None,
        anchor: Tensor,
        lif: Lif,
        link: Link | None,
    ) -> Tensor:
        """Remembers a sequence of calls as one, conditioned pathwise.

        Args:
            steps: What the layer did.
            spikes: (T, N, *).
            current: What entered it, (T, N, *), if its graph is followed.
            anchor: See `add`.
            lif: What its membranes do.
            link: To the call that left the membrane it starts from, if time is followed.

        Returns:
            The spikes, with a graph for whatever reads them.
        """
        known = Known.of_steps(steps)
        density = known.density.transpose(0, 1)
        level = known.level.transpose(0, 1)
        self._enter(known.residual.transpose(0, 1), level, density, density)
        apart = steps.wandering
        self.wanderings[-1] = None if apart is None else apart.transpose(0, 1)
        followed = Followed(
            self._begin(len(spikes)), steps, lif.decay, lif.gain, link, self.replicas
        )
        self.followed.add(followed.entry)
        with torch.enable_grad():
            before = (None, None) if link is None else self._left_by(link.origin)
            handles = FollowedSteps.apply(  # type: ignore[no-untyped-call]
                spikes.detach(), current, anchor, *before, followed, self.ledger
            )
            self._handles.append(handles)
            self._emitted = len(self._handles)
            return _Emission.apply(spikes, self.ledger, False, handles[0])  # type: ignore[no-any-return, no-untyped-call]

    def step(self, seen: Watched, spikes: Tensor, anchor: Tensor) -> None:
        """Remembers one call of such a layer, (N, *); see `sequence`."""
        density, residual = seen.densities[0], seen.residuals[0]
        level = density if seen.levels is None else seen.levels[0]
        covariance = seen.lesser(spikes)[0] if self.signed else density
        self._enter(residual, level, covariance, density)
        self._handle(spikes, None, anchor)

    def emit(self, spikes: Tensor) -> Tensor:
        """The spikes of all calls since the last, with a graph for whatever reads them.

        Args:
            spikes: (N, *), or (T, N, *) for T calls.
        """
        calls = self._handles[self._emitted :]
        self._emitted = len(self._handles)
        many = spikes.dim() > self.residuals[-1].dim()
        with torch.enable_grad():
            return _Emission.apply(spikes, self.ledger, many, *(spike for spike, _ in calls))  # type: ignore[no-any-return, no-untyped-call]

    @property
    def reached(self) -> bool:
        """Whether the losses depend on the layer's spikes, as far as was collected."""
        ledger = self.ledger
        return bool(ledger.settled) or any(g is not None for g in ledger.gradients)

    def all_entries(self) -> Iterator[Entry]:
        """What was collected for each entry."""
        ledger = self.ledger
        for entry, residual in enumerate(self.residuals):
            gradient, membrane = ledger.gradients[entry], ledger.membranes[entry]
            settled = ledger.settled.get(entry)
            yield Entry(residual, gradient, membrane, self.wanderings[entry], settled)


class _Call(torch.autograd.Function):
    """One call of a layer: stands for its spike and its membrane in a collecting backward pass.

    Both outputs are zeros that take no memory; what counts are their derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        like: Tensor,
        drift: Tensor | None,
        anchor: Tensor,
        ledger: Ledger,
        number: int,
        *currents: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.ledger, ctx.number = ledger, number
        ctx.has_drift = drift is not None
        ctx.set_materialize_grads(False)
        return like.new_zeros(()).expand_as(like), like.new_zeros(()).expand_as(like)

    @staticmethod
    def backward(ctx: Any, spike: Tensor | None, membrane: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        ledger: Ledger = ctx.ledger
        further = None
        gains = ledger.gains[ctx.number]
        if ledger.collecting:
            gap, decay = ledger.gaps[ctx.number], ledger.decays[ctx.number]
            if membrane is not None and gap is not None:
                told = membrane * gap
                spike = told if spike is None else spike + told
            ledger.gradients[ctx.number] = spike
            ledger.membranes[ctx.number] = membrane
            follows = ctx.has_drift or gains
            if follows and spike is not None:
                further = spike * ledger.densities[ctx.number].to(spike.dtype)
            if follows and membrane is not None and decay is not None:
                carried = membrane * decay
                further = carried if further is None else further + carried
        shares: list[Tensor | None] = []
        for gain in gains:
            unit = isinstance(gain, float) and gain == 1.0
            shares.append(further if unit or further is None else further * gain)
        visited = torch.zeros(()) if ledger.collecting else None
        return None, further if ctx.has_drift else None, visited, None, None, *shares


class _Linked(torch.autograd.Function):
    """A drift, with what it owes to an earlier call's spike and membrane."""

    @staticmethod
    def forward(
        ctx: Any, drift: Tensor, spike: Tensor, membrane: Tensor, link: Link, ledger: Ledger
    ) -> Tensor:
        ctx.link, ctx.ledger = link, ledger
        ctx.set_materialize_grads(False)
        return drift.view_as(drift)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        if gradient is None or not ctx.ledger.collecting:
            return (None,) * 5
        return gradient, gradient * ctx.link.jump, gradient * ctx.link.carry, None, None


class Gate(torch.autograd.Function):
    """Something that only a collecting backward pass gets through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ledger: Ledger) -> Tensor:
        ctx.ledger = ledger
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return gradient if ctx.ledger.collecting else None, None


class _Emission(torch.autograd.Function):
    """Spikes with a graph that only a collecting backward pass gets through."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, ledger: Ledger, many: bool, *calls: Tensor) -> Tensor:
        ctx.ledger, ctx.many, ctx.calls = ledger, many, len(calls)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(spikes)  # and not a view, which could not be written to in place
        return spikes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        if gradient is None or not ctx.ledger.collecting:
            return (None,) * (3 + ctx.calls)
        return None, None, None, *(gradient.unbind(0) if ctx.many else (gradient,))


def leads_to_spikes_alone(x: Tensor) -> bool:
    """Whether the graph of `x` ends at emitted spikes: no gradient is written through it."""
    if x._backward_hooks or x.retains_grad:
        return False
    nodes, seen = [x.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or node.name() == "_EmissionBackward":
            continue
        if node.name() == "torch::autograd::AccumulateGrad":
            return False
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
    return x.grad_fn is not None


def collect(losses: Tensor, records: list[FiringRecord], anchor: Tensor) -> None:
    """One backward pass from the losses to every emission of spikes; it writes to no `.grad`."""
    for record in records:
        record.ledger.collecting = True
    try:
        torch.autograd.grad(losses.sum(), anchor, retain_graph=True, allow_unused=True)
    finally:
        for record in records:
            record.ledger.collecting = False


def settle_all(
    firing: Mapping[NoisyNeuron, FiringRecord],
    losses: Tensor,
    anchor: Tensor,
    replicas: int,
    sharing: Sharing,
    rows: int,
) -> tuple[dict[NoisyNeuron, list[Tensor]], list[Tensor]]:
    """What `settle` finds for every layer that the losses depend on, over `rows`.

    Args:
        firing: What each layer's spikes were.
        losses: (C * B,), with their graph.
        anchor: What every call leads to.
        replicas: C.
        sharing: Whose noise depends on whose.
        rows: What the sum over replicas and samples is divided by.

    Returns:
        The coefficients by layer and call, and for each of these layers what to take from what
        multiplies the scores, (C * B,).
    """
    if losses.requires_grad and losses.numel():
        collect(losses, list(firing.values()), anchor)
    control, explained = {}, []
    for neuron, record in firing.items():
        if record.reached:
            factors, found = settle(record.all_entries(), replicas, sharing)
            control[neuron] = [c.div_(rows) for c in factors]
            explained.append(found.div_(rows))
    return control, explained
