"""One update of `.grad` from a recorded pass: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import LossError, NonFiniteGradientError
from ..estimators.estimator import Estimate, Estimator
from ..estimators.residual import WienerResidual, halves
from ..estimators.scores import LayerCotangents
from ..neurons.base import NoisyNeuron
from ..recording.trace import PassTrace
from ..validation.capture import being_captured
from .accumulate import Accumulator
from .nonfinite import kept_out


@dataclass(frozen=True)
class Update:
    """Writes gradients into `.grad` of a network's parameters.

    Attributes:
        net: The network.
        neurons: Its noisy neurons, by name.
        estimator: What turns losses into cotangents.
        on_nonfinite: What a batch does whose gradient is NaN or infinite (see `NITLearner`).
        strict: Whether losses have to have the derivative that the credit asks for.
    """

    net: nn.Module
    neurons: Mapping[str, NoisyNeuron]
    estimator: Estimator
    on_nonfinite: str
    strict: bool = False

    def write(
        self, trace: PassTrace, losses: Tensor, shared: Tensor | None = None
    ) -> tuple[Tensor, Estimate]:
        """Adds the gradient of the mean loss.

        Args:
            trace: What the pass left behind.
            losses: (C * B,) or (T, C * B), checked, with a graph if there is one.
            shared: (C,) or (T, C), likewise, what replicas add to their mean loss.

        Returns:
            The mean loss, that of all processes, and the estimate.

        Raises:
            LossError: The losses have no derivative, and the estimator is strict.
            NonFiniteGradientError: The gradient is not finite. `.grad` is as it was.
        """
        estimator = self.estimator.fitting(trace)
        ranks, residual = estimator.ranks, estimator.residual
        measure = isinstance(residual, WienerResidual) and residual.measures()
        measure = measure and not being_captured()
        gathered = Accumulator(trace, estimator.score.signs)
        take = None if measure else gathered.take
        found = estimator.estimate(trace, losses, measure, shared, take)
        asked = self.strict and estimator.credit.reach is not None
        if asked and losses.numel() and not (found.reached or found.passed_on):
            raise LossError(
                f"credit={estimator.credit.name!r} needs a loss with a derivative in the "
                "spikes of a noisy layer; this one has none. Leave credit='auto', or attach the "
                "learner with 'none'."
            )
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        # This process's part of the mean over all rows.
        mean = losses.sum() / max(1, losses.shape[-1] * ranks.size)
        if shared is not None:
            mean = mean + shared.sum() / (trace.replicas * ranks.size)
        total = ranks.sum(mean.detach())  # no exchange may fail once `.grad` is written
        if isinstance(residual, WienerResidual):
            if measure:
                samples = losses.shape[-1] // trace.replicas
                self._measure(trace, found, residual, parameters, samples)
            residual.passes += 1
        gathered.add_layers(found.parts())
        gathered.follow_held([mean] if mean.requires_grad else [])
        outputs, cotangents = gathered.all_outputs()
        whole = not gathered.outputs
        # Whatever comes through a graph, or from other processes, is known only afterwards.
        whole = whole and not (mean.requires_grad or ranks.shares)
        known = dict(zip(outputs, cotangents, strict=True)) if whole else None
        if mean.requires_grad:
            outputs.append(mean)
            cotangents.append(torch.ones_like(mean))
        try:
            with (
                kept_out(self.net, self.neurons, self.on_nonfinite, known),
                ranks.summing(parameters),
            ):
                if outputs:
                    torch.autograd.backward(outputs, cotangents)
        except NonFiniteGradientError as error:
            error.mean = total
            raise
        return total, found

    def _measure(
        self,
        trace: PassTrace,
        found: Estimate,
        residual: WienerResidual,
        parameters: list[nn.Parameter],
        samples: int,
    ) -> None:
        """What the residual of each layer is worth, for the passes to come."""
        signed = self.estimator.score.signs
        half = _first_half(trace, samples)

        def gradient(part: LayerCotangents) -> dict[Tensor, Tensor]:
            return Accumulator(trace, signed).add_layers([part]).gradients(parameters)

        products: dict[str, Tensor] = {}
        for layer in filter(found.reached.__contains__, trace.active):  # in order, unlike a set
            cheap, exact = (_held(parts[layer]) for parts in (found.cheap, found.unbiased))
            found.cheap[layer], found.unbiased[layer] = cheap, exact
            mask = half if layer.order is None else layer.order.spread(half)
            rest = [
                _less(gradient(_rows(exact, rows)), gradient(_rows(cheap, rows)))
                for rows in (mask, 1 - mask)
            ]
            products[layer.name] = halves(*rest)
        if products:  # a GPU is waited for once
            device = next(iter(products.values())).device
            numbers = torch.stack([x.to(device) for x in products.values()]).tolist()
            for name, own in zip(products, numbers, strict=True):
                residual.update(name, *own)


def _first_half(trace: PassTrace, samples: int) -> Tensor:
    """(C * B,): 1 for all replicas of the first half of the samples, 0 for the others."""
    layer = next(iter(trace.active))
    mask = torch.zeros(trace.replicas, samples, device=layer.neuron.sigma.device)
    mask[:, : samples // 2] = 1
    return mask.flatten()


def _held(part: LayerCotangents) -> LayerCotangents:
    """The same, to be gone through more than once."""
    return LayerCotangents(part.layer, list(part.chunks), part.sigma)


def _rows(part: LayerCotangents, mask: Tensor) -> LayerCotangents:
    """The share of some rows; noise levels are left out."""
    chunks = []
    for chunk in part.chunks:
        rows = mask.to(chunk.values.dtype).view(-1, *(1,) * (chunk.values.dim() - 2))
        chunks.append(replace(chunk, values=chunk.values * rows))
    return LayerCotangents(part.layer, chunks)


def _less(one: Mapping[Tensor, Tensor], other: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    nothing = torch.zeros(())
    return {p: one.get(p, nothing) - other.get(p, nothing) for p in {**one, **other}}
