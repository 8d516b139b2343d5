"""Whether autograd writes gradients where the learner was to write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor


class Listener:
    """Notices that gradients are accumulated into parameters, while it listens.

    Attributes:
        heard: Whether any was since it began.
    """

    def __init__(self) -> None:
        self.heard = False
        self._handles: list[object] = []

    def begin(self, parameters: Iterable[Tensor], tell: Callable[[], None] | None = None) -> None:
        """Listens to these parameters.

        Args:
            parameters: They.
            tell: Called when the first gradient is heard.
        """
        self.end()

        def look(_: Tensor) -> None:
            first, self.heard = not self.heard, True
            if first and tell is not None:
                tell()

        leaves = (p for p in parameters if p.requires_grad and p.is_leaf)
        self._handles = [p.register_post_accumulate_grad_hook(look) for p in leaves]

    def end(self) -> bool:
        """Listens no longer; whether anything was heard."""
        heard, self.heard = self.heard, False
        for handle in self._handles:
            handle.remove()  # type: ignore[attr-defined]
        self._handles = []
        return heard
