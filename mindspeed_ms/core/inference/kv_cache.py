# SPDX-License-Identifier: Apache-2.0
"""Keys and values of earlier tokens, in slots that keep their place.

Legend: S' tokens a slot has room for, G key/value groups of this rank, D and E channels of a key
and of a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.backend import device, memory
from mindspeed_ms.ops.attention_call import Places

TOKENS = -1
"""The layer of ids, in models that keep them."""


def index_of(layer: int) -> int:
    """The layer of the keys of a layer's indexer, in sparse attention."""
    return TOKENS - layer


FEWEST_TOKENS = 32
"""Room of a slot to begin with; it doubles when it is used up."""


class KVCache:
    """Memory of all layers of a rank, one slot per sequence.

    A sequence takes a slot and keeps it until it frees it, so nothing moves when others come and
    go. Memory is made when a layer first writes. When slots or their room run out, they double and
    what is there is copied. No pages: they would save memory that such slots leave unused, at the
    price of a lookup per block of keys.

    Args:
        num_slots: slots to begin with.
    """

    def __init__(self, num_slots: int = 1) -> None:
        self.lengths: Places = np.zeros(max(num_slots, 1), np.int64)
        self._free = list(range(len(self.lengths)))[::-1]
        self._room = FEWEST_TOKENS
        self._layers: dict[int, tuple[Tensor, ...]] = {}
        self.version = 0
        """Changes when memory is made or moved."""
        self.derived: dict[int, tuple[Sequence[Tensor], ...]] = {}
        """What layers made of their weights, which hold while there are keys of them."""

    @property
    def num_slots(self) -> int:
        """Slots there is memory for."""
        return len(self.lengths)

    @property
    def num_free(self) -> int:
        """Slots that no sequence has taken; more are made when they are asked for."""
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        """Of the memory of all layers."""
        return sum(memory.num_bytes(part) for layer in self._layers.values() for part in layer)

    def take(self, count: int) -> Places:
        """Slots for new sequences, [count]."""
        while len(self._free) < count:
            more = self.num_slots
            self._free[:0] = range(2 * more - 1, more - 1, -1)
            self.lengths = np.concatenate([self.lengths, np.zeros(more, np.int64)])
        slots = np.array([self._free.pop() for _ in range(count)], np.int64)
        self.lengths[slots] = 0
        return slots

    def free(self, slots: Sequence[int] | Places) -> None:
        """Give slots back.

        Raises:
            ValueError: one is free already.
        """
        for slot in slots:
            if int(slot) in self._free:
                raise ValueError(f"slot {slot} of the cache is freed twice")
            self._free.append(int(slot))
            self.lengths[slot] = 0

    def reserve(self, length: int) -> None:
        """Make room for so many tokens in every slot."""
        while self._room < length:
            self._room *= 2

    def append(self, layer: int, slots: Places, *parts: Tensor) -> None:
        """Write the keys and values of new tokens behind those of their slots.

        ``lengths`` stay as they are, for the layers that follow; see ``advance``.

        Args:
            layer: any number that names the layer.
            slots: [B].
            parts: keys [S, B, G, D], and values [S, B, G, E] unless the keys are both.
        """
        steps = parts[0].shape[0]
        for store, new in zip(self.memory_of(layer, *parts), parts, strict=True):
            _write(store, slots, self.lengths[slots], memory.contiguous(new), steps)

    def note_tokens(self, slots: Places, ids: NDArray[np.int32]) -> None:
        """Keep ids [S, B] beside keys and values, for models whose keys must be computed again."""
        self.append(TOKENS, slots, memory.from_numpy(ids[:, :, None, None]))

    def tokens(self, slot: int) -> NDArray[np.int32]:
        """The ids that ``note_tokens`` kept of a slot."""
        (store,) = self.stores(TOKENS)
        return memory.as_numpy(store)[slot, : self.lengths[slot], 0, 0].copy()

    def advance(self, slots: Places, counts: Places | int) -> None:
        """Count tokens that every layer has written; what lies behind is overwritten later."""
        self.lengths[slots] += counts

    def truncate(self, slots: Places, lengths: Places | int) -> None:
        """Forget the last tokens of slots."""
        self.lengths[slots] = np.minimum(self.lengths[slots], lengths)

    def reorder(self, slots: Places, rows: Places) -> None:
        """Let slot i hold what slot ``slots[rows[i]]`` holds, for beams that go on from others."""
        moved = slots != slots[rows]
        targets, sources = slots[moved], slots[rows][moved]
        if not len(targets):
            return
        length = int(self.lengths[sources].max())
        for stores in self._layers.values():
            for store in stores:
                _copy_slots(store, targets, sources, length)
        self.lengths[targets] = self.lengths[sources]

    def fork(self, slots: Places, copies: int) -> Places:
        """Slots that hold what others hold: each of ``slots`` and its copies, side by side.

        Returns:
            [len(slots) * copies]; the first of every ``copies`` is the slot itself.
        """
        result = np.repeat(slots, copies).reshape(len(slots), copies)
        taken = self.take(len(slots) * (copies - 1))
        try:
            result[:, 1:] = taken.reshape(len(slots), copies - 1)
            result = result.reshape(-1)
            self.grow()
            self.reorder(result, np.repeat(np.arange(len(slots)) * copies, copies))
        except BaseException:
            self.free(taken)
            raise
        return result

    def grow(self) -> None:
        """Make the memory that slots and room ask for, in all layers that have some."""
        for layer, stores in list(self._layers.items()):
            self.memory_of(layer, *stores)

    def stores(self, layer: int) -> tuple[Tensor, ...]:
        """Memory of a layer that has written."""
        return self._layers[layer]

    @property
    def room(self) -> int:
        """Tokens each slot has memory for."""
        return self._room

    def memory_of(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """Memory of a layer, [slots, S', G, D] for each of its parts, grown to what is needed.

        Args:
            layer: any number that names the layer.
            parts: a tensor [..., G, D] for each part, for sizes and type.
        """
        found = self._layers.get(layer)
        size = (self.num_slots, self._room)
        if found is not None and found[0].shape[:2] == size:
            return found
        grown = []
        for index, like in enumerate(parts):
            # Zeros: what no query sees is multiplied by a weight of zero, and must be finite.
            new = memory.zeros((*size, *like.shape[-2:]), like.dtype)
            if found is not None:
                _copy_front(new, found[index])
            grown.append(new)
        self._layers[layer] = tuple(grown)
        self.version += 1
        return self._layers[layer]


def rows_of(store: Tensor, slots: Places, length: int) -> Tensor:
    """A copy of the first tokens of slots: [slots, S', G, D] -> [length, B, G, D]."""
    if device.is_ascend():
        return store[Tensor(slots)][:, :length].swapaxes(0, 1).contiguous()
    copied = memory.empty((length, len(slots), *store.shape[2:]), store.dtype)
    memory.as_numpy(copied)[:] = memory.as_numpy(store)[slots, :length].swapaxes(0, 1)
    return copied


def _write(store: Tensor, slots: Places, starts: Places, new: Tensor, steps: int) -> None:
    """store[slots[b], starts[b] + s] = new[s, b]."""
    places = starts + np.arange(steps)[:, None]
    if device.is_ascend():
        store[Tensor(np.broadcast_to(slots, places.shape)), Tensor(places)] = new
        return
    memory.as_numpy(store)[slots, places] = memory.as_numpy(new)


def _copy_slots(store: Tensor, targets: Places, sources: Places, length: int) -> None:
    """store[targets, :length] = store[sources, :length], as if all at once."""
    if device.is_ascend():
        store[Tensor(targets)] = store[Tensor(sources)]
        return
    array = memory.as_numpy(store)
    array[targets, :length] = array[sources, :length]


def _copy_front(new: Tensor, old: Tensor) -> None:
    """Copy what an earlier, smaller memory holds."""
    slots, room = old.shape[:2]
    if device.is_ascend():
        new[:slots, :room] = old
        return
    memory.as_numpy(new)[:slots, :room] = memory.as_numpy(old)
