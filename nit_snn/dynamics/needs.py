"""What an estimator needs to be recorded: asked before a pass, for afterwards is too late."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a pass has to keep.

    Attributes:
        signs: Whether the scores are the noise's signs (NIT-S).
        scores: Whether scores are asked for at all: a residual.
        firing: Whether membranes and spikes are, from which firing probabilities follow.
        reach: How far a backward pass through the spikes goes, one of
            `nit_snn.recording.spike_node.REACHES`; None for no such pass.
        guarded: Whether membranes may be read by nobody, since scores are conditioned on spikes.
        apart: Whether the scores of single steps are asked for, and not only sums over steps with
            the same activity.
        outputs: Whether what the network returns is asked for.
    """

    signs: bool = False
    scores: bool = True
    firing: bool = False
    reach: str | None = None
    guarded: bool = False
    apart: bool = False
    outputs: bool = False

    @property
    def plain(self) -> bool:
        """Whether noise and activity alone count, which kernels weigh without keeping them."""
        return not (self.firing or self.reach or self.guarded)
