"""A batch put through twice with the same noise: first for its losses, then for the gradient.

The weight of a row's noise is known only once the losses of all replicas are: hence the first pass,
which keeps nothing. In the second one what is recorded can become gradients at any time, so that
what a pass keeps need not grow with time, nor with the number of replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import RecordingError
from ..gradients.accumulate import Gathering
from ..validation.network import being_captured
from .memory import AT_ONCE
from .recorder import Recording
from .shares import Shares
from .trace import Estimate

#: Puts one part of the batch through: its number, whether it is a rehearsal, and what is done with
#: the recording before it starts; returns that recording, and the losses of its rows.
Run = Callable[[int, bool, Callable[[Recording], None]], tuple[Recording, Tensor]]


def in_two_passes(
    run: Run, shares: Shares, weigh: Callable[[Tensor], Tensor], rows: int, as_it_goes: bool
) -> tuple[Tensor, Estimate]:
    """The mean loss, and the gradients of the parameters that noise teaches; others get theirs.

    Args:
        run: Puts a part of the batch through.
        shares: What the parts are.
        weigh: From the losses of all rows to what multiplies their scores.
        rows: Number of rows that the mean is taken over, those of other processes included.
        as_it_goes: Turn what is recorded into gradients while the pass runs.

    Raises:
        RecordingError: The second time, the losses were others.
    """
    with torch.random.fork_rng(cuda_devices()):
        parts = [_rehearsed(run, part) for part in range(shares.parts)]
    losses = shares.join(parts)
    weight = weigh(losses)
    estimate = Estimate()
    for part, first in enumerate(parts):
        own = shares.of(weight, part)

        def begin(recording: Recording, own: Tensor = own) -> None:
            if as_it_goes:
                recording.when_kept = Draining(recording, own, estimate)

        recording, again = run(part, False, begin)
        try:
            _check_same(first, again.detach())
            gathering = Gathering(recording)
            gathering.gather(own, estimate)
            mean = again.sum() / max(1, rows)
            gathering.follow(estimate, mean)
            drain(estimate, [mean] if mean.requires_grad else [])
        finally:
            recording.release()
    return losses.sum() / max(1, rows), estimate


class Draining:
    """Turns what a recording holds into gradients each time that it has become too much.

    Args:
        recording: The recording, while its pass runs.
        weight: What multiplies its scores.
        estimate: Takes the gradients.
    """

    def __init__(self, recording: Recording, weight: Tensor, estimate: Estimate) -> None:
        self.recording = recording
        self.weight = weight
        self.estimate = estimate
        self._before = 0.0

    def __call__(self) -> None:
        recording = self.recording
        sizes = [trace.size for trace in recording.traces.values()]
        kept = (recording.rows or 0) * sum(size.scores + size.activity for size in sizes)
        # A current that neurons remember is differentiated once, after all that it went into.
        if kept - self._before < AT_ONCE or recording.held:
            return
        self._before = kept
        Gathering(recording).gather(self.weight, self.estimate, everything=False)
        drain(self.estimate)


def drain(estimate: Estimate, roots: Sequence[Tensor] = ()) -> None:
    """Sends an estimate's cotangents through their local graphs, and lets go of these.

    Args:
        estimate: The estimate; its finished gradients stay where they are.
        roots: Scalars whose own gradient is wanted as well.
    """
    outputs = [*estimate.drifts, *roots]
    if outputs:
        ones = [torch.ones_like(root) for root in roots]
        # Other drifts may share a part of the graph.
        torch.autograd.backward(outputs, [*estimate.cotangents, *ones], retain_graph=True)
    estimate.drifts, estimate.cotangents = [], []


def _check_same(first: Tensor, again: Tensor) -> None:
    if being_captured():
        return
    if first.shape != again.shape or not torch.allclose(first, again, rtol=1e-3, atol=1e-5):
        raise RecordingError(
            "The same rows with the same noise had other losses the second time. What is passed "
            "to learn() has to start from the same state each time that it is called, and to "
            "change nothing outside of it (noisy neurons are reset for it). No gradient was "
            "written."
        )


def _rehearsed(run: Run, part: int) -> Tensor:
    """The losses of a part."""
    recording, losses = run(part, True, lambda _: None)
    recording.release()  # a shielded membrane that the function kept may be read from now on
    return losses.detach()


def cuda_devices() -> list[int]:
    """Whose random numbers may have to be put back."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return list(range(torch.cuda.device_count())) if used else []
