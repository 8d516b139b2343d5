"""NIR, the Neuromorphic Intermediate Representation: noisy networks out of here, and back.

A NIR graph describes one time step of a network in continuous time; both frameworks discretise it
by Euler's rule with a step of `dt` seconds. What the parameters become:

| neuron | node | parameters |
|---|---|---|
| `snntorch.Leaky` | LIF | tau = dt / (1 - beta), r = tau / dt, v_leak = v_reset = 0 |
| the same with beta = 1, `IFNode` | IF | r = 1 / dt |
| `snntorch.Synaptic` | CubaLIF | tau_syn = dt / (1 - alpha), w_in = tau_syn / dt, and as Leaky |
| `LIFNode`, `ParametricLIFNode` | LIF | tau = tau dt, r = 1 with `decay_input`, else tau / dt |

NIR knows no noise. The noise level of each neuron, in units of its membrane and per step of `dt`,
travels in the metadata of its node under "sigma", where other readers pass it over.

A NIR neuron resets to a constant, at once. A reset by subtraction, or none, is refused, and so is
whatever else NIR cannot express; all that is in the way is named in one error.
"""

from .reading import from_nir
from .writing import to_nir

__all__ = ["from_nir", "to_nir"]
