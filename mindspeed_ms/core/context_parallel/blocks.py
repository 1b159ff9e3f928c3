"""Which blocks of scores a rank computes, and with which options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, mint
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.ops import AttentionCall, Documents, ScoreDropout


@dataclass(frozen=True, slots=True)
class Block:
    """A block of scores: tokens of one rank as queries, of another (or the same) as keys."""

    rows: slice
    columns: slice
    causal: bool
    """Only on the diagonal; elsewhere the block is wholly visible."""


def block_of(rank: int, owner: int, length: int, causal: bool) -> Block:
    """What the queries of ``rank`` see of the keys of ``owner``, both numbered along the ring.

    Of 2n chunks rank r holds r and 2n - 1 - r. The keys of an earlier rank: their first half comes
    before all of this rank's queries, the second after them. Those of a later rank come before the
    second half of the queries and after the first. So every step has the same work.

    Args:
        rank: whose queries.
        owner: whose keys.
        length: tokens a rank holds.
        causal: keys later than their query are hidden.

    >>> block_of(1, 0, 8, True)
    Block(rows=slice(0, 8, None), columns=slice(0, 4, None), causal=False)
    """
    whole, half = slice(0, length), length // 2
    if not causal or owner == rank:
        return Block(whole, whole, causal)
    if owner < rank:
        return Block(whole, slice(0, half), False)
    return Block(slice(half, length), whole, False)


@dataclass(frozen=True, slots=True, eq=False)
class SharedAttention:
    """One attention, its sequence shared by ranks 0, 1, ... of a ring."""

    rank: int
    places: tuple[NDArray[np.int64], ...]
    """By rank: places of its tokens in the sequence."""
    scale: float
    causal: bool
    documents: Documents | None = None
    """Of the whole sequence, [B or 1, S] for queries and keys."""
    dropout: ScoreDropout | None = None
    """Its places name the heads; those of queries and keys are known here."""
    mask: NDArray[np.bool_] | None = None
    """[B or 1, 1, queries of this rank, keys of the whole sequence], True = hidden."""

    def block(self, owner: int) -> Block | None:
        """What this rank computes with the keys of another one; None: nothing is visible."""
        length = len(self.places[self.rank])
        block = block_of(self.rank, owner, length, self.causal and self.mask is None)
        documents = self._documents(block, owner)
        return None if documents is not None and documents.are_apart else block

    def call(self, block: Block, owner: int) -> AttentionCall:
        """Options of a block."""
        dropout = self.dropout
        if dropout is not None:
            assert dropout.places is not None, "shared scores know their places"
            whole = dropout.places
            places = ops.ScorePlaces(
                whole.heads,
                whole.first_head,
                whole.num_queries,
                whole.num_keys,
                np.ascontiguousarray(self.places[self.rank][block.rows]),
                np.ascontiguousarray(self.places[owner][block.columns]),
            )
            dropout = ScoreDropout(dropout.probability, dropout.seed, dropout.offset, places)
        return AttentionCall(
            scale=self.scale,
            causal=block.causal,
            documents=self._documents(block, owner),
            dropout=dropout,
        )

    def mask_of(self, block: Block, owner: int) -> Tensor | None:
        """Dense mask of a block."""
        if self.mask is None:
            return None
        columns = self.places[owner][block.columns]
        return memory.from_numpy(np.ascontiguousarray(self.mask[:, :, block.rows][..., columns]))

    def _documents(self, block: Block, owner: int) -> Documents | None:
        if self.documents is None:
            return None
        return Documents(
            self.documents.queries[:, self.places[self.rank][block.rows]],
            self.documents.keys[:, self.places[owner][block.columns]],
        )


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """View of some rows of a contiguous tensor; contiguous, too."""
    if rows.stop - rows.start == tensor.shape[0]:
        return tensor
    return mint.narrow(tensor, 0, rows.start, rows.stop - rows.start)


def add_block(
    shared: SharedAttention,
    owner: int,
    q: Tensor,
    keys: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
) -> None:
    """Let this rank's queries see the keys of ``owner`` (its k and v): ``out`` and ``lse`` change.

    Shapes: q [s, B, N, D]; k [s, B, G, D]; v [s, B, G, E]; out fp32 [s, B, N * E]; lse [s, B, N].
    """
    block = shared.block(owner)
    if block is None:
        return
    k, v = keys
    ops.attention_accumulate(
        rows_of(q, block.rows),
        rows_of(k, block.columns),
        rows_of(v, block.columns),
        rows_of(out, block.rows),
        rows_of(lse, block.rows),
        shared.call(block, owner),
        shared.mask_of(block, owner),
    )


def add_block_gradients(
    shared: SharedAttention,
    owner: int,
    keys: Sequence[Tensor],
    saved: tuple[Tensor, Tensor, Tensor],
    dout: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Add what comes from the keys of ``owner`` to the fp32 gradients (dq, dk, dv).

    Args:
        shared: the attention.
        owner: rank whose keys these are.
        keys: its k and v.
        saved: q, and the result and its log-sum-exp over all keys.
        dout: gradient of the result.
        grads: dq of this rank; dk and dv of ``owner``.
    """
    block = shared.block(owner)
    if block is None:
        return
    q, out, lse = (rows_of(tensor, block.rows) for tensor in saved)
    k, v = (rows_of(tensor, block.columns) for tensor in keys)
    dq, dk, dv = grads
    ops.attention_backward_accumulate(
        q,
        k,
        v,
        out,
        lse,
        rows_of(dout, block.rows),
        (
            rows_of(dq, block.rows),
            rows_of(dk, block.columns),
            rows_of(dv, block.columns),
        ),
        shared.call(block, owner),
        shared.mask_of(block, owner),
    )


def begin_result(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Result and log-sum-exp before any key was seen: fp32 zeros and -infinity."""
    s, b, n, _ = q.shape
    return memory.zeros((s, b, n * v.shape[3])), memory.full((s, b, n), -math.inf)


def stored(tensor: Tensor, like: Tensor) -> Tensor:
    """An fp32 tensor in the storage type of another one."""
    if tensor.dtype == like.dtype:
        return tensor
    result = memory.empty(tensor.shape, like.dtype)
    ops.copy_cast_(result, tensor)
    return result
