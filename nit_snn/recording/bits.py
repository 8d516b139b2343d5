"""Spikes as bits: one bit for each neuron and step, eight steps in a byte.

Bits of a sequence are kept as (planes, *) bytes, where bit `t % 8` of plane `t // 8` is the spike
of step t. A neuron's steps lie in its own byte, so that a step is added with one pass over
bytes, and a sum over time is a matter of counting bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def planes(steps: int) -> int:
    """How many bytes a neuron needs for so many steps."""
    return -(-steps // 8)


def empty(steps: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Room for the spikes of so many steps: (planes, *) bytes, none of them set."""
    return torch.zeros((planes(steps), *shape), dtype=torch.uint8, device=device)


def pack_into(bits: Tensor, spikes: Tensor, step: int) -> None:
    """Sets the bits of one step, in place, where there is a spike.

    Args:
        bits: (planes, *) bytes in which this step is still unset.
        spikes: (*), zeros and ones, or bool.
        step: Which.
    """
    plane = bits[step // 8]
    torch.bitwise_or(plane, spikes.to(torch.uint8) << step % 8, out=plane)


class Packer:
    """Packs steps one after the other, from the first bit on.

    Eight steps are summed as numbers before they become bytes, since torch converts numbers to
    bytes several times slower than it adds them.

    Args:
        bits: (planes, *) bytes for all steps.
    """

    def __init__(self, bits: Tensor) -> None:
        self.bits = bits
        self.steps = 0
        self._sum: Tensor | None = None

    def add(self, spikes: Tensor) -> None:
        """One more step: (*), zeros and ones in a floating-point type."""
        bit = self.steps % 8
        if self._sum is None or bit == 0:
            self._sum = spikes.clone()
        else:
            self._sum.add_(spikes, alpha=2**bit)
        self.steps += 1
        if bit == 7:
            self.close()

    def close(self) -> None:
        """Writes what has been summed."""
        if self._sum is not None:
            self.bits[(self.steps - 1) // 8].copy_(self._sum)
            self._sum = None


def pack(spikes: Tensor) -> Tensor:
    """(T, *) zeros and ones as (planes, *) bytes.

    Example:
        >>> pack(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([[3, 2]], dtype=torch.uint8)
    """
    found = empty(len(spikes), spikes.shape[1:], spikes.device)
    packer = Packer(found)
    for spike in spikes:
        packer.add(spike if spike.is_floating_point() else spike.float())
    packer.close()
    return found


def unpack(bits: Tensor, steps: range, dtype: torch.dtype = torch.float32) -> Tensor:
    """The spikes of some steps as numbers, (len(steps), *).

    Example:
        >>> unpack(torch.tensor([[3, 2]], dtype=torch.uint8), range(2))
        tensor([[1., 0.],
                [1., 1.]])
    """
    if not len(steps):
        return torch.empty((0, *bits.shape[1:]), dtype=dtype, device=bits.device)
    return torch.stack([(bits[t // 8] >> t % 8).bitwise_and_(1).to(dtype) for t in steps])
