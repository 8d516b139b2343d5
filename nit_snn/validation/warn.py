"""What a learner warns of: parameters that no gradient reaches, and estimates that are biased."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from torch import nn

from ..errors import (
    BiasWarning,
    CarriedStateWarning,
    MisuseWarning,
    SilentLayerWarning,
    UnreachedParameterWarning,
)
from ..estimators.estimator import Estimator
from ..estimators.residual import WienerResidual
from ..neurons.base import NoisyNeuron
from . import diagnosis, network


def of_coupling(coupled: Collection[str]) -> None:
    """BatchNorm that lets the noise of one row reach the loss of another, which scores leave out.

    How large the bias is, and what trains: docs/benchmarks/batch_norm.json.
    """
    warnings.warn(
        f"BatchNorm in training mode behind a noisy layer: {', '.join(coupled)}. Its statistics "
        "carry the noise of one row to the losses of the others. The likelihood ratio takes them "
        "as given: for the layers before it is biased, by as much as the gradient itself where "
        "we measured it, in batches of any size. If the loss has a derivative in the spikes, leave "
        "credit='auto' or take residual=0, which follow the statistics. Else train on: from "
        "scratch it learned more in training mode than in eval mode. Unbiased is eval mode alone.",
        BiasWarning,
        stacklevel=5,
    )


def of_coupled_losses(coupled: Collection[tuple[str | None, str]], estimator: Estimator) -> None:
    """Losses that depend on the noise of other samples.

    Args:
        coupled: Between which layers, or a layer and the losses.
        estimator: What charges each row with its own sample's loss.
    """
    pairs = [f"{layer} and {reader or 'the losses'}" for reader, layer in coupled]
    ways = (
        "A term of all samples goes in as learner.backward(losses, shared=term), with one number "
        "for each replica: term = x.unflatten(0, (replicas, -1)).flatten(1).mean(1). If all of "
        "the loss couples samples, as a contrastive loss or a graph does, give "
        "learner.backward() one loss for each replica; if a sample has several rows, one for each "
        "sample."
    )
    what = f"The loss of one sample depends on the noise of others, between {', '.join(pairs)}."
    if isinstance(estimator.residual, WienerResidual):
        warnings.warn(
            f"{what} The derivative of the losses covers that, the likelihood ratio does not, so "
            f"residual='auto' leaves the likelihood ratio out. To have both: {ways}",
            MisuseWarning,
            stacklevel=6,
        )
        return
    warnings.warn(
        f"{what} The likelihood ratio charges each row with the loss of its own sample, and "
        f"leaves that out: the estimate is biased. {ways}",
        BiasWarning,
        stacklevel=6,
    )


def of_mixed_losses(step: str, auto: bool) -> None:
    """Losses that are the sum of a part without a derivative and of one that has one.

    Args:
        step: The function that made the first.
        auto: Whether the learner takes such losses for losses without a derivative.
    """
    what = f"A part of the losses has no derivative: it went through {step}."
    if auto:
        warnings.warn(
            f"{what} A credit would follow the rest alone, so credit='auto' takes the likelihood "
            "ratio, credit='none'. With less variance: credit='layers', residual=1, replicas=16. "
            "If the part is meant to count without a derivative, detach() what it is made of.",
            MisuseWarning,
            stacklevel=5,
        )
        return
    warnings.warn(
        f"{what} The credit follows the derivative, that is the rest alone: the estimate is "
        "biased. Take residual=1 and two replicas or more, or credit='none'. If the part is meant "
        "to count without a derivative, detach() what it is made of.",
        BiasWarning,
        stacklevel=5,
    )


def of_merged_rows(names: Collection[str]) -> None:
    """Layers of which nobody can say which rows of a replica belong to which sample."""
    warnings.warn(
        f"Nothing shows which rows of {', '.join(names)} belong to which sample, as the losses "
        "have no derivative. All rows of a replica are charged with its mean loss: that is "
        "unbiased, with more variance.",
        MisuseWarning,
        stacklevel=6,
    )


def of_habit() -> None:
    """A recorded pass that autograd was asked to learn from, and the learner was not."""
    warnings.warn(
        "The losses of the last recorded pass were never given to learner.backward(), but "
        "gradients came from autograd. loss.backward() trains what lies behind the last noisy "
        "neuron, and nothing else. Take one loss per row, reduction='none', and call "
        "learner.backward(losses) in its place; to train by a surrogate gradient, as "
        "snntorch.backprop.BPTT does, leave record() out.",
        MisuseWarning,
        stacklevel=6,
    )


def of_surrogate() -> None:
    """A gradient by autograd, while a learner is attached that has recorded nothing."""
    warnings.warn(
        "A gradient came from autograd, and no pass was recorded: it is the surrogate's, as "
        "loss.backward() and snntorch.backprop.BPTT have it, and the learner has no part in it. "
        "Run the network inside `with learner.record():`, and call learner.backward(losses). If "
        "the surrogate is meant, attach the learner afterwards.",
        MisuseWarning,
        stacklevel=2,
    )


def of_foreign(found: Mapping[str, str]) -> None:
    """Derivatives of the user's own in front of noisy layers."""
    if found:
        listed = ", ".join(f"{what} in front of {layer}" for what, layer in found.items())
        warnings.warn(
            f"A torch.autograd.Function lies in front of a noisy layer: {listed}. If its backward "
            "is a surrogate's, what lies before it learns by this surrogate, and not from the "
            "noise. Make that neuron noisy (nit_snn.neurons.register_neuron, or NoisyActivation "
            "around the step), or move it behind the last noisy layer. If the derivative is exact, "
            "ignore this BiasWarning.",
            BiasWarning,
            stacklevel=7,
        )


def of_unreached(net: nn.Module, known: Collection[str]) -> None:
    """Parameters that got no gradient from an estimate, but for those that are `known`."""
    missing = [name for name in network.unreached_parameters(net) if name not in known]
    if missing:
        warnings.warn(
            f"No gradient reaches: {', '.join(missing)}. The noise reaches what enters the "
            "drift of a noisy neuron; what lies behind the last one needs a loss with a graph. "
            "Freeze them with requires_grad_(False).",
            UnreachedParameterWarning,
            stacklevel=5,
        )


def of_unreachable(neurons: Mapping[str, NoisyNeuron]) -> set[str]:
    """What the noise cannot teach anything, whatever the loss; their names."""
    found = network.unreachable_parameters(neurons)
    if found:
        listed = "; ".join(f"{name} ({reason})" for name, reason in found.items())
        warnings.warn(
            f"No gradient will reach: {listed}. Freeze them with requires_grad_(False).",
            UnreachedParameterWarning,
            stacklevel=4,
        )
    return set(found)


def of_quantised(net: nn.Module) -> None:
    """Layers whose weights are integers."""
    found = diagnosis.quantised(net)
    if found:
        listed = ", ".join(f"{name} ({kind})" for name, kind in found.items())
        warnings.warn(
            f"No gradient will reach: {listed}. The weights are integers, which no step can move, "
            "and no gradient runs through to a layer before in the same block: train first, and "
            "quantise then.",
            UnreachedParameterWarning,
            stacklevel=4,
        )


def of_new_parameters(names: Collection[str]) -> None:
    """Parameters that were not there when the learner was attached."""
    warnings.warn(
        f"These parameters came after the learner: {', '.join(names)}. They get their gradients, "
        "but an optimizer that was made before still holds the old ones: make it anew from "
        "learner.parameters().",
        MisuseWarning,
        stacklevel=6,
    )


def of_carried(names: Collection[str]) -> None:
    """Membranes that were not reset between two passes."""
    warnings.warn(
        f"{', '.join(names)} started this pass from the membrane that the last one left. Between "
        "independent batches call learner.reset(), or the framework's own function. If one "
        "sequence goes on, this is right: ignore CarriedStateWarning then.",
        CarriedStateWarning,
        stacklevel=7,
    )


def of_no_expansion(replicas: int, rows: int) -> None:
    """Rows that are taken for replicas, though nothing was expanded."""
    warnings.warn(
        f"Nothing went through learner.expand(), so the {rows} rows are taken for {replicas} "
        f"replicas of {rows // replicas} samples. That is right if you repeated the batch "
        "yourself. Other samples make a baseline that explains little: xr, yr = "
        "learner.expand(x, y).",
        MisuseWarning,
        stacklevel=7,
    )


def of_silence(silent: Collection[str], always: Collection[str]) -> None:
    """Layers that never fire, or always, so far from their thresholds that no noise changes it."""
    said = []
    if silent:
        said.append(f"No neuron fired in this pass in: {', '.join(silent)}.")
    if always:
        said.append(f"Every neuron fired at every step of this pass in: {', '.join(always)}.")
    warnings.warn(
        f"{' '.join(said)} The membranes are so far from their thresholds that neither noise nor "
        "credit gets there: nothing will be learned in these layers. Scale their weights to the "
        "data: nit_snn.calibrate(net, x), before the optimizer is made; or mend the biases.",
        SilentLayerWarning,
        stacklevel=6,
    )


def of_equal_losses(rows: int) -> None:
    """Losses that do not depend on the noise."""
    warnings.warn(
        f"All losses were equal so far, {rows} of them in the last pass, and they have no "
        "derivative in the spikes: there is nothing to learn from. Do the layers fire? "
        "nit_snn.calibrate(net, x) scales their weights to the data.",
        SilentLayerWarning,
        stacklevel=7,
    )
