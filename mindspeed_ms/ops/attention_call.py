# SPDX-License-Identifier: Apache-2.0
"""What an attention call is given besides its tensors; shared by every kernel set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from mindspore import Tensor
from mindspore.common.dtype import Type
from numpy.typing import NDArray

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.dropout_words import draw

Places: TypeAlias = NDArray[np.int64]

Window: TypeAlias = tuple[int | None, int | None]
"""(left, right): tokens before and after its own place that a query sees; None: all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """The documents of packed sequences: a query sees keys of its own document only.

    On the host, because the lengths of documents steer fused kernels.

    Raises:
        ValueError: other shapes, or numbers that decrease along a row.
    """

    queries: NDArray[np.int32]
    """[B or 1, S]: number of the document of each query, never decreasing along a row."""

    keys: NDArray[np.int32]
    """[B or 1, S']: the same of each key."""

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            numbers = np.ascontiguousarray(getattr(self, name), dtype=np.int32)
            if numbers.ndim != 2 or (np.diff(numbers, axis=1) < 0).any():
                raise ValueError(
                    f"document numbers of {name} have shape {numbers.shape}; they must be "
                    "[batch, sequence] and never decrease along a sequence"
                )
            object.__setattr__(self, name, numbers)
        if len(self.queries) != len(self.keys):
            raise ValueError(
                f"document numbers are given for {len(self.queries)} rows of queries and "
                f"{len(self.keys)} of keys; both must be the same batch"
            )

    def block(self, rows: slice, columns: slice) -> Documents:
        """Those of some queries and some keys."""
        return Documents(self.queries[:, rows], self.keys[:, columns])

    @property
    def are_apart(self) -> bool:
        """Whether no query can see any key."""
        first, last = self.queries[:, :1], self.queries[:, -1:]
        return bool(((self.keys[:, -1:] < first) | (self.keys[:, :1] > last)).all())

    def hidden(self) -> NDArray[np.bool_]:
        """Dense mask [B or 1, 1, S, S'], True where query and key are of different documents."""
        return self.queries[:, None, :, None] != self.keys[:, None, None, :]


@dataclass(frozen=True, slots=True, eq=False)
class ScorePlaces:
    """Where the scores [B, N, S, S'] of a call lie in those of a whole attention.

    Dropout words are named by the place in the whole, so that every way of sharing an attention
    among ranks drops the same scores.
    """

    heads: int
    """Heads of the whole; those of the call begin at ``first_head``."""

    first_head: int

    num_queries: int
    """Queries of the whole."""

    num_keys: int
    """Keys of the whole."""

    queries: Places | None = None
    """[S]: places of the call's queries; None: 0, 1, 2, ..."""

    keys: Places | None = None
    """[S']: places of the call's keys; None: 0, 1, 2, ..."""

    def block(self, rows: slice, columns: slice) -> ScorePlaces:
        """Places of some queries and some keys; both must be given."""
        assert self.queries is not None and self.keys is not None, "a part of known places"
        return ScorePlaces(
            self.heads,
            self.first_head,
            self.num_queries,
            self.num_keys,
            self.queries[rows],
            self.keys[columns],
        )

    def words(self, batch: int, heads: int) -> Places:
        """Number of the dropout word of every score, [B, N, S, S']."""
        queries = np.arange(self.num_queries) if self.queries is None else self.queries
        keys = np.arange(self.num_keys) if self.keys is None else self.keys
        matrices = np.arange(batch)[:, None] * self.heads + self.first_head + np.arange(heads)
        rows = matrices[..., None] * self.num_queries + queries
        return rows[..., None] * self.num_keys + keys


@dataclass(frozen=True, slots=True, eq=False)
class ScoreDropout:
    """Dropout of the scores; it replays from (seed, offset)."""

    probability: float
    seed: int
    offset: int
    places: ScorePlaces | None = None
    """None: the scores of the call are the whole."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyRanges:
    """Which keys exist in each row of a batch, and where its queries stand among them.

    For padding on either side, and for queries that go on from keys of earlier calls.

    Raises:
        ValueError: other shapes; that the keys hold the ranges is checked by ``ops.attention``.
    """

    starts: Places
    """[B]: first key that exists."""

    stops: Places
    """[B]: one past the last."""

    offsets: Places
    """[B]: place of the row's first query among its keys."""

    def __post_init__(self) -> None:
        for name in ("starts", "stops", "offsets"):
            numbers = np.ascontiguousarray(getattr(self, name), dtype=np.int64)
            if numbers.ndim != 1 or numbers.shape != np.shape(self.starts):
                raise ValueError(
                    f"key ranges: {name} has shape {numbers.shape}; starts, stops and offsets are "
                    "one number per row of the batch"
                )
            object.__setattr__(self, name, numbers)

    @classmethod
    def of_lengths(
        cls, lengths: Sequence[int] | Places, queries: int, starts: Sequence[int] | Places = (0,)
    ) -> KeyRanges:
        """Rows whose last query stands at their last key, as after new tokens went to a cache.

        Args:
            lengths: [B], keys of each row, from the beginning of its memory.
            queries: new tokens of each row.
            starts: [B] or one for all: keys before are padding.
        """
        stops = np.asarray(lengths, np.int64)
        return cls(np.broadcast_to(np.asarray(starts), stops.shape), stops, stops - queries)


@dataclass(frozen=True, slots=True)
class ScoreStorage:
    """Scores that lie in memory between operators, and so are rounded to a storage type.

    The statistics of the softmax stay fp32 all the same. Gradients pass as if nothing was rounded.
    """

    dtype: Type
    """bfloat16 or float16."""

    divisor: float = 1.0
    """Scores are divided by it before they are rounded and multiplied afterwards, which keeps large
    ones in the range of float16."""

    weights: bool = False
    """Round the result of the softmax, too."""


@dataclass(frozen=True, slots=True)
class Band:
    """Keys that a query sees by their places: query i stands at key ``offset + i``."""

    offset: int
    left: int | None
    """Keys before its place; None: all."""
    right: int | None
    """Keys after it; None: all."""

    def is_apart(self, queries: int, keys: int) -> bool:
        """Whether none of some queries sees any of some keys."""
        last = self.offset + queries - 1
        before = self.right is not None and last + self.right < 0
        return before or (self.left is not None and self.offset - self.left >= keys)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionCall:
    """Options of an attention over tensors q [S, B, N, D] and k, v [S', B, G, D]."""

    scale: float
    causal: bool = False
    """Hide keys that come later than their query."""

    window: Window = (None, None)
    """Hide keys too far before or after their query."""

    offset: int | None = None
    """Place of the first query among the keys. None: the last query stands at the last key, also
    when S and S' differ."""

    ranges: KeyRanges | None = None
    """Keys by row of the batch, with offsets of their own."""

    documents: Documents | None = None
    dropout: ScoreDropout | None = None

    softcap: float | None = None
    """Scaled scores become ``softcap * tanh(score / softcap)``."""

    slopes: NDArray[np.float32] | None = None
    """[N]: ``slope * |distance of query and key|`` is subtracted from the scores of a head."""

    bias: Tensor | None = None
    """[B or 1, N or 1, S, S'] of a floating type, contiguous: added to the scores. No gradient."""

    storage: ScoreStorage | None = None
    """None: scores are fp32."""

    max_logits: Tensor | None = None
    """fp32 [N], raised in place to the largest visible score of each head."""

    def band(self, queries: int, keys: int) -> Band:
        """What places hide, in a call with so many queries and keys."""
        left, right = self.window
        if self.causal:
            right = 0 if right is None else min(right, 0)
        return Band(keys - queries if self.offset is None else self.offset, left, right)

    def hidden(self, queries: int, keys: int) -> NDArray[np.bool_] | None:
        """Dense mask [B or 1, 1, S, S'] of what places, ranges and documents hide; None: nothing.

        True = hidden.
        """
        band, parts = self.band(queries, keys), []
        if band.left is not None or band.right is not None:
            distances = self._distances(queries, keys)
            if band.right is not None:
                parts.append(distances > band.right)
            if band.left is not None:
                parts.append(distances < -band.left)
        if self.ranges is not None:
            keys_of_row = np.arange(keys)[None, None]
            parts.append(keys_of_row < self.ranges.starts[:, None, None])
            parts.append(keys_of_row >= self.ranges.stops[:, None, None])
        if self.documents is not None:
            parts.append(self.documents.hidden()[:, 0])
        if not parts:
            return None
        hidden = parts[0]
        for part in parts[1:]:
            hidden = hidden | part
        shape = (hidden.shape[0], queries, keys)
        return np.broadcast_to(hidden, shape)[:, None]

    def alibi(self, queries: int, keys: int) -> NDArray[np.float32] | None:
        """What ``slopes`` add to the scores, [B or 1, N, S, S']; None: nothing."""
        if self.slopes is None:
            return None
        distances = np.abs(self._distances(queries, keys)).astype(np.float32)
        return -self.slopes[:, None, None] * distances[:, None]

    @property
    def is_plain(self) -> bool:
        """Whether scores enter the softmax as they come from the product, times ``scale``."""
        return all(
            option is None for option in (self.softcap, self.slopes, self.bias, self.storage)
        )

    def _distances(self, queries: int, keys: int) -> Places:
        """Place of each key less that of each query, [B or 1, S, S']."""
        if self.ranges is None:
            offsets = np.array([self.band(queries, keys).offset])
        else:
            offsets = self.ranges.offsets
        places = offsets[:, None] + np.arange(queries)
        return np.arange(keys)[None, None] - places[..., None]


def draw_dropout(
    probability: float,
    generator: Generator | None,
    shape: tuple[int, int, int, int],
    places: ScorePlaces | None = None,
) -> ScoreDropout | None:
    """Reserve the dropout words of one attention; None when nothing is dropped.

    Args:
        probability: of a score to be dropped.
        generator: gives the words, one per score of the whole attention.
        shape: [B, N, S, S'] of the call.
        places: where they lie in the whole.
    """
    if probability == 0.0 or generator is None:
        return None
    batch, heads, queries, keys = shape
    if places is not None:
        heads, queries, keys = places.heads, places.num_queries, places.num_keys
    seed, offset = draw(generator, batch * heads * queries * keys)
    return ScoreDropout(probability, seed, offset, places)
