"""Why some classes of neurons of the frameworks have no noisy counterpart.

The error of `swap_neurons` and the table in docs/neurons.md both say what is written here.
"""

from __future__ import annotations

from torch import nn

from ..neurons.registry import noisy_classes

_SEQUENCE = "a whole sequence at once: no place for noise at a step"
_TWO_WAYS = "it fires in two directions: three outcomes, not two"
_ADAPTS = "a second state follows its noisy membrane"
_TABLE = "it codes one number in several spikes of different height"
_FED_BACK = "a convolution of its own feeds its spikes back within the sequence"
_RATES = "a whole sequence at once, with a gradient of its rates"

#: By the name of the class.
REASONS = {
    "AssociativeLeaky": "a whole sequence at once: its state is a matrix that no spike resets",
    "DeltaLeaky": "it fires where its membrane changes, and not above a threshold",
    "LeakyParallel": "a whole sequence at once, by an RNN of torch: no place for noise at a step",
    "LinearLeaky": "a whole sequence at once, by a convolution: no place for noise at a step",
    "StateLeaky": "a whole sequence at once, by a convolution: no place for noise at a step",
    "SConv2dLSTM": "its LSTM is a convolution: take SLSTM, or write its counterpart",
    "ActivationAwareIFNode": "its thresholds and offsets, a channel each, come from a conversion",
    "ComplementaryLIFNode": _ADAPTS,
    "DSRIFNode": _RATES,
    "DSRLIFNode": _RATES,
    "FewSpikeNode": _TABLE,
    "HGNode": _TABLE,
    "OutlierAwareThresholdNode": _TABLE,
    "FlexSN": "its equation is a function of yours",
    "GatedLIFNode": "its thresholds and gates are learned, a step of the sequence each",
    "ILCCUBALIFNode": _FED_BACK,
    "ILCIFNode": _FED_BACK,
    "ILCLIFNode": _FED_BACK,
    "ILIFNode": "it fires whole numbers, not zeros and ones",
    "IzhikevichNode": _ADAPTS,
    "KLIFNode": "a ReLU bends its membrane after the update",
    "LIAFNode": "it sends an activation of its membrane, not spikes",
    "MPBNLIFNode": "a BatchNorm of its membrane carries the noise of a row to the others",
    "MaskedPSN": _SEQUENCE,
    "PSN": _SEQUENCE,
    "SlidingPSN": _SEQUENCE,
    "NoisyCUBALIFNode": "it has noise of its own, on its spikes, too",
    "NoisyILCCUBALIFNode": "it has noise of its own, on its spikes, too",
    "OTTTLIFNode": "a LIFNode with a gradient of its own: take LIFNode",
    "SLTTLIFNode": "a LIFNode with a gradient of its own: take LIFNode",
    "RAFNode": "its membrane is a complex number",
    "STBIFNode": _TWO_WAYS,
    "TernaryIFNode": _TWO_WAYS,
    "TernaryLIFNode": _TWO_WAYS,
}


def why_refused(kind: type[nn.Module]) -> str:
    """Why a class has no noisy counterpart."""
    noisy = {plain.__name__ for plain in noisy_classes()}
    for base in kind.__mro__:
        if not base.__module__.startswith(("snntorch", "spikingjelly")):
            continue
        if base.__name__ in REASONS:
            return REASONS[base.__name__]
        if base.__name__ in noisy:
            return f"a subclass of {base.__name__}, which may compute something else"
    return "it has an equation of its own"


def refusal(foreign: dict[str, nn.Module]) -> str:
    """What the error says of neurons without a noisy counterpart, by their names in a network."""
    named: dict[type[nn.Module], list[str]] = {}
    for name, module in foreign.items():
        named.setdefault(type(module), []).append(name)
    listed = "; ".join(
        f"{', '.join(names)} ({kind.__name__}): {why_refused(kind)}"
        for kind, names in named.items()
    )
    kinds = ", ".join(kind.__name__ for kind in named)
    return (
        f"No noisy counterpart for {listed}. Nothing was changed: a spiking neuron without noise "
        "would bring its surrogate gradient back. Behind the last noisy neuron it may: "
        f"swap_neurons(net, keep=[{kinds}]). Elsewhere take another neuron, or write its noisy "
        "counterpart: nit_snn.neurons.register_neuron."
    )
