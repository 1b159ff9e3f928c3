# SPDX-License-Identifier: Apache-2.0
"""Which blocks of scores a rank computes, and with which options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from mindspore import Tensor, mint
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.ops import AttentionCall, Documents, ScoreDropout
from mindspeed_ms.plan.sequence_slices import stretches


@dataclass(frozen=True, slots=True)
class Block:
    """A block of scores: tokens of one rank as queries, of another (or the same) as keys."""

    rows: slice
    columns: slice
    causal: bool
    """Whether later keys are hidden; those wholly visible need no limit."""
    offset: int | None = None
    """Place of the first query among the keys, where places decide; None: last at last."""


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
    Block(rows=slice(0, 8, None), columns=slice(0, 4, None), causal=False, offset=None)
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
    options: AttentionCall
    """Of the whole attention: documents [B or 1, S] for queries and keys, a bias with the rows of
    this rank; the places of dropout name the heads, those of queries and keys are known here."""
    mask: NDArray[np.bool_] | None = None
    """[B or 1, 1, queries of this rank, keys of the whole sequence], True = hidden."""

    def blocks(self, owner: int, rank: int | None = None) -> list[Block]:
        """What a rank (None: this one) computes with the keys of another one, or its own.

        With a window or slopes the distance of tokens counts, so that every block is of tokens that
        follow each other.
        """
        rank = self.rank if rank is None else rank
        causal = self.options.causal and self.mask is None
        if self.is_by_distance:
            blocks = self._by_distance(rank, owner, causal)
        else:
            blocks = [block_of(rank, owner, len(self.places[rank]), causal)]
        return [block for block in blocks if not self._are_apart(block, rank, owner)]

    @property
    def is_by_distance(self) -> bool:
        """Whether more than the order of tokens counts."""
        return self.options.window != (None, None) or self.options.slopes is not None

    def call(self, block: Block, owner: int) -> AttentionCall:
        """Options of a block."""
        dropout = self.options.dropout
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
        return replace(
            self.options,
            causal=block.causal,
            offset=block.offset,
            documents=self._documents(block, self.rank, owner),
            dropout=dropout,
            bias=self._bias_of(block, owner),
        )

    def mask_of(self, block: Block, owner: int) -> Tensor | None:
        """Dense mask of a block."""
        if self.mask is None:
            return None
        columns = self.places[owner][block.columns]
        return memory.from_numpy(np.ascontiguousarray(self.mask[:, :, block.rows][..., columns]))

    def _by_distance(self, rank: int, owner: int, causal: bool) -> list[Block]:
        queries, keys = self.places[rank], self.places[owner]
        band = replace(self.options, causal=causal, offset=0).band(1, 1)
        blocks = []
        for rows in stretches(queries):
            for columns in stretches(keys):
                offset = int(queries[rows.start] - keys[columns.start])
                sizes = (rows.stop - rows.start, columns.stop - columns.start)
                if not replace(band, offset=offset).is_apart(*sizes):
                    blocks.append(Block(rows, columns, causal, offset))
        return blocks

    def _bias_of(self, block: Block, owner: int) -> Tensor | None:
        if self.options.bias is None:
            return None
        rows = mint.narrow(
            self.options.bias, 2, block.rows.start, block.rows.stop - block.rows.start
        )
        places = self.places[owner][block.columns]
        parts = [
            mint.narrow(rows, 3, int(places[part.start]), part.stop - part.start)
            for part in stretches(places)
        ]
        return memory.contiguous(parts[0] if len(parts) == 1 else mint.cat(parts, 3))

    def _documents(self, block: Block, rank: int, owner: int) -> Documents | None:
        documents = self.options.documents
        if documents is None:
            return None
        return Documents(
            documents.queries[:, self.places[rank][block.rows]],
            documents.keys[:, self.places[owner][block.columns]],
        )

    def _are_apart(self, block: Block, rank: int, owner: int) -> bool:
        documents = self._documents(block, rank, owner)
        return documents is not None and documents.are_apart


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """View of some rows of a contiguous tensor; contiguous, too."""
    if rows.stop - rows.start == tensor.shape[0]:
        return tensor
    return mint.narrow(tensor, 0, rows.start, rows.stop - rows.start)


def add_blocks(
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
    for block in shared.blocks(owner):
        add_block(shared, block, owner, q, [rows_of(t, block.columns) for t in keys], out, lse)


def add_block(  # noqa: PLR0913 - one argument per tensor
    shared: SharedAttention,
    block: Block,
    owner: int,
    q: Tensor,
    keys: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
) -> None:
    """One block of ``add_blocks``; ``keys`` are those of the block alone."""
    k, v = keys
    ops.attention_accumulate(
        rows_of(q, block.rows),
        k,
        v,
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
    for block in shared.blocks(owner):
        of_block = (grads[0], *(rows_of(grad, block.columns) for grad in grads[1:]))
        keys_of_block = [rows_of(tensor, block.columns) for tensor in keys]
        add_gradients_of_block(shared, block, owner, keys_of_block, saved, dout, of_block)


def add_gradients_of_block(  # noqa: PLR0913 - one argument per tensor
    shared: SharedAttention,
    block: Block,
    owner: int,
    keys: Sequence[Tensor],
    saved: tuple[Tensor, Tensor, Tensor],
    dout: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """One block of ``add_block_gradients``; ``keys``, dk and dv are those of the block alone."""
    (dq, dk, dv), (k, v) = grads, keys
    q, out, lse = (rows_of(tensor, block.rows) for tensor in saved)
    ops.attention_backward_accumulate(
        q,
        k,
        v,
        out,
        lse,
        rows_of(dout, block.rows),
        (rows_of(dq, block.rows), dk, dv),
        shared.call(block, owner),
        shared.mask_of(block, owner),
    )


def begin_result(q: Tensor, v: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Result and log-sum-exp before any key was seen: fp32 zeros, and the sinks or -infinity."""
    s, b, n, _ = q.shape
    lse = memory.full((s, b, n), -math.inf)
    if sinks is not None:
        logits = stored(sinks, lse)
        memory.copy_(lse, mint.broadcast_to(logits, (s, b, n)))
    return memory.zeros((s, b, n * v.shape[3])), lse


def sinks_gradient(out: Tensor, dout: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor | None:
    """Gradient of the sinks by this rank's queries, None without sinks."""
    return None if sinks is None else ops.attention_sinks_grad(out, dout, lse, sinks)


def stored(tensor: Tensor, like: Tensor) -> Tensor:
    """An fp32 tensor in the storage type of another one."""
    if tensor.dtype == like.dtype:
        return tensor
    result = memory.empty(tensor.shape, like.dtype)
    ops.copy_cast_(result, tensor)
    return result
