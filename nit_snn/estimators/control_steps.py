"""A collecting backward pass through all steps of a layer at once, for `estimators.control`.

What `_Call` and `_Linked` do there for single calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..dynamics.backend import is_native
from ..dynamics.compiled.settle import collect_and_settle
from ..dynamics.conditioned import Conditioned
from ..dynamics.pathwise import Link
from .control_coefficients import Settled

if TYPE_CHECKING:
    from .control import Ledger


@dataclass(eq=False)
class Followed:
    """What a backward pass through a layer's steps needs.

    The graph holds it, so it holds nothing that has a graph.

    Attributes:
        entry: Its number in the ledger.
        steps: What the layer did.
        carry: The derivative of a drift in the membrane that the step before left.
        gain: Factor of the current in the drift.
        link: To the call that left the membrane which the sequence starts from, if one did.
        replicas: C, if they share no noise.
    """

    entry: int
    steps: Conditioned
    carry: float | Tensor
    gain: float | Tensor
    link: Link | None
    replicas: int | None = None

    def collect(
        self, spikes: Tensor | None, membrane: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss's derivatives, from those in the spikes as read, and in the last membrane.

        `g_t = dL/ds_t + f_{t+1} jump_t (+ w_t gap_t)`, `w_t = f_{t+1} carry` and
        `f_t = g_t phi(a_t) / sigma + w_t du_t/dm_t`, backwards in time.

        Returns:
            In the drifts, f; in the spikes, g; and in the membranes that the steps leave behind, w,
            if time is followed; each (T, N, *).
        """
        steps = self.steps
        assert steps.density is not None
        found = torch.zeros_like(steps.density) if spikes is None else spikes.clone()
        if steps.jump is None or steps.decay is None:
            return found * steps.density, found, None
        membranes = torch.zeros_like(found)
        drifts = torch.empty_like(found)
        last = len(found) - 1
        for t in range(last, -1, -1):
            own, carried = found[t], membranes[t]
            if t < last:
                own.addcmul_(drifts[t + 1], steps.jump[t])
                torch.mul(drifts[t + 1], self.carry, out=carried)
            elif membrane is not None:
                carried.copy_(membrane)
            if steps.gap is not None:
                own.addcmul_(carried, steps.gap[t])
            torch.mul(own, steps.density[t], out=drifts[t]).addcmul_(carried, steps.decay[t])
        return drifts, found, membranes

    def tell(
        self, spikes: Tensor | None, membrane: Tensor | None, ledger: Ledger, wants_drifts: bool
    ) -> Tensor | None:
        """Enters what `collect` finds into the ledger; the derivatives in the drifts, if wanted."""
        if self.replicas is not None and is_native():
            done = collect_and_settle(
                self.steps, spikes, membrane, self.carry, self.replicas, wants_drifts
            )
            if done is not None:
                drifts, factors, explained = done
                ledger.settled[self.entry] = Settled(factors.transpose(0, 1), explained)
                return drifts
        found = self.collect(spikes, membrane)
        ledger.gradients[self.entry] = found[1].transpose(0, 1)
        if found[2] is not None:
            ledger.membranes[self.entry] = found[2].transpose(0, 1)
        return found[0]


class FollowedSteps(torch.autograd.Function):
    """Stands for the spikes of a sequence, (T, N, *), and for the membrane that it leaves, (N, *).

    Both are zeros that take no memory; what counts are their derivatives. Its inputs are what
    leads to the loss's other derivatives: the current, where its graph is followed, and what stands
    for an earlier call's spike and membrane.
    """

    @staticmethod
    def forward(
        ctx: Any,
        like: Tensor,
        current: Tensor | None,
        anchor: Tensor,
        spike: Tensor | None,
        membrane: Tensor | None,
        followed: Followed,
        ledger: Any,
    ) -> tuple[Tensor, Tensor]:
        ctx.followed, ctx.ledger = followed, ledger
        ctx.set_materialize_grads(False)
        return like.new_zeros(()).expand_as(like), like.new_zeros(()).expand_as(like[0])

    @staticmethod
    def backward(ctx: Any, spikes: Tensor | None, membrane: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        if not ctx.ledger.collecting:
            return (None,) * 7
        visited = torch.zeros(())
        if spikes is None and membrane is None:
            return None, None, visited, None, None, None, None
        followed: Followed = ctx.followed
        _, wants_current, _, wants_spike, wants_membrane, *_ = ctx.needs_input_grad
        link = followed.link
        onward = wants_current or link is not None
        drifts = followed.tell(spikes, membrane, ctx.ledger, onward)
        if drifts is None or not onward:
            return None, None, visited, None, None, None, None
        return (
            None,
            drifts * followed.gain if wants_current else None,
            visited,
            drifts[0] * link.jump if wants_spike and link is not None else None,
            drifts[0] * link.carry if wants_membrane and link is not None else None,
            None,
            None,
        )
