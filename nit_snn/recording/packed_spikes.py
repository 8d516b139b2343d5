"""Spikes on their way from a noisy neuron to the next synapse, kept there as bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics.backend import backend_of
from ..dynamics.kernels.unpack_bits.op import unpack_bits
from . import bits
from .provenance import find, reshaped_from


@dataclass(eq=False, slots=True)
class PackedSpikes:
    """What went into a synapse: spikes of one step, or of several, as bits.

    Attributes:
        bits: (planes, N, *) bytes, of as many neurons as `shape` has.
        slots: Which of their bits: one for each step, or one that all of `shape` shares.
        shape: (N, *) of one step, (T, N, *) of several.
    """

    bits: Tensor
    slots: range
    shape: torch.Size

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The spikes as numbers, in the shape that the synapse saw."""
        if self.bits.device.type == "cuda" and backend_of(self.bits.device).name == "cupy":
            found = unpack_bits(self.bits, self.slots.start, len(self.slots), dtype)
        else:
            found = bits.unpack(self.bits, self.slots, dtype)
        return found.view(self.shape)

    @property
    def in_steps(self) -> bool:
        """Whether each of several steps, (T, N, *), has a bit of its own."""
        return len(self.slots) == self.shape[0]

    def part(self, steps: range) -> PackedSpikes:
        """Some of several steps."""
        if not self.in_steps:
            own = self.bits.view(len(self.bits), *self.shape)[:, steps.start : steps.stop]
            return PackedSpikes(own, self.slots, own.shape[1:])
        slots = self.slots[steps.start : steps.stop]
        return PackedSpikes(self.bits, slots, torch.Size([len(slots), *self.shape[1:]]))


@dataclass(eq=False)
class SpikeTrain:
    """The spikes of one neuron in a pass, as bits.

    Memory is taken for eight steps at first, then for twice as many each time, up to 64: many small
    pieces between the numbers of each step would leave gaps that nothing else fits into.
    """

    planes: Tensor | None = None
    used: int = 0

    def slot(self, shape: torch.Size, device: torch.device) -> tuple[Tensor, int]:
        """Where the bits of one more step go: (planes, N, *) bytes, and which bit."""
        if self.planes is None or self.planes.shape[1:] != shape:
            self.planes, self.used = bits.empty(8, shape, device), 0
        elif self.used == 8 * len(self.planes):
            steps = min(64, 2 * self.used)
            self.planes, self.used = bits.empty(steps, shape, device), 0
        self.used += 1
        return self.planes, self.used - 1

    def add(self, spikes: Tensor) -> PackedSpikes:
        """One more step, (N, *) zeros and ones, or whatever goes in at once."""
        planes, slot = self.slot(spikes.shape, spikes.device)
        bits.pack_into(planes, spikes, slot)
        return PackedSpikes(planes, range(slot, slot + 1), spikes.shape)


@dataclass(eq=False)
class BinarySpikes:
    """The mark on spikes: that they are nothing but zeros and ones, and where their bits are.

    Attributes:
        train: The neuron's.
        several: Whether they are those of several steps, (T, N, *).
        packed: Their bits, once something has asked for them.
    """

    train: SpikeTrain
    several: bool
    packed: PackedSpikes | None = None


def pack(x: Tensor) -> PackedSpikes | None:
    """`x` as bits if it is what a neuron emitted, or a mere reshape of it; else None."""
    emitted = find(x, BinarySpikes)
    if emitted is None:
        return None
    if emitted.packed is None:
        spikes = x.detach()
        if emitted.several:
            emitted.packed = PackedSpikes(bits.pack(spikes), range(len(spikes)), spikes.shape)
        else:
            base = reshaped_from(x) if x._is_view() else None
            # The train has the neuron's own shape, whatever a synapse makes of it.
            whole = spikes if base is None else spikes.reshape(base.shape)
            emitted.packed = emitted.train.add(whole)
    held = emitted.packed
    return held if held.shape == x.shape else PackedSpikes(held.bits, held.slots, x.shape)


@contextmanager
def saved_as_bits(spikes: Tensor, packed: PackedSpikes) -> Iterator[None]:
    """Graphs that are made inside save `packed` where they would save `spikes`."""
    # The graph holds on to these functions, which must not hold on to the spikes.
    place, count, ordered = spikes.data_ptr(), spikes.numel(), spikes.is_contiguous()

    def put(saved: Tensor) -> Tensor | tuple[torch.Size, torch.dtype]:
        same = saved.data_ptr() == place and saved.numel() == count
        # A transposed view has the numbers in another order.
        if same and ordered and saved.is_contiguous():
            return saved.shape, saved.dtype
        return saved

    def get(held: Tensor | tuple[torch.Size, torch.dtype]) -> Tensor:
        if isinstance(held, Tensor):
            return held
        shape, dtype = held
        return packed.unpack(dtype).view(shape)

    with torch.autograd.graph.saved_tensors_hooks(put, get):
        yield
