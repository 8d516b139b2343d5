"""Spikes on their way from a noisy neuron to the next synapse, kept there as bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import bits
from .expansion import Mark, reshaped_from

_MARK = "_nit_spikes"


@dataclass(eq=False, slots=True)
class Packed:
    """What went into a synapse: spikes of one step, or of several, as bits.

    Attributes:
        bits: (planes, N, *) bytes, of as many neurons as `shape` has.
        slots: Which of their bits.
        shape: (N, *) of one step, (T, N, *) of several.
    """

    bits: Tensor
    slots: range
    shape: torch.Size

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The spikes as numbers, in the shape that the synapse saw."""
        return bits.unpack(self.bits, self.slots, dtype).view(self.shape)

    def part(self, steps: range) -> Packed:
        """Some of several steps."""
        slots = self.slots[steps.start : steps.stop]
        return Packed(self.bits, slots, torch.Size([len(slots), *self.shape[1:]]))


@dataclass(eq=False)
class SpikeTrain:
    """The spikes of one neuron in a pass, as bits.

    Memory is taken for eight steps at first, then for twice as many each time, up to 64: many small
    pieces between the numbers of each step would leave gaps that nothing else fits into.
    """

    planes: Tensor | None = None
    used: int = 0

    def room(self, shape: torch.Size, device: torch.device) -> tuple[Tensor, int]:
        """Where the bits of one more step go: (planes, N, *) bytes, and which bit."""
        if self.planes is None or self.planes.shape[1:] != shape:
            self.planes, self.used = bits.empty(8, shape, device), 0
        elif self.used == 8 * len(self.planes):
            steps = min(64, 2 * self.used)
            self.planes, self.used = bits.empty(steps, shape, device), 0
        self.used += 1
        return self.planes, self.used - 1

    def add(self, activity: Tensor) -> Packed | None:
        """One more step, (N, *), as bits, if it is nothing but zeros and ones."""
        spikes = activity.detach() == 1
        if activity.requires_grad or not torch.equal(activity, spikes.to(activity.dtype)):
            return None
        planes, slot = self.room(activity.shape, activity.device)
        bits.pack_into(planes, spikes, slot)
        return Packed(planes, range(slot, slot + 1), activity.shape)


@dataclass(eq=False)
class Emitted(Mark):
    """The mark on spikes: that they are nothing but zeros and ones, and where their bits are.

    Attributes:
        train: The neuron's.
        version: autograd's version counter of the spikes when they were emitted.
        several: Whether they are those of several steps, (T, N, *).
        packed: Their bits, once something has asked for them.
    """

    train: SpikeTrain
    version: int
    several: bool
    packed: Packed | None = field(default=None)

    @staticmethod
    def mark(spikes: Tensor, train: SpikeTrain, several: bool, packed: Packed | None) -> None:
        setattr(spikes, _MARK, Emitted(train, spikes._version, several, packed))

    @staticmethod
    def marks(x: Tensor) -> bool:
        """Whether `x` is what a neuron emitted, or a mere reshape of it."""
        return _emitted(x) is not None

    @staticmethod
    def pack(x: Tensor) -> Packed | None:
        """`x` as bits if it is what a neuron emitted, or a mere reshape of it; else None."""
        found = _emitted(x)
        if found is None:
            return None
        mark, base = found
        if mark.packed is None:
            mark.packed = _packed(base, mark)
        held = mark.packed
        return held if held.shape == x.shape else Packed(held.bits, held.slots, x.shape)


@contextmanager
def saved_as_bits(spikes: Tensor, packed: Packed) -> Iterator[None]:
    """Graphs that are made inside save `packed` where they would save `spikes`."""
    # The graph holds on to these functions, which must not hold on to the spikes.
    place, count, ordered = spikes.data_ptr(), spikes.numel(), spikes.is_contiguous()

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, torch.dtype]:
        same = saved.data_ptr() == place and saved.numel() == count
        # A transposed view has the numbers in another order.
        if same and ordered and saved.is_contiguous():
            return saved.shape, saved.dtype
        return saved

    def unpack(held: Tensor | tuple[torch.Size, torch.dtype]) -> Tensor:
        if isinstance(held, Tensor):
            return held
        shape, dtype = held
        return packed.unpack(dtype).view(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _emitted(x: Tensor) -> tuple[Emitted, Tensor] | None:
    """The mark on `x`, and the tensor that was emitted, if nothing has changed it."""
    mark, base = getattr(x, _MARK, None), x
    if not isinstance(mark, Emitted):
        found = reshaped_from(x)
        mark = getattr(found, _MARK, None)
        if found is None or not isinstance(mark, Emitted):
            return None
        kept = 2 if mark.several else 1
        if x.shape[:kept] != found.shape[:kept]:
            return None
        base = found
    return None if mark.version != x._version or x.requires_grad else (mark, base)


def _packed(spikes: Tensor, mark: Emitted) -> Packed:
    if mark.several:
        return Packed(bits.pack(spikes), range(len(spikes)), spikes.shape)
    planes, slot = mark.train.room(spikes.shape, spikes.device)
    bits.pack_into(planes, spikes, slot)
    return Packed(planes, range(slot, slot + 1), spikes.shape)
