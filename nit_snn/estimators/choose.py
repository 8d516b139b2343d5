"""What "auto" stands for: from the network's structure and from earlier passes, never this one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..dynamics.needs import Needs
from ..neurons.base import NoisyNeuron
from ..training.distributed import Ranks
from .baselines import Sharing
from .credit import Credit, make_credit
from .credit.feedback import FeedbackCredit
from .estimator import Estimate, Estimator
from .residual import FixedResidual, Residual, WienerResidual
from .scores import NoiseScore, SpikeScore

#: Replicas of a sample for a likelihood ratio alone, and where a credit does most of the work.
MANY, ONE = 16, 1


@dataclass(eq=False)
class Choice:
    """The estimator of a learner, and how it came about.

    Attributes:
        options: Those of the learner, by name; its rule may change.
        ranks: Who has other rows of the batch.
        credit: The kind of credit that "auto" has come to.
        settled: Whether a pass has confirmed it.
        seen: Whether any pass has shown what the loss reaches.
        unreached: Whether a layer needs its likelihood ratio, for the loss has no derivative in it.
        coupled: Whether losses depend on other samples: then halves of a batch tell nothing.
        cheap: Whether "auto" may come to a credit with a backward pass, as far as the network goes.
    """

    options: Mapping[str, Any]
    ranks: Ranks
    credit: str
    settled: bool = False
    seen: bool = False
    unreached: bool = False
    cheap: bool = False
    coupled: bool = False
    wiener: WienerResidual | None = None
    credits: dict[str, Credit] = field(default_factory=dict)

    @staticmethod
    def of(options: Mapping[str, Any], neurons: Iterable[NoisyNeuron], ranks: Ranks) -> Choice:
        """The choice before the first pass: nothing is ruled out that the structure allows."""
        credit = options["credit"]
        found = Choice(options, ranks, credit, settled=credit != "auto")
        found.wiener = WienerResidual() if options["residual"] == "auto" else None
        if credit == "auto":
            spiking = all(n.why_no_firing_probability() is None for n in neurons)
            found.cheap = spiking
            found.credit = found.possible[-1]
            found.settled = not found.cheap
        return found

    @property
    def kind(self) -> str:
        """The credit of the next pass; NIT-S is a direction of its own."""
        return (
            "none"
            if self.options["rule"] == "nit-s" and self.options["credit"] == "auto"
            else self.credit
        )

    @property
    def replicas(self) -> int:
        """C of the next pass."""
        given = self.options["replicas"]
        if given != "auto":
            return int(given)
        return MANY if self.kind == "none" else ONE

    @property
    def residual(self) -> Residual:
        """The residual of the next pass."""
        if self.kind == "none":
            return FixedResidual(1.0)
        if self.options["residual"] != "auto":
            return FixedResidual(float(self.options["residual"]))
        if self.options["rule"] == "nit-s":
            return FixedResidual(1.0)
        # What is left after one replica's own credit can be told from noise by other replicas.
        enough = self.replicas * self.ranks.sharers >= (4 if self.options["antithetic"] else 2)
        if self.wiener is None or not enough or not self.measurable or self.coupled:
            return FixedResidual(0.0)
        return self.wiener

    @property
    def measurable(self) -> bool:
        """Whether the residual's worth can be measured with these options."""
        options = self.options
        return (
            self.ranks.shares is None
            and not options["per_step_losses"]
            and options["baseline"] == "leave-one-out"
        )

    def credit_of(self, kind: str) -> Credit:
        """The credit of a kind, which may have learned something."""
        if kind not in self.credits:
            self.credits[kind] = make_credit(kind, self.ranks)
        return self.credits[kind]

    @property
    def estimator(self) -> Estimator:
        """The estimator of the next pass."""
        conditioned = self.options["conditional"] is True and self.options["rule"] == "nit"
        score = SpikeScore() if conditioned else NoiseScore(signs=self.options["rule"] == "nit-s")
        return Estimator(
            score,
            self.options["baseline"],
            self.credit_of(self.kind),
            self.residual,
            Sharing(self.options["antithetic"]),
            self.options["per_step_losses"],
            self.ranks,
        )

    @property
    def wants_scores(self) -> bool:
        """Whether the next pass has to keep what a residual is made of."""
        residual = self.residual
        if not (self.settled and self.seen) or self.unreached or residual.measures():
            return True
        if isinstance(residual, WienerResidual):
            return any(residual.weight(layer) > 0 for layer in residual.squares)
        return residual.weight("") > 0

    def needs(self, replicas: int) -> Needs:
        """What the next pass has to keep.

        Args:
            replicas: Those of this process.
        """
        estimator = self.estimator
        # Before anything is known of the losses, a likelihood ratio is a mere possibility.
        likely = self.kind == "none" or self.residual.weight("") > 0 or self.seen
        guarded = estimator.score.conditioned
        blind = self.options["credit"] != "auto" and (self.unreached or not self.seen)
        return estimator.needs(guarded, self.wants_scores, likely, replicas, outputs=blind)

    def learn_from(self, found: Estimate) -> bool:
        """Takes in what a pass has shown; whether that has settled an "auto", or changed it."""
        if self.kind == "none":
            return False
        before = self.settled, self.credit, self.coupled
        self.settled, self.seen = True, True
        self.coupled = self.coupled or found.couples
        lost = [layer for layer in found.weights if layer not in found.reached]
        self.unreached = any(segment.teaches for layer in lost for segment in layer.segments)
        # What a loss has no derivative in, it may depend on all the same.
        if (self.unreached or not found.reached) and self.options["credit"] == "auto":
            self.credit = "none"
        return before != (True, self.credit, self.coupled)

    @property
    def feedback(self) -> FeedbackCredit | None:
        """What has learned something, if anything has to."""
        found = self.credit_of("feedback") if "feedback" in self.possible else None
        return found if isinstance(found, FeedbackCredit) else None

    @property
    def possible(self) -> tuple[str, ...]:
        """The kinds of credit that it can come to."""
        given = self.options["credit"]
        if given != "auto":
            return (given,)
        if not self.cheap:
            return ("none",)
        return ("none", "feedback" if self.options["forward_only"] else "layers")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to choose the same."""
        return {
            "credit": self.credit,
            "settled": self.settled,
            "unreached": self.unreached,
            "wiener": None if self.wiener is None else self.wiener.state_dict(),
            "feedback": None if self.feedback is None else self.feedback.state_dict(),
        }

    def fits(self, state: Any) -> bool:
        """Whether `state` is one of such a choice."""
        entries = self.state_dict()
        return (
            isinstance(state, dict)
            and entries.keys() <= state.keys()
            and type(state["credit"]) is str
            and state["credit"] in self.possible
            and all(type(state[name]) is bool for name in ("settled", "unreached"))
            and (state["wiener"] is None) == (self.wiener is None)
            and (self.wiener is None or self.wiener.fits(state["wiener"]))
            and (state["feedback"] is None) == (self.feedback is None)
            and (self.feedback is None or self.feedback.fits(state["feedback"]))
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the choice that gave `state` stopped; it has to fit."""
        self.credit = state["credit"]
        self.settled, self.unreached = bool(state["settled"]), bool(state["unreached"])
        if self.wiener is not None:
            self.wiener.load_state_dict(state["wiener"])
        if self.feedback is not None:
            self.feedback.load_state_dict(state["feedback"])

    def describe(self) -> str:
        """In words, for `repr` and for what is printed once."""
        residual = self.residual
        lam = "auto" if isinstance(residual, WienerResidual) else f"{residual.weight(''):g}"
        bias = "unbiased" if lam == "1" else "biased, with hardly any variance"
        if lam == "auto":
            bias = "bias weighed against variance"
        return f"credit={self.kind!r}, residual={lam}, replicas={self.replicas} ({bias})"
