# SPDX-License-Identifier: Apache-2.0
"""What ``inference_params`` carries through a model.

Legend: S new tokens of a row, B rows, T tokens of the call, p tensor parallel ranks, N query heads,
G key/value groups, D and E channels of a key and of a value.

The tokens of a call pass through the model as one sequence: token s of row b has place s * B + b.
All layers but attention look at tokens one by one, so this is the same to them, and T can be padded
to what sequence parallelism divides, for a single token of a single row, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import device, memory
from mindspeed_ms.core.inference.kv_cache import KVCache, index_of, rows_of
from mindspeed_ms.ops.attention_call import KeyRanges, Places, Window


@dataclass(slots=True)
class InferenceContext:
    """New tokens of some slots of a cache.

    Rows with fewer tokens than others are padded on the right; nothing sees the padding.

    Raises:
        ValueError: rows without tokens.
    """

    cache: KVCache
    slots: Places
    """[B]: where the keys and values of each row are."""
    tokens: Sequence[NDArray[np.int32]]
    """New tokens of each row, at least one."""
    multiple: int = 1
    """T is padded to a multiple of it."""
    wants_all: bool = False
    """Logits of all S * B places are wanted; else those of each row's last token."""
    keeps_hidden: bool = False
    """The model notes the hidden states that its head reads."""
    hidden: Tensor | None = field(init=False, default=None)
    """[T, 1, h], on ranks that hold the head, if they are kept."""
    repetition: int = 0
    """Layers that serve several times keep the keys and values of each time apart."""
    rotated_as: Places | None = None
    """[B]: tokens of a row that its rotation goes by, if that depends on it. Default: all that it
    has with the new ones."""
    chosen: dict[int, Tensor] = field(init=False, default_factory=dict)
    """Layer -> keys that its indexer chose, for layers that see the same; see ``choose``."""
    counts: Places = field(init=False)
    """[B]: new tokens."""
    ids: NDArray[np.int32] = field(init=False)
    """[1, T]."""
    positions: Places = field(init=False)
    """[T]: of each token in its row."""
    lengths: Places = field(init=False)
    """[T]: tokens that the rotation of each goes by."""
    ranges: KeyRanges = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.array([len(row) for row in self.tokens], np.int64)
        if not len(self.counts) or not self.counts.all():
            raise ValueError("every row of a step needs at least one token")
        steps, rows = self.shape
        starts = self.cache.lengths[self.slots]
        padded = -(-steps * rows // self.multiple) * self.multiple
        self.ids = np.zeros((1, padded), np.int32)
        by_step = self.by_step
        for row, tokens in enumerate(self.tokens):
            by_step[: len(tokens), row] = tokens
        self.positions = np.zeros(padded, np.int64)
        # The padding of a row gets the position of its last token, which every table has.
        ahead = np.minimum(np.arange(steps)[:, None], self.counts - 1)
        self.positions[: steps * rows] = (starts + ahead).reshape(-1)
        self.lengths = np.ones(padded, np.int64)
        whole = starts + self.counts if self.rotated_as is None else self.rotated_as
        self.lengths[: steps * rows] = np.tile(whole, steps)
        self.ranges = KeyRanges(np.zeros_like(starts), starts + self.counts, starts)
        self.cache.reserve(int((starts + steps).max()))

    @property
    def shape(self) -> tuple[int, int]:
        """(S, B)."""
        return int(self.counts.max()), len(self.counts)

    @property
    def by_step(self) -> NDArray[np.int32]:
        """[S, B]: the new tokens, a view of ``ids``; places of padding hold 0."""
        return self.ids[0, : math.prod(self.shape)].reshape(self.shape)

    @property
    def is_real(self) -> NDArray[np.bool_]:
        """[S, B]: places that hold a token, not padding."""
        steps, _ = self.shape
        return np.arange(steps)[:, None] < self.counts

    def attend(  # noqa: PLR0913 - one argument per option of an attention
        self,
        layer: int,
        heads: tuple[Tensor, ...],
        *,
        causal: bool,
        scale: float,
        window: Window,
        softcap: float | None,
        slopes: NDArray[np.float32] | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Write new keys and values to the cache, and attend to all that their rows have.

        Args:
            layer: number of the layer, from 1.
            heads: queries [T, 1, N, D], keys [T, 1, G, D], values [T, 1, G, E]; without values the
                keys are both, kept once.
            causal: see ``ops.decode_attention``, as the others.
            scale: factor of the products.
            window: tokens around its own place that a query sees.
            softcap: bound of the scores.
            slopes: [N].
            sinks: [N].

        Returns:
            [T, 1, N * E].
        """
        layer += self.repetition
        q, *new = (self._by_row(part) for part in heads)
        self.cache.append(layer, self.slots, *new)
        stores = self.cache.memory_of(layer, *new)
        out = ops.decode_attention(
            q,
            stores[0],
            stores[-1],
            self.ranges,
            scale=scale,
            causal=causal,
            window=window,
            slots=self.slots,
            softcap=softcap,
            slopes=slopes,
            sinks=sinks,
        )
        return self._in_places(out, heads[0].shape[0])

    def choose(
        self,
        layer: int,
        index: tuple[Tensor, Tensor, Tensor],
        *,
        causal: bool,
        topk: int,
        rectified: bool,
    ) -> Tensor:
        """Keep the keys of an indexer, and hide all but the best keys of each new token.

        Args:
            layer: number of the layer, from 1.
            index: queries [T, 1, H, C], keys [T, 1, C], weights of the heads [T, 1, H].
            causal: hide keys later than their query.
            topk: keys that a query sees at most.
            rectified: see ``ops.index_scores``.

        Returns:
            bool [B, 1, S, S'], True = hidden.
        """
        q, k, weights = (self._by_row(part) for part in index)
        (keys,) = self._kept(index_of(layer + self.repetition), k.expand_dims(2))
        keys = keys.view((*keys.shape[:2], -1))
        scores = ops.index_scores(q, keys, weights, rectified)
        places, starts = np.arange(len(keys)), self.cache.lengths[self.slots]
        last = np.broadcast_to((starts + self.counts - 1)[:, None], (len(starts), self.shape[0]))
        if causal:
            last = starts[:, None] + np.arange(self.shape[0])
        hidden = np.ascontiguousarray((places > last[..., None])[:, None])
        self.chosen[layer] = ops.hidden_but_top(scores, memory.from_numpy(hidden), topk)
        return self.chosen[layer]

    def attend_chosen(
        self, layer: int, heads: tuple[Tensor, ...], hidden: Tensor, scale: float
    ) -> Tensor:
        """As ``attend``, to the keys that are not ``hidden``, bool [B, 1, S, S']."""
        q, *new = (self._by_row(part) for part in heads)
        kept = self._kept(layer + self.repetition, *new)
        out = ops.attention(q, kept[0], kept[-1], scale=scale, causal=False, mask=hidden)
        return self._in_places(out, heads[0].shape[0])

    def _kept(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """Write to the cache; all that the rows have, [S', B, G, D] for each part."""
        self.cache.append(layer, self.slots, *parts)
        length = int((self.cache.lengths[self.slots] + self.shape[0]).max())
        stores = self.cache.memory_of(layer, *parts)
        return tuple(rows_of(store, self.slots, length) for store in stores)

    def _by_row(self, part: Tensor) -> Tensor:
        """[T, 1, ...] -> [S, B, ...]."""
        return _shaped(part, (*self.shape, *part.shape[2:]))

    def _in_places(self, out: Tensor, tokens: int) -> Tensor:
        """[S, B, ...] -> [T, 1, ...], with zeros in places of padding."""
        if math.prod(self.shape) == tokens:
            return _shaped(out, (tokens, 1, out.shape[-1]))
        whole = memory.zeros((tokens, 1, out.shape[-1]), out.dtype)
        memory.copy_(memory.view_of(whole.view((-1,)), 0, out.shape), out)
        return whole

    def wanted(self, hidden: Tensor) -> Tensor:
        """Hidden states of the places whose logits are wanted: [T, 1, h] -> [n, 1, h]."""
        steps, rows = self.shape
        if self.wants_all:
            places = np.arange(steps * rows)
        else:
            places = (self.counts - 1) * rows + np.arange(rows)
        if len(places) == hidden.shape[0]:
            return hidden
        if not device.is_ascend():  # as in _shaped
            chosen = memory.empty((len(places), 1, hidden.shape[-1]), hidden.dtype)
            memory.as_numpy(chosen)[:] = memory.as_numpy(memory.contiguous(hidden))[places]
            return chosen
        table = memory.contiguous(hidden).view((hidden.shape[0], hidden.shape[-1]))
        chosen = ops.embedding(table, memory.from_numpy(places.astype(np.int32)))
        return chosen.view((len(places), 1, hidden.shape[-1]))


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first elements of a tensor in another shape, on its own memory.

    On the host by way of NumPy: an operator of MindSpore takes milliseconds where no other one
    keeps its dispatch thread awake.
    """
    tensor = memory.contiguous(tensor)
    count = math.prod(shape)
    if device.is_ascend() or tensor.dtype == mstype.bfloat16:
        return memory.view_of(tensor.view((-1,)), 0, shape)
    return memory.from_numpy(memory.flat_view(tensor)[:count].reshape(shape))
