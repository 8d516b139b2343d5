"""What a learner has warned of already: each thing once in its life."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from ..estimators.estimator import Estimate
from ..neurons.base import NoisyNeuron
from ..recording.census import Census
from ..recording.trace import PassTrace
from . import foreign_functions, warn
from .capture import being_captured
from .habits import Listener
from .silence import Silence


class WarnOnce:
    """Warns when the learner is attached, and of what comes later.

    Args:
        net: The network.
        neurons: Its noisy neurons, by name.
    """

    def __init__(self, net: nn.Module, neurons: Mapping[str, NoisyNeuron]) -> None:
        self._unreached = warn.of_unreachable(neurons)
        warn.of_quantised(net)
        self._parameters = list(net.parameters())
        self._by_habit, self._autograd = False, Listener()
        self._autograd.begin(self._parameters, self._of_surrogate)
        self._foreign: set[str] = set()
        self._learned = self._carried = self._alone = self._coupled = self._mixed = False
        self._silence = Silence()

    def _of_surrogate(self) -> None:
        self._by_habit = True
        warn.of_surrogate()

    def census(self) -> Census | None:
        """What counts spikes in a pass that begins; None in most."""
        return self._silence.census()

    def before_pass(self, net: nn.Module) -> None:
        """Parameters that came after the learner."""
        now = list(net.parameters())
        if self._autograd.end() and not self._by_habit:
            self._by_habit = True
            warn.of_habit()
        if len(now) == len(self._parameters) and all(map(operator.is_, now, self._parameters)):
            return
        known = set(map(id, self._parameters))
        new = [name for name, p in net.named_parameters() if id(p) not in known]
        self._parameters = now
        if new:
            warn.of_new_parameters(new)

    def after_pass(self, trace: PassTrace, expansions: Collection[int]) -> None:
        """A forgotten reset, a batch that nobody repeated.

        Args:
            trace: The pass.
            expansions: The numbers of rows that something was expanded to.
        """
        if not (self._learned or self._by_habit or being_captured()):
            self._autograd.begin(self._parameters)
        if trace.carried and not self._carried:
            self._carried = True
            warn.of_carried(trace.carried)
        if not expansions and trace.rows and trace.replicas > 1 and not self._alone:
            self._alone = True
            warn.of_no_expansion(trace.replicas, trace.rows)

    def end(self) -> None:
        """Nothing is listened to any more."""
        self._autograd.end()

    def of_foreign(self, trace: PassTrace, made: Mapping[Any, str]) -> None:
        """Derivatives of the user's own in front of noisy layers.

        Args:
            trace: The pass.
            made: See `nit_snn.validation.foreign_functions.outputs_by_module`.
        """
        found = foreign_functions.before_noisy_layers(trace.layers.values(), made)
        new = {what: layer for what, layer in found.items() if what not in self._foreign}
        self._foreign |= set(new)
        warn.of_foreign(new)

    def after_learning(
        self, net: nn.Module, trace: PassTrace, found: Estimate, losses: Tensor
    ) -> None:
        """Parameters that the first estimate did not reach, what cannot learn, and coupled rows.

        A credit follows BatchNorm's statistics from row to row, as autograd does; scores do not.

        Args:
            net: The network.
            trace: The pass.
            found: What was made of it.
            losses: (C * B,) or (T, C * B).
        """
        self._autograd.end()
        self._silence.check(trace, found, losses.detach())
        if trace.step and not self._mixed and (trace.mixed or _follows(found)):
            self._mixed = True
            warn.of_mixed_losses(trace.step, trace.mixed)
        if trace.coupled and not self._coupled and any(w > 0 for w in found.weights.values()):
            self._coupled = True
            warn.of_coupling(trace.coupled)
        if not self._learned:
            self._learned = True
            warn.of_unreached(net, self._unreached)


def _follows(found: Estimate) -> bool:
    """Whether a part of an estimate is the losses' derivative."""
    return any(weight < 1 for weight in found.weights.values())
