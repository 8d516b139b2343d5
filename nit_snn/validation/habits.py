"""Whether autograd writes gradients where the learner was to write them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class Listener:
    """Notices that gradients are accumulated into parameters, while it listens.

    Attributes:
        heard: Whether any was since it began.
    """

    def __init__(self) -> None:
        self.heard = False
        self._handles: list[object] = []

    def begin(self, parameters: Iterable[Tensor]) -> None:
        """Listens to these parameters."""
        self.heard = False

        def look(_: Tensor) -> None:
            self.heard = True

        leaves = (p for p in parameters if p.requires_grad and p.is_leaf)
        self._handles = [p.register_post_accumulate_grad_hook(look) for p in leaves]

    def end(self) -> bool:
        """Listens no longer; whether anything was heard."""
        heard, self.heard = self.heard, False
        for handle in self._handles:
            handle.remove()  # type: ignore[attr-defined]
        self._handles = []
        return heard
