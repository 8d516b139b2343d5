"""The likelihood-ratio vector-Jacobian product: from a cotangent of the outputs to the images.

With x the images, eps the noise of all neurons and f(x, eps) the outputs of one draw, the mean
F(x) = E[f] has a derivative although no spike has one. For a cotangent g (Eq. 8 of the paper, with
the image in the place of the weights):

    d<g, F>/dx = E[ (<g, f> - b) * sum_t sum_i (eps_it / sigma_i) * dm_it/dx + <g, df/dx> ]

The first sum runs over the neurons whose drift m depends on the images through differentiable
maps alone, whether in the first layer or, behind a skip connection, in a later one; the last term
is what reaches the outputs without any spike. Both are read off the local graphs that a recorded
pass leaves (see `nit_snn.recording.recorder`), in which spikes are constants. The baseline b is the
mean of <g, f> over the other draws of the same image.

For g as given the estimate is unbiased. The g of a loss that is not linear comes from the mean of
the same C draws, so the gradient of such a loss has a bias of order 1 / C, as with any surrogate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import ClassifierError
from ..estimators.credit import make_credit
from ..estimators.estimator import Estimator
from ..estimators.residual import FixedResidual
from ..estimators.scores import NoiseScore, SpikeScore
from ..gradients.accumulate import Accumulator
from ..recording.trace import PassTrace

AVERAGES = ("logits", "probabilities")


@dataclass(frozen=True, eq=False)
class Averaged:
    """The mean over draws, and what each draw adds to it.

    Attributes:
        mean: (N, K).
        each: (C, N, K), with the derivatives `mean = mean_c each_c` would have at this place.
    """

    mean: Tensor
    each: Tensor

    @staticmethod
    def of(logits: Tensor, average: str) -> Averaged:
        """The mean of the logits, or the log of the mean of their softmax.

        Args:
            logits: (C, N, K).
            average: One of `AVERAGES`.
        """
        if average == "logits":
            return Averaged(logits.mean(0), logits)
        logs = logits.log_softmax(-1)
        mean = logs.logsumexp(0) - torch.tensor(float(len(logits))).log().item()
        # d log E[p] = E[dp] / E[p]; the ratio is at most C, also where both underflow.
        return Averaged(mean, (logs - mean.detach()).exp())


@dataclass(eq=False)
class Pass:
    """One recorded forward pass, from the images to the averaged outputs.

    Attributes:
        net: The network.
        trace: What it left behind.
        estimator: What turns losses into cotangents.
        images: (N, *), the leaf of its graphs.
        averaged: What came out, with the graphs that lead to the images and through no spike.
    """

    net: nn.Module
    trace: PassTrace
    estimator: Estimator
    images: Tensor
    averaged: Averaged

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """The unbiased estimate of `d<g, F>/dx`, (N, *), from g, (N, K).

        Raises:
            ClassifierError: Nothing differentiable leads from the images to a noisy neuron, or a
                credit finds no derivative.
        """
        with torch.enable_grad(), frozen(self.net):
            losses = (self.averaged.each * cotangent).sum(-1)
            estimate = self.estimator.estimate(self.trace, losses.flatten())
            if self.estimator.credit.reach and not estimate.reached and losses.numel():
                raise ClassifierError(
                    "The logits have no derivative in the spikes of any noisy layer, which a "
                    "credit needs. Use credit='none'."
                )
            gathered = Accumulator(self.trace, signed=False).add_layers(estimate.parts())
            # The estimate is of a mean over images, and each of them has a gradient of its own.
            outputs = list(gathered.outputs)
            cotangents = [each * losses.shape[1] for each in gathered.cotangents]
            if self.averaged.mean.requires_grad:
                outputs.append(self.averaged.mean)
                cotangents.append(cotangent)
            found = None
            if outputs:
                # The graph is kept: attacks may ask for one class after another.
                (found,) = torch.autograd.grad(
                    outputs, self.images, cotangents, retain_graph=True, allow_unused=True
                )
        if found is None:
            raise ClassifierError(
                "No gradient reaches the images: nothing differentiable leads from them to a "
                "noisy neuron or to the logits. An encoder that rounds or draws spikes cuts it off."
            )
        return found


def lr_estimator(conditional: bool, credit: str) -> Estimator:
    """The unbiased estimator with these options of a `NoisyClassifier`."""
    score = SpikeScore() if conditional else NoiseScore()
    return Estimator(score, "leave-one-out", make_credit(credit), FixedResidual(1.0))


class LikelihoodRatio(torch.autograd.Function):
    """Averaged outputs of a recorded pass; backward is its likelihood-ratio product."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, run: Callable[[Tensor], Pass]) -> Tensor:
        with torch.enable_grad():
            ctx.recorded = run(images.detach().requires_grad_())
        return ctx.recorded.averaged.mean.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return ctx.recorded.pull_back(cotangent), None


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside, so that graphs lead to the images alone."""
    trained = [p for p in net.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
