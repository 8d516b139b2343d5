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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .baselines import Sharing, mean_of_others, sum_over_first
from .conditioned import Conditioned
from .control_steps import Followed, FollowedSteps
from .firing import _DENSITY_AT_0, _SQRT_HALF, Firing, bell_
from .neurons.closed_form import add, number
from .pathwise import Link

if TYPE_CHECKING:
    from .neurons.base import Lif, NoisyNeuron

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
        collecting: Whether a backward pass is to collect them, or to be stopped.
    """

    densities: list[Tensor] = field(default_factory=list)
    decays: list[Tensor | None] = field(default_factory=list)
    gaps: list[Tensor | None] = field(default_factory=list)
    gains: list[list[float | Tensor]] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    membranes: list[Tensor | None] = field(default_factory=list)
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


@dataclass(eq=False)
class FiringRecord:
    """What one layer's spikes were, and how likely, call by call; each entry (N, *).

    Attributes:
        follows: Whether derivatives are followed through the firing probability.
        signed: Whether the rule is NIT-S.
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
        firing: Firing,
        sigma: Tensor,
        drift: Tensor,
        anchor: Tensor,
        fast: list[tuple[Tensor, float | Tensor]],
        memory: Memory | None = None,
        link: Link | None = None,
    ) -> None:
        """Remembers one call.

        Args:
            firing: What the layer did.
            sigma: Scalar, or broadcasting to (*).
            drift: m, (N, *), with its local graph.
            anchor: A scalar that every call leads to, so that a backward pass to it visits all.
            fast: Currents that `drift` has no graph of, with their own to the spikes before, and
                their factors in the drift.
            memory: What is known of the membrane that it leaves, if time is followed.
            link: To an earlier call, if time is followed.
        """
        density = firing.density / sigma
        covariance = firing.lesser if self.signed else density
        gains = [gain for _, gain in fast] if self.follows else []
        self._enter(firing.residual, firing.level, covariance, density, gains, memory)
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
        assert steps.residual is not None and steps.density is not None
        density = steps.density.transpose(0, 1)
        self._enter(steps.residual.transpose(0, 1), steps.level.transpose(0, 1), density, density)
        apart = steps.wandering
        self.wanderings[-1] = None if apart is None else apart.transpose(0, 1)
        followed = Followed(self._begin(len(spikes)), steps, lif.decay, lif.gain, link)
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

    def by_call(self) -> list[Tensor]:
        """The collected derivatives, call by call, zero where nothing reads the spikes."""
        return [
            like.new_zeros(like.shape) if g is None else g.to(like.dtype)
            for like, g in zip(self.residuals, self.ledger.gradients, strict=True)
        ]

    def wanderers(self) -> list[tuple[Tensor, Tensor]]:
        """The derivative in a membrane, and how that wandered from its mean, where it matters."""
        pairs = zip(self.ledger.membranes, self.wanderings, strict=True)
        return [(g.to(w.dtype), w) for g, w in pairs if g is not None and w is not None]


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
        if any(gradient is not None for gradient in record.ledger.gradients):
            factors, found = settle(record, replicas, sharing)
            control[neuron] = [c.div_(rows) for c in factors]
            explained.append(found.div_(rows))
    return control, explained


def settle(record: FiringRecord, replicas: int, sharing: Sharing) -> tuple[list[Tensor], Tensor]:
    """The coefficients, and what they explain of each row's loss and of its baseline.

    c, the coefficient of a spike, is the mean of g over the other replicas of the same sample. Of
    the loss it explains `sum c (s - p)`, and with it `sum c (u - E[u | s])`, with the loss's
    derivative in the membranes as c: given the spike, what is left of a membrane's noise has mean
    zero and nothing to do with a score that is the spike's alone, so nothing need be put back.

    The losses that a leave-one-out baseline averages vary for the same reasons as the loss itself,
    so the control variate belongs to each of them, too. Their coefficients leave out both
    replicas, so that the baseline of replica r depends on nothing of r:

        sum_{r' != r} (G - g_r - g_r') d_r' = (G - g_r) (D - d_r) - sum_{r' != r} g_r' d_r'

    with d = s - p (or the membrane's wandering), and the sums G and D over all replicas. With too
    few of them the baseline stays as it is.

    Args:
        record: The layer's record, after `collect`.
        replicas: C.
        sharing: Whose noise depends on whose: they are left out, too.

    Returns:
        c for each call, (N, *), and what is explained of each row's loss less what is explained of
        its baseline, (N,).
    """
    factors: list[Tensor] = []
    total: Tensor | None = None
    for gradient, deviation in zip(record.by_call(), record.residuals, strict=True):
        g, d = (x.unflatten(0, (replicas, -1)) for x in (gradient, deviation))
        factors.append(mean_of_others(g, sharing).flatten(0, 1))
        found = _explained(g, d, sharing)
        total = found if total is None else total + found
    for gradient, deviation in record.wanderers():
        g, d = (x.unflatten(0, (replicas, -1)) for x in (gradient, deviation))
        found = _explained(g, d, sharing)
        total = found if total is None else total + found
    assert total is not None
    return factors, total.flatten()


def _explained(g: Tensor, d: Tensor, sharing: Sharing) -> Tensor:
    """What `c d` explains of each row's loss less that of its baseline, (C, B); see `settle`.

    Multiplied out, so that sums over all replicas take the place of those over all others:
    `(G - g_r) d_r = G d_r - g_r d_r`, and `(G - g_r) (D - d_r) = G D - G d_r - g_r D + g_r d_r`.

    Args:
        g: (C, B, *).
        d: (C, B, *).
        sharing: Whose noise depends on whose: g_r and d_r are sums over these, but in `c d_r`.
    """
    replicas = len(g)
    size = sharing.size(replicas)
    others, both = replicas - size, replicas - 2 * size
    own_g = sharing.groups(g)
    all_g = sum_over_first(own_g)
    with_all = _dot(all_g, d)
    own = _dot(own_g, sharing.groups(d))
    alone = own if size == 1 else _dot(sharing.spread(own_g, replicas), d)
    found = (with_all - alone) / others
    if both > 0:
        all_d = sum_over_first(sharing.groups(d))
        rest = _dot(all_g, all_d) - sharing.groups(with_all) - _dot(own_g, all_d) + own
        of_others = rest - (own.sum(0) - own)
        found -= sharing.spread(of_others, replicas) / (both * others)
    return found


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products over all but the first two dimensions."""
    return (x * y).sum(tuple(range(2, x.dim()))) if x.dim() > 2 else x * y
