"""What an attention call is given besides its tensors; shared by every kernel set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.dropout_words import draw

Places: TypeAlias = NDArray[np.int64]


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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionCall:
    """Options of an attention over tensors q [S, B, N, D] and k, v [S', B, G, D]."""

    scale: float
    causal: bool = False
    """Hide keys that come later; the last query sees the last key, also when S and S' differ."""

    documents: Documents | None = None
    dropout: ScoreDropout | None = None


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
