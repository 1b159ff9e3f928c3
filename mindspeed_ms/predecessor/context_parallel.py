# SPDX-License-Identifier: Apache-2.0
"""The predecessor's attention cells over shared sequences, and how its scripts cut batches.

Legend: s tokens of a rank, S of the whole sequence, b batch, n heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.core.context_parallel.blocks import SharedAttention
from mindspeed_ms.core.context_parallel.ring import ring_attention
from mindspeed_ms.core.tensor_parallel.random import get_rng_tracker
from mindspeed_ms.ops import AttentionCall, ScorePlaces
from mindspeed_ms.plan.sequence_slices import ContextParallelAlgo, positions_on_cp_rank

Layout = Literal["SBH", "BSH", "BNSD", "BSND", "SBND"]
_BATCH_AND_SEQUENCE = {"SBH": (1, 0), "BSH": (0, 1), "BNSD": (0, 2), "BSND": (0, 1), "SBND": (1, 0)}
_TO_SBND = {"BNSD": (2, 0, 1, 3), "BSND": (1, 0, 2, 3), "SBND": (0, 1, 2, 3)}
_FROM_SBND = {"BNSD": (1, 2, 0, 3), "BSND": (1, 0, 2, 3), "SBND": (0, 1, 2, 3)}
_FAR = 65535
"""From here on a number of tokens means all."""


class RingAttention(Cell):
    """Attention whose keys and values travel round the context parallel ranks.

    Causal when ``next_tokens`` is 0 and no mask is given: then every rank holds the two chunks of
    ``get_sp_chuncks``. With a mask, or without either, ranks hold consecutive stretches
    (``get_sp_chuncks_general``).

    Args:
        head_num: query heads of this rank.
        pre_tokens: earlier tokens that a query sees; from 65535 on all.
        next_tokens: later ones.
        keep_prob: share of the weights that dropout keeps.
        input_layout: SBH, BSH, BNSD, BSND or SBND.
        scale_value: factor on the scores, None for 1 / sqrt(d).
        sparse_mode: only 0.
        unused: accepted for the signature.

    Shapes:
        query, key, value in the layout, s tokens each; mask [.., s, S], not 0 = hidden.

    Raises:
        ValueError: an unknown layout, or a band or mode that does not exist here.

    Parallelism: collective over the ring.
    """

    shuffles = True
    """Whether causal ranks hold two chunks."""

    def __init__(  # noqa: PLR0913 - the predecessor's public signature
        self,
        head_num: int,
        pre_tokens: int = _FAR,
        next_tokens: int = 0,
        keep_prob: float = 1.0,
        input_layout: Layout = "SBH",
        scale_value: float | None = None,
        sparse_mode: int = 0,
        **unused: Any,
    ) -> None:
        super().__init__()
        if input_layout not in get_args(Layout):
            raise ValueError(
                f"input_layout is {input_layout!r}; it must be one of {', '.join(get_args(Layout))}"
            )
        if pre_tokens < _FAR or 0 < next_tokens < _FAR or next_tokens < 0 or sparse_mode:
            raise ValueError(
                f"pre_tokens={pre_tokens}, next_tokens={next_tokens}, sparse_mode={sparse_mode}: "
                "a ring is causal (next_tokens=0) or sees everything (65535); a band goes into "
                "the model's window_size"
            )
        self.head_num, self.input_layout = head_num, input_layout
        self.is_causal = next_tokens == 0
        self.drop, self.scale = 1.0 - keep_prob, scale_value
        _, self.ring = parallel_state.get_hierarchical_context_parallel_groups()

    def construct(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        alibi_mask: Tensor | None = None,
        prefix: Tensor | None = None,
        padding_mask: Tensor | None = None,
        *unused: Any,
    ) -> Tensor:
        """Attention of this rank's queries to all keys, in the layout of the query."""
        for name, given in (
            ("alibi_mask", alibi_mask),
            ("prefix", prefix),
            ("padding_mask", padding_mask),
        ):
            if given is not None:
                raise ValueError(f"{name} is given; a ring knows attn_mask only: pass None")
        q = self._to_sbnd(query, self.head_num)
        groups = key.shape[-1] // q.shape[3] if len(key.shape) == 3 else 0
        k, v = self._to_sbnd(key, groups), self._to_sbnd(value, groups)
        out = self._attend(q, k, v, attn_mask)  # [s, b, n * d]
        return self._from_sbnd(out, v.shape[3])

    def _to_sbnd(self, tensor: Tensor, heads: int) -> Tensor:
        if self.input_layout in _TO_SBND:
            return _permuted(tensor, _TO_SBND[self.input_layout])
        if self.input_layout == "BSH":
            tensor = _permuted(tensor, (1, 0, 2))
        s, b, h = tensor.shape
        return tensor.reshape((s, b, heads, h // heads))

    def _from_sbnd(self, out: Tensor, channels: int) -> Tensor:
        if self.input_layout == "SBH":
            return out
        if self.input_layout == "BSH":
            return _permuted(out, (1, 0, 2))
        s, b, h = out.shape
        return _permuted(
            out.reshape((s, b, h // channels, channels)), _FROM_SBND[self.input_layout]
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        s, batch, heads, d = q.shape
        length = s * self.ring.size
        causal = self.is_causal and mask is None
        generator, drop = None, self.drop if self.training else 0.0
        if drop:
            generator = get_rng_tracker().current()
        call = AttentionCall(
            scale=self.scale or d**-0.5,
            causal=causal,
            dropout=ops.draw_dropout(
                drop,
                generator,
                (batch, heads, length, length),
                ScorePlaces(heads, 0, length, length),
            ),
        )
        hidden = None if mask is None else _as_hidden(mask)
        if causal and not self.shuffles and self.ring.size > 1:
            own = self._places(length, self.ring.rank, causal)
            hidden, call = (
                (np.arange(length) > own[:, None])[None, None],
                replace(call, causal=False),
            )
        if self.ring.size == 1:
            tensor = None if hidden is None else memory.from_numpy(hidden)
            return ops.attend(q, k, v, tensor, None, call)
        shared = SharedAttention(
            rank=self.ring.rank,
            places=tuple(self._places(length, rank, causal) for rank in range(self.ring.size)),
            options=call,
            mask=hidden,
        )
        return ring_attention(q, k, v, None, shared, self.ring)

    def _places(self, length: int, rank: int, causal: bool) -> NDArray[np.int64]:
        if causal and self.shuffles:
            return positions_on_cp_rank(length, self.ring.size, rank)
        share = length // self.ring.size
        return np.arange(rank * share, (rank + 1) * share)


class FlashSP(RingAttention):
    """The same over consecutive stretches of the sequence, causal as well.

    Args:
        head_num: query heads of this rank.
        keep_prob: share of the weights that dropout keeps.
        scale_value: factor on the scores, None for 1 / sqrt(d).
        pre_tokens: as in ``RingAttention``.
        next_tokens: as in ``RingAttention``.
        input_layout: as in ``RingAttention``.
        sparse_mode: only 0.
        unused: accepted for the signature (dp, mp, sp).
    """

    shuffles = False

    def __init__(
        self,
        head_num: int,
        keep_prob: float = 1.0,
        scale_value: float | None = None,
        pre_tokens: int = _FAR,
        next_tokens: int = 0,
        input_layout: Layout = "BSH",
        sparse_mode: int = 0,
        **unused: Any,
    ) -> None:
        super().__init__(
            head_num,
            pre_tokens,
            next_tokens,
            keep_prob,
            input_layout,
            scale_value,
            sparse_mode,
        )


class UlyssesContextAttention(Cell):
    """Lets an attention see whole sequences of a part of the heads.

    Args:
        local_attention: (query, key, value, ...) -> output.
        sequence_process_group: the ranks, from ``get_context_parallel_group``.
        scatter_idx: dimension of the heads.
        gather_idx: dimension of the sequence.

    Parallelism: collective over the group, in forward and in backward.

    Source: Jacobs et al., 2023 (DeepSpeed Ulysses).
    """

    def __init__(
        self,
        local_attention: Cell,
        sequence_process_group: Group | None = None,
        scatter_idx: int = 2,
        gather_idx: int = 0,
    ) -> None:
        super().__init__()
        group = sequence_process_group or parallel_state.get_context_parallel_group()
        if not isinstance(group, Group):
            raise ValueError(
                f"sequence_process_group is {group!r}; give a group of parallel_state, such as "
                "get_context_parallel_group()"
            )
        self.local_attn, self.group = local_attention, group
        self.scatter_idx, self.gather_idx = scatter_idx, gather_idx

    def construct(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Shapes: as the attention's, with s tokens and all heads, in and out."""
        q, k, v = (
            _AllToAll.apply(tensor, self.group, self.scatter_idx, self.gather_idx)
            for tensor in (query, key, value)
        )
        out = self.local_attn(q, k, v, *args, **kwargs)
        return _AllToAll.apply(out, self.group, self.gather_idx, self.scatter_idx)


def exchanged_dims(tensor: Tensor, group: Group, scatter: int, gather: int) -> Tensor:
    """Cut one dimension into a part per rank, join the ranks' parts along another; on the tape."""
    return _AllToAll.apply(tensor, group, scatter, gather)


class _AllToAll(autograd.Function):
    """Cut one dimension into a part per rank, join the ranks' parts along another."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group, scatter: int, gather: int) -> Tensor:
        ctx.way = group, gather, scatter
        return _exchanged(tensor, group, scatter, gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _exchanged(grad, *ctx.way), None, None, None


def _exchanged(tensor: Tensor, group: Group, scatter: int, gather: int) -> Tensor:
    if group.size == 1:
        return memory.contiguous(tensor).view(tuple(tensor.shape))
    shape, count = list(tensor.shape), group.size
    if shape[scatter] % count:
        raise ValueError(
            f"dimension {scatter} of shape {tuple(shape)} does not divide by the {count} ranks of "
            "the group"
        )
    shape[scatter] //= count
    cut = memory.contiguous(tensor).view((*shape[:scatter], count, *shape[scatter:]))
    others = [dim for dim in range(len(shape) + 1) if dim != scatter]
    sent = memory.permuted(cut, (scatter, *others))  # [ranks, ...]
    received = memory.empty(tuple(sent.shape), sent.dtype)
    comm.all_to_all_single(received, sent, group=group)
    order = list(range(1, len(shape) + 1))
    order.insert(gather, 0)
    joined = memory.permuted(received, tuple(order))
    shape[gather] *= count
    return joined.view(tuple(shape))


def _permuted(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The dimensions in another order, contiguous; on the tape."""
    return tensor if dims == tuple(range(len(dims))) else tensor.transpose(dims).contiguous()


def _as_hidden(mask: Tensor) -> NDArray[np.bool_]:
    """[s, S], [b, s, S] or [b, 1, s, S] of any type, not 0 = hidden -> bool [b or 1, 1, s, S]."""
    hidden = np.ascontiguousarray(mask.asnumpy() != 0)
    if hidden.ndim == 2:
        return hidden[None, None]
    return hidden[:, None] if hidden.ndim == 3 else hidden


# --- batches --------------------------------------------------------------------------------------


def get_sp_chuncks(
    batch: Tensor,
    input_layout: Layout = "SBH",
    enable_dp_shard: bool = True,
    enable_flash_sp: bool = False,
) -> Tensor:
    """This rank's two chunks of a sequence for causal ``RingAttention``.

    Args:
        batch: whole sequences, in the layout.
        input_layout: where batch and sequence are.
        enable_dp_shard: take this data parallel rank's part of the batch as well.
        enable_flash_sp: one stretch, for ``FlashSP``.
    """
    if enable_flash_sp:
        return get_sp_chuncks_general(batch, input_layout, enable_dp_shard)
    _, dim = _BATCH_AND_SEQUENCE[input_layout]
    ring = parallel_state.get_context_parallel_group()
    places = positions_on_cp_rank(batch.shape[dim], ring.size, ring.rank)
    return _of_dp_rank(_taken(batch, places, dim), input_layout, enable_dp_shard)


def get_sp_chuncks_general(
    batch: Tensor, input_layout: Layout = "SBH", enable_dp_shard: bool = True
) -> Tensor:
    """This rank's stretch of a sequence; arguments as in ``get_sp_chuncks``."""
    _, dim = _BATCH_AND_SEQUENCE[input_layout]
    return _of_dp_rank(_stretch(batch, dim), input_layout, enable_dp_shard)


def get_sp_chuncks_attn_mask_general(attn_mask: Tensor) -> Tensor:
    """The rows of a mask [..., S, S] of this rank's stretch."""
    return _stretch(attn_mask, len(attn_mask.shape) - 2)


def _stretch(tensor: Tensor, dim: int) -> Tensor:
    group = parallel_state.get_context_parallel_group()
    return _taken(tensor, _part(tensor.shape[dim], group), dim)


def _part(length: int, group: Group) -> NDArray[np.int64]:
    share, rest = divmod(length, group.size)
    if rest:
        raise ValueError(f"{length} does not divide by the {group.size} ranks of the group")
    return np.arange(group.rank * share, (group.rank + 1) * share)


def _of_dp_rank(tensor: Tensor, layout: Layout, is_cut: bool) -> Tensor:
    group = parallel_state.get_data_parallel_group()
    if not is_cut or group.size == 1:
        return tensor
    dim, _ = _BATCH_AND_SEQUENCE[layout]
    return _taken(tensor, _part(tensor.shape[dim], group), dim)


def _taken(tensor: Tensor, places: NDArray[np.int64], dim: int) -> Tensor:
    values = memory.as_numpy(memory.contiguous(tensor))
    return memory.from_numpy(np.ascontiguousarray(np.take(values, places, axis=dim))).astype(
        tensor.dtype
    )


def get_batch_on_this_cp_rank(batch: Mapping[str, Any]) -> dict[str, Any]:
    """This rank's part of every sequence, as ``context_parallel_algo`` of the arguments cuts it.

    Args:
        batch: arrays or tensors [b, S, ...] by name; ``attention_mask`` [..., S, S] stays whole
            where heads are exchanged, else its rows are cut. None stays None.

    Returns:
        A dict like the one given.
    """
    group = parallel_state.get_context_parallel_group()
    if group.size == 1:
        return dict(batch)
    algo, degree = chosen_algorithm()
    parts: dict[str, Any] = {}
    for name, value in batch.items():
        if value is None:
            parts[name] = None
            continue
        array = value.asnumpy() if isinstance(value, Tensor) else np.asarray(value)
        if name != "attention_mask":
            places = positions_on_cp_rank(array.shape[1], group.size, group.rank, algo, degree)
            part = np.take(array, places, axis=1)
        else:
            part = _rows_of_mask(array, algo, degree)
        parts[name] = Tensor(np.ascontiguousarray(part)) if isinstance(value, Tensor) else part
    return parts


def _rows_of_mask(mask: NDArray, algo: ContextParallelAlgo, degree: int | None) -> NDArray:
    """The rows of the queries whose attention is computed here."""
    group = parallel_state.get_context_parallel_group()
    heads = {"ulysses_cp_algo": group.size, "hybrid_cp_algo": degree or 1}.get(algo, 1)
    ring = group.size // heads
    if ring == 1:
        return mask
    places = positions_on_cp_rank(mask.shape[-1], ring, group.rank // heads)
    return np.take(mask, places, axis=-2)


def chosen_algorithm() -> tuple[ContextParallelAlgo, int | None]:
    """The algorithm and the ulysses degree of what ``set_global_args`` was given."""
    args = run_state.current().args
    args = getattr(args, "parallel_config", None) or args
    algo: ContextParallelAlgo = getattr(args, "context_parallel_algo", None) or "ulysses_cp_algo"
    return algo, getattr(args, "ulysses_degree_in_cp", None)
