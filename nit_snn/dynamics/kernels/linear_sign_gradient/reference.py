"""The direction of a Linear layer from spikes kept as bits, in torch: the kernel's oracle."""

from __future__ import annotations

from torch import Tensor

from ....noise.philox import Stream, noise
from ....recording.bits import unpack
from ...lif import sign


def linear_sign_gradient(
    bits: Tensor,
    weight: Tensor,
    stream: Stream,
    outputs: int,
    steps: int,
    first_step: int = 0,
    slot: int = 0,
) -> Tensor:
    """Eq. 3 for a Linear layer: `sum A * sign(eps) * (2 x - 1)` over rows and steps.

    The input of the bias counts as a spike.

    Args:
        bits: Presynaptic spikes x, (planes, N, I) bytes (see `nit_snn.recording.bits`).
        weight: A, float32, (N,).
        stream: Noise of the layer's outputs.
        outputs: O.
        steps: T.
        first_step: Number of the first step in the noise, counted from the layer's first call in
            the pass.
        slot: Number of the first step in `bits`.

    Returns:
        (O, I + 1), float32: the direction of the weight, and of the bias as its last column.
    """
    _, rows, inputs = bits.shape
    own = weight.float()[:, None]
    total = own.new_zeros(outputs, inputs + 1)
    for t in range(steps):
        (eps,) = noise(stream, range(first_step + t, first_step + t + 1), rows, outputs)
        (x,) = unpack(bits, range(slot + t, slot + t + 1))
        score = own * sign(eps)
        total[:, :-1].addmm_(score.T, 2 * x - 1)
        total[:, -1] += score.sum(0)
    return total
