"""Credit: what the loss gains per spike. One file a kind."""

from .kinds import Credit, Known
from .layers import LayersCredit
from .none import NoCredit
from .readout import ReadoutCredit
from .time import TimeCredit

KINDS: dict[str, Credit] = {
    kind.name: kind for kind in (NoCredit(), ReadoutCredit(), LayersCredit(), TimeCredit())
}

__all__ = ["KINDS", "Credit", "Known"]
