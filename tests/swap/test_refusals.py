"""What a swap says of neurons that it cannot make noisy."""

from __future__ import annotations

import pytest
import snntorch as snn
from spikingjelly.activation_based import neuron
from torch import nn

from nit_snn import swap_neurons
from nit_snn.errors import SwapError
from nit_snn.neurons.registry import noisy_classes
from nit_snn.swap.refusals import REASONS, why_refused


class OwnLeaky(snn.Leaky):
    pass


class OwnKLIF(neuron.KLIFNode):
    pass


class Own(nn.Module):
    pass


def test_the_reasons_are_those_of_the_class_and_of_what_it_is_made_from() -> None:
    bent = REASONS["KLIFNode"]
    assert why_refused(neuron.KLIFNode) == bent == why_refused(OwnKLIF)
    assert why_refused(OwnLeaky) == "a subclass of Leaky, which may compute something else"
    assert why_refused(Own) == "it has an equation of its own"
    assert not REASONS.keys() & {
        kind.__name__ for kind in noisy_classes() if kind.__module__.startswith(("snn", "spik"))
    }


def test_the_error_has_the_reasons_and_the_ways_out() -> None:
    layers = [nn.Linear(3, 2), neuron.KLIFNode(), snn.Leaky(beta=0.5), OwnKLIF(), neuron.KLIFNode()]
    net = nn.Sequential(*layers)
    with pytest.raises(SwapError) as caught:
        swap_neurons(net)
    message = str(caught.value)
    assert f"1, 4 (KLIFNode): {REASONS['KLIFNode']}; 3 (OwnKLIF): " in message
    assert "keep=[KLIFNode, OwnKLIF]" in message and "register_neuron" in message
    assert type(net[2]) is snn.Leaky
