"""What a learner is between its passes: options, a state that can be saved, and bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..errors import RecordingError
from ..estimators.choose import Choice
from ..recording.session import Session
from ..swap.states import reset_rows
from ..validation import diagnosis, options
from ..validation.to_python_scalar import to_python_scalar
from . import projection, saved_state


class LearnerState:
    """The part of `nit_snn.NITLearner` that is not learning.

    Attributes:
        net: The network.
    """

    net: nn.Module
    _options: dict[str, Any]
    _choice: Choice
    _session: Session
    _enabled: bool
    _closed: bool
    _projection: Any

    def __getattr__(self, name: str) -> Any:
        """The options, as they were given or set since."""
        given = vars(self).get("_options", {})
        if name in given:
            return given[name]
        raise AttributeError(f"NITLearner has no attribute {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        given = vars(self).get("_options", {})
        if name not in given:
            super().__setattr__(name, value)
            return
        options.check_change(name, value, boxed=self._projection is not None)
        given[name] = to_python_scalar(value)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._choice.describe()}, rule={self.rule!r}, "
            f"baseline={self.baseline!r}, antithetic={self.antithetic}, "
            f"conditional={self.conditional!r}, learn_sigma={self.learn_sigma!r}, "
            f"seed={self.seed}, layers=[{', '.join(self._session.neurons)}])"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and files hold the network, the options and the state; attached when made."""
        self._check_open()
        return _attach_again, (
            type(self),
            self.net,
            dict(self._options),
            self.state_dict(),
            self._enabled,
        )

    @property
    def seed(self) -> int:
        """Names the noise of all passes."""
        return self._session.source.seed

    @property
    def passes(self) -> int:
        """How many passes were recorded; the number of the next one, which names its noise."""
        return self._session.source.passes

    @passes.setter
    def passes(self, passes: int) -> None:
        number = to_python_scalar(passes)
        if not saved_state.count(number):
            raise ValueError(f"passes must be an integer from 0 on, got {passes!r}.")
        self._session.source.passes = number

    def project(self) -> None:
        """Puts learned noise levels, and bounded weights, back between their bounds.

        The paper's projection on Omega. After each step of a torch optimizer it is done for what
        that optimizer holds. An update of another kind, or an optimizer of copies that are written
        back, such as masters of half-precision weights, has to be followed by a call.
        """
        for tensors, bounds in self._boxes():
            projection.clamp(tensors, bounds)

    def _boxes(self) -> list[projection.Box]:
        """What has bounds, and which."""
        levels = [neuron.sigma for neuron in self._session.neurons.values()]
        boxes: list[projection.Box] = [(levels, self.sigma_bounds)] if self.learn_sigma else []
        if self.weight_bounds is not None:
            own = {id(level) for level in levels}
            boxes.append(([p for p in self.parameters() if id(p) not in own], self.weight_bounds))
        return boxes

    def notes(self) -> list[str]:
        """What is worth knowing of the network, a sentence each, by qualified name.

        Layers that take the general route, parameters that several layers share, modules that write
        in place: all are learned right as they are.
        """
        return diagnosis.notes(self.net, self._session.neurons)

    def reset_rows(self, rows: Tensor) -> None:
        """Sets some rows of what the network remembers to its initial state, also while it records.

        For episodes that end at different steps. A membrane that your code hands from step to step
        is out of reach: multiply it, `mem * (1 - done)`.

        Args:
            rows: (C * B,), true where a row starts anew: `learner.expand(done)`.

        Raises:
            RecordingError: There are other rows.
        """
        reset_rows(self.net, rows)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the network that ask for a gradient, for an optimizer."""
        return (p for p in self.net.parameters() if p.requires_grad)

    def enable(self) -> None:
        """Records and learns again after `disable`."""
        self._check_open()
        self._enabled = True

    def disable(self) -> None:
        """Makes `record` and `backward` do nothing but run the network and average the loss.

        Raises:
            RecordingError: It is called inside `record()`.
        """
        self._session.check_not_running("disable")
        self._enabled = False
        self._session.drop()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same noise and to weigh it alike."""
        return {
            **self._session.source.state_dict(),
            "choice": self._choice.state_dict(),
            **{name: self._options[name] for name in options.SAVED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the learner that gave `state` stopped.

        Raises:
            CheckpointError: An entry is missing or no such thing, or its options differ from
                this learner's. Nothing was changed.
            RecordingError: It is called inside `record()`.
        """
        self._session.check_not_running("load_state_dict")
        own = {name: self._options[name] for name in options.SAVED if name != "rule"}
        entries: dict[str, Any] = {
            "rule": lambda rule: type(rule) is str and rule in options.RULES,
            **self._session.source.entries,
            "choice": self._choice.fits,
            **dict.fromkeys(own, saved_state.anything),
        }
        saved_state.check(state, "learner", entries)
        saved_state.check_options(state, own)
        self._session.source.load_state_dict(state)
        self.rule = state["rule"]
        self._choice.load_state_dict(state["choice"])
        self._session.drop()

    def _check_open(self) -> None:
        if self._closed:
            raise RecordingError("This NITLearner is closed; attach a new one.")


def _attach_again(
    kind: type[Any], net: nn.Module, arguments: dict[str, Any], state: dict[str, Any], enabled: bool
) -> Any:
    learner = kind(net, **arguments)
    learner.load_state_dict(state)
    if not enabled:
        learner.disable()
    return learner
