"""Credit: what the loss gains per spike. One file a kind."""

from ...training.distributed import ALONE, Ranks
from .feedback import FeedbackCredit
from .kinds import Credit, Known
from .layers import LayersCredit
from .none import NoCredit
from .readout import ReadoutCredit
from .time import TimeCredit

#: The class of each kind, by the name that the option `credit` has for it.
KINDS: dict[str, type[Credit]] = {
    "none": NoCredit,
    "readout": ReadoutCredit,
    "feedback": FeedbackCredit,
    "layers": LayersCredit,
    "time": TimeCredit,
}


def make_credit(kind: str, ranks: Ranks = ALONE) -> Credit:
    """The credit of a kind, which has learned nothing yet.

    Args:
        kind: One of `KINDS`.
        ranks: Who has other rows of the batch.
    """
    return FeedbackCredit(ranks) if kind == "feedback" else KINDS[kind]()


__all__ = ["KINDS", "Credit", "Known", "make_credit"]
