"""The loop: noise out to the network, observations and losses in, gradients back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LoopError
from ..learner import NITLearner
from ..noise.streams import ReplicaNoise
from . import checks
from .arrays import like, tensor
from .layer import Layer, LayerGradient, Observed
from .network import LoopNetwork, ReplayLayer


class Loop:
    """Makes gradients for a network of noisy neurons that runs elsewhere.

    The network runs with noise that is known, and says what went into each synapse. A twin of it
    replays the pass for a `nit_snn.NITLearner`, so the estimate is the learner's own.

    Args:
        layers: Descriptions by name, in the order in which the layers run.
        credit: "none": any loss, and nothing but noise and presynaptic activity is needed.
            "feedback": less variance; needs `errors`, spikes and weights (see `Observed`).
        **options: Those of `NITLearner` that need no network: replicas, residual, rule, baseline,
            antithetic, conditional, per_step_losses, learn_sigma and seed.

    Attributes:
        learner: The learner.

    Raises:
        LoopError: A description cannot be, or an option does not go with it.
        AttachError: The options contradict each other.

    Example:
        >>> loop = Loop({"out": Layer(inputs=3, neurons=2)}, replicas=8, seed=0)
        >>> weights = np.zeros((2, 3), np.float32)
        >>> x = loop.expand((np.random.default_rng(0).random((5, 4, 3)) < 0.5) * 1.0, axis=1)
        >>> eps = loop.noise(steps=5, samples=4)["out"]
        >>> spikes = x @ weights.T + 0.25 * eps > 1         # your simulator or chip
        >>> losses = (spikes.sum((0, 2)) == 0) * 1.0        # any loss, one for each row
        >>> loop.gradients(losses, {"out": Observed(inputs=x)})["out"].weights.shape
        (2, 3)
    """

    def __init__(self, layers: Mapping[str, Layer], *, credit: str = "none", **options: Any):
        checks.check_layers(layers)
        options["credit"] = credit
        checks.check_options(options, layers)
        self._network = LoopNetwork(layers)
        self.learner = NITLearner(self._network, **options)
        self._drawn: tuple[int, int, int] | None = None

    def __repr__(self) -> str:
        return repr(self.learner).replace("NITLearner", "Loop", 1)

    @property
    def replicas(self) -> int:
        """C, how often each sample is put through the network with different noise."""
        return self.learner.replicas

    def expand(self, values: Any, axis: int = 0) -> Any:
        """Repeats each sample C times, replica-major: row `c * B + b` is replica c of sample b.

        Args:
            values: A NumPy array or a tensor with B samples along `axis`.
            axis: The samples' axis; 1 for (T, B, \\*).
        """
        if isinstance(values, Tensor):
            return torch.cat([values] * self.replicas, axis)
        return np.concatenate([np.asarray(values)] * self.replicas, axis)

    def noise(self, steps: int, samples: int) -> dict[str, np.ndarray]:
        """eps of the next pass, the same until `gradients` was called: nobody has to keep it.

        Args:
            steps: T.
            samples: B.

        Returns:
            By layer, (T, C * B, neurons) of float32. It is standard normal; multiply it by sigma.
        """
        for what, value in (("steps", steps), ("samples", samples)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LoopError(f"{what} must be a positive whole number, got {value!r}.")
        self._drawn = (self.learner.passes, steps, samples * self.replicas)
        return {name: eps.numpy() for name, eps in self._eps().items()}

    def gradients(
        self, losses: Any, observed: Mapping[str, Observed], errors: Any = None
    ) -> dict[str, LayerGradient]:
        """The gradient of the mean loss in all weights, biases and learned noise levels.

        Args:
            losses: (N,), N = C * B; with `per_step_losses` (T, N).
            observed: What each layer did, by name.
            errors: For credit="feedback", the derivative of each row's loss in the spike counts of
                the last layer, (N, neurons), or in its spikes, (T, N, neurons).

        Returns:
            By layer, in NumPy arrays, or tensors where the losses are one.

        Raises:
            LoopError: What was handed over does not fit the descriptions, or spikes do not follow
                from the noise. Nothing was computed, and the call may be repeated.
            LossError: The losses do not fit.
        """
        layers, learner = self._network.replayed, self.learner
        values = tensor(losses, "losses")
        if values.dim() != (2 if learner.per_step_losses else 1):
            wanted = "(steps, rows)" if learner.per_step_losses else "(rows,)"
            raise LoopError(f"losses must have shape {wanted}, got {tuple(values.shape)}.")
        if set(observed) != set(layers):
            raise LoopError(
                f"observed must have the layers {', '.join(layers)}, got {', '.join(observed)}."
            )
        if not values.shape[-1] or values.shape[-1] % self.replicas:
            raise LoopError(
                f"{values.shape[-1]} losses cannot be shared out over {self.replicas} replicas."
            )
        drawn = None if self._drawn is None else self._drawn[1:]
        shape = checks.shape_of_pass(observed, drawn, values.shape[-1])
        steps, rows, dtype = shape
        *_, last = layers.values()
        feedback = learner.credit == "feedback"
        given = checks.check_errors(errors, values, last, steps, feedback)
        membranes = feedback or learner.conditional is True
        drawn_eps = self._eps() if drawn == (steps, rows) else {}
        replays = {
            name: checks.replay_of(
                layer, observed[name], drawn_eps.get(name), shape, membranes, learner.antithetic
            )
            for name, layer in layers.items()
        }
        parameters = {n: checks.parameters_of(layer, observed[n]) for n, layer in layers.items()}
        self._network.to(dtype)
        for name, layer in layers.items():
            layer.load(*parameters[name])
        self._network.zero_grad()
        learner.expand(values.new_empty(rows // self.replicas))  # so many rows there are
        with learner.record():
            outputs = self._network(replays, given is not None and given.dim() == 3)
        values = values.to(dtype)
        if given is not None:
            values = values + _derivative(outputs, given.to(dtype), values.dim())
        learner.backward(values)
        self._drawn = None
        return {name: _gradient(layer, losses) for name, layer in layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the noise's place, and what feedback has learned."""
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the loop that gave `state` stopped."""
        self.learner.load_state_dict(dict(state))
        self._drawn = None

    def _eps(self) -> dict[str, Tensor]:
        """The noise that `noise` has given out, (T, N, neurons), drawn again."""
        assert self._drawn is not None
        index, steps, rows = self._drawn
        learner, layers = self.learner, self._network.replayed
        source = ReplicaNoise(learner.seed, self.replicas, learner.antithetic)
        return {
            name: torch.stack(
                [
                    source.draw(
                        (rows, layer.layer.neurons),
                        index=index,
                        layer=k,
                        call=t,
                        layers=len(layers),
                    )
                    for t in range(steps)
                ]
            )
            for k, (name, layer) in enumerate(layers.items())
        }


def _derivative(outputs: Tensor, errors: Tensor, dims: int) -> Tensor:
    """Zero, with `errors` as its derivative in the outputs; (N,) or (T, N)."""
    found = ((outputs - outputs.detach()) * errors).sum(-1)
    return found if found.dim() == dims else found.sum(0)


def _gradient(layer: ReplayLayer, losses: Any) -> LayerGradient:
    """The gradient of one layer, in arrays of the losses' kind."""

    def taken(parameter: Tensor | None) -> Any:
        if parameter is None or not parameter.requires_grad:
            return None
        found = parameter.grad
        return like(torch.zeros_like(parameter) if found is None else found.clone(), losses)

    weights = tuple(taken(synapse.weight) for synapse in layer.synapses)  # type: ignore[arg-type]
    several = not isinstance(layer.layer.inputs, int)
    bias: Any = layer.synapses[0].bias
    return LayerGradient(weights if several else weights[0], taken(bias), taken(layer.sigma))
