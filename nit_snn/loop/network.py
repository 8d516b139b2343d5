"""The twin of a network that runs elsewhere: it has the parameters, and replays what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..dynamics.executor import Budget
from ..dynamics.lif import Current, Lif, MembraneRule, MembraneUpdate, number, synaptic_current
from ..dynamics.needs import Needs
from ..errors import LoopError
from ..neurons.base import NoisyNeuron
from ..noise.layer_noise import LayerNoise
from .layer import Layer
from .replay import Replay, ReplayExecutor, Told


def rule_of(lif: Lif, threshold: float | Tensor) -> MembraneRule:
    """What a neuron with this description does at every step.

    Args:
        lif: How its membrane is charged and reset.
        threshold: Where it fires.
    """
    dynamics, carry = lif.dynamics, lif.decay

    def jump(membrane: Tensor | float) -> Tensor | float:
        if dynamics.reset == "none":
            return 0.0
        if dynamics.reset == "soft":
            return -threshold if dynamics.delayed else -carry * threshold
        return carry * (dynamics.v_reset - membrane)

    return MembraneRule(
        threshold,
        or_equal=dynamics.or_equal,
        rest=dynamics.rest,
        lif=lif,
        carry=carry,
        wiped=dynamics.reset in ("hard", "whole"),
        jump=jump,
        delayed=dynamics.delayed and dynamics.reset != "none",
    )


class ReplayLayer(NoisyNeuron):
    """A layer that does what was observed, with the synapses that lead to it.

    Args:
        name: Its name.
        layer: Its description.
    """

    def __init__(self, name: str, layer: Layer) -> None:
        super().__init__()
        self.layer, self.label = layer, name
        self.synapses = nn.ModuleList(
            nn.Linear(inputs, layer.neurons, bias=layer.bias and not k)
            for k, inputs in enumerate(layer.groups)
        )
        for parameter in self.synapses.parameters():
            nn.init.zeros_(parameter)
        self._init_noise(torch.as_tensor(layer.sigma, dtype=torch.float32))
        self._replay: Replay | None = None

    @property
    def wipes_current(self) -> bool:
        """Whether a reset takes the new current with it, so that its gain hangs on the spikes."""
        return self.layer.lif.dynamics.reset == "whole"

    def _like(self, value: Any) -> float | Tensor:
        """A parameter as a number or a tensor of the layer's type."""
        found = torch.as_tensor(value).detach()
        return number(found if found.numel() == 1 else found.to(self.sigma.dtype))

    @property
    def _rule(self) -> MembraneRule:
        lif = self.layer.lif
        lif = replace(lif, decay=self._like(lif.decay), gain=self._like(lif.gain), learns=False)
        return rule_of(lif, self._like(self.layer.threshold))

    def forward(self, replay: Replay) -> Tensor | None:
        """Goes through the pass that was observed.

        Args:
            replay: What the layer did.

        Returns:
            Its spikes, (T, N, neurons), if they are known.
        """
        self._replay = replay
        rule = self._rule_now
        assert rule.lif is not None
        currents = self._currents(replay, rule.lif.gain)
        state = torch.full_like(replay.noise[0], rule.rest)
        update = MembraneUpdate(currents, state, _no_drift, rule, several=True)
        with self._cut():
            return self._step(update).spikes

    def _currents(self, replay: Replay, gain: float | Tensor) -> tuple[Current, ...]:
        """Straight from the synapses, or what a memory and a reset make of their sum."""
        found = [s(x) for s, x in zip(self.synapses, replay.inputs, strict=True)]
        decay = self.layer.current_decay
        if not decay and not self.wipes_current:
            return tuple(Current(current, gain) for current in found)
        with self._memory():
            held = [self._hold(current) for current in found]
            current = sum(held[1:], held[0])
            if decay:
                current = _filtered(current, torch.as_tensor(decay, dtype=current.dtype))
            if self.wipes_current:
                assert replay.spikes is not None
                kept = torch.ones_like(replay.spikes)
                kept[1:] -= replay.spikes[:-1]
                current = current * kept
        return (Current(current, gain),)

    def _own_executor(
        self, noise: LayerNoise, sigma: Tensor, needs: Needs, budget: Budget
    ) -> ReplayExecutor:
        rule, layer = self._rule_now, self.layer
        assert self._replay is not None and rule.lif is not None
        told = Told(
            self.label, rule.lif, number(rule.threshold), rule.or_equal, rule.height, layer.exact
        )
        return ReplayExecutor(noise, sigma, needs, budget, self._replay, told)

    def load(self, weights: Sequence[Tensor], bias: Tensor | None, sigma: Tensor) -> None:
        """Takes over what the network ran with; weights that are not known stay as they are."""
        pairs: list[tuple[Any, Tensor]] = [(self.sigma, sigma)]
        pairs += [(s.weight, w) for s, w in zip(self.synapses, weights, strict=False)]
        if bias is not None:
            pairs.append((self.synapses[0].bias, bias))
        for held, value in pairs:
            held.data = value.to(held.dtype, copy=True)

    def reset_state(self) -> None:
        """Nothing is carried from pass to pass."""
        self._replay = None

    def detach_state(self) -> None:
        """Nothing is carried from pass to pass."""
        self._replay = None

    def why_no_firing_probability(self) -> str | None:
        """It fires where the membrane crosses the threshold."""
        return None


class LoopNetwork(nn.Module):
    """All layers of the network.

    Args:
        layers: Their descriptions, in the order in which they run.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, ReplayLayer(name, layer))

    @property
    def replayed(self) -> dict[str, ReplayLayer]:
        """The layers by name."""
        return {n: layer for n, layer in self.named_children() if isinstance(layer, ReplayLayer)}

    def forward(self, replays: Mapping[str, Replay], over_time: bool) -> Tensor | None:
        """Replays a pass; returns what the loss reads.

        Args:
            replays: What each layer did.
            over_time: Whether the loss reads the last layer's spikes step by step, and not their
                counts.

        Returns:
            Spikes, (T, N, neurons), or their counts, (N, neurons); None if they are not known.
        """
        spikes: Tensor | None = None
        for name, layer in self.replayed.items():
            spikes = layer(replays[name])
        return spikes if spikes is None or over_time else spikes.sum(0)


def _filtered(current: Tensor, decay: Tensor) -> Tensor:
    """A current with a memory, (T, N, neurons)."""
    held, steps = torch.zeros_like(current[0]), []
    for now in current:
        held = synaptic_current(now, held, decay)
        steps.append(held)
    return torch.stack(steps)


def _no_drift(*_: Tensor) -> Tensor:
    raise LoopError("A layer that is replayed has no drift but its closed form.")
