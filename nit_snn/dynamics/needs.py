"""What an estimator needs to be recorded: asked before a pass, for afterwards is too late."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a pass has to keep.

    Attributes:
        signs: Whether the scores are the noise's signs (NIT-S).
        scores: Whether scores are asked for at all: a residual.
        noise: Whether the noise of scores is kept while there is room; else it is drawn again.
        firing: Whether membranes and spikes are asked for, from which firing probabilities follow.
        surrogate: Whether the surrogate derivatives of spikes are.
        reach: How far a backward pass through the spikes goes, one of
            `nit_snn.recording.spike_node.REACHES`; None for no such pass.
        guarded: Whether membranes may be read by nobody, since scores are conditioned on spikes.
        apart: Whether the scores of single steps are asked for, and not only sums over steps with
            the same activity.
        outputs: Whether what the network returns is asked for.
    """

    signs: bool = False
    scores: bool = True
    noise: bool = True
    firing: bool = False
    surrogate: bool = False
    reach: str | None = None
    guarded: bool = False
    apart: bool = False
    outputs: bool = False

    @property
    def plain(self) -> bool:
        """Whether noise and activity alone count, which kernels weigh without keeping them."""
        return not (self.firing or self.reach or self.guarded)

    @property
    def keeps_noise(self) -> bool:
        """Whether noise is asked for after the pass, and kept while there is room."""
        return self.noise and (self.scores or self.firing)

    @property
    def blocks(self) -> bool:
        """Whether membranes and noise are looked at while the pass runs."""
        return self.surrogate or self.outputs
