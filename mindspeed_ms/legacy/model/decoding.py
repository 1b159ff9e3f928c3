# SPDX-License-Identifier: Apache-2.0
"""The Cells of a pipeline stage as one native call for new tokens.

Tensor parallel ranks are on one host, and sum what they share out in memory that they share, too.
The native stack knows what most families are made of; see ``NativeParts``. A model with anything
else goes on in its Cells; ``InferenceEngine`` compares both once per model, so that a part that
this file does not know of cannot change a text.

Legend: n new tokens of a call, h hidden size, v vocabulary, d rotated channels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.config.attention_options import AttentionOptions
from mindspeed_ms.config.layer_options import LayerOptions
from mindspeed_ms.config.section import field_default, section_fields
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.inference.kv_cache import KVCache
from mindspeed_ms.legacy.model.native_parts import (
    Floats,
    NativeParts,
    UnknownPartError,
    in_fp32,
    widened,
)
from mindspeed_ms.models.width import logits_divisor
from mindspeed_ms.ops.attention_call import Places
from mindspeed_ms.ops.cpu import decode, ranks
from mindspeed_ms.ops.cpu.library import STORAGE
from mindspeed_ms.ops.cpu.linear import FEW_ROWS
from mindspeed_ms.ops.cpu.ranks import Ranks

_KNOWN = {
    *("rope_scaling", "use_rope_scaling", "rope_scaling_factor"),  # rotation is in the tables
    "rotary_seq_len_interpolation_factor",
    *("embed_layernorm", "embed_layernorm_epsilon", "embedding_multiplier"),
    *("head_has_bias", "logits_scaling", "final_logit_softcapping"),
    *("residual_multiplier", "use_parallel_residual", "shares_input_norm"),
    *("use_pre_norm", "norm_has_bias", "qk_layernorm_full", "qk_layernorm_per_head"),
    *("clip_qkv", "position_embedding_offset"),
    *("activation_func_clamp_value", "glu_linear_offset"),
}
"""Options of layers that the native stack has."""

MOST_TOKENS = 512
"""New tokens of a native call: what lies between the layers has memory for so many."""


class Decoder:
    """The native form of a model, or of a pipeline stage.

    Weights are read where they are; vectors (norms, biases) are copied, so a model that trained on
    needs a new one.

    Args:
        language_model: embedding, layers, final norm.
        layers: the layers.
        head: matrix of the head, and what it adds; None: it is not here, nor is the final norm.
        config: the model's configuration.
        in_int8: keep copies of the weights of linear layers as eight bits, with a factor per row.

    Raises:
        UnknownPartError: the model has a part that the stack does not have, or its ranks cannot
            share memory, or are several and the weights are to be eight bits.
    """

    def __init__(
        self,
        language_model: Cell,
        layers: Sequence[Cell],
        head: tuple[Tensor, Tensor | None] | None,
        config: TransformerConfig,
        in_int8: bool = False,
    ) -> None:
        self.rotary = language_model.rotary_pos_emb
        if language_model.pre_process:
            self.embedding = language_model.embedding
        self.dtype = memory.dtype_of(config.compute_dtype)
        self.group = layers[0].attention.out_proj.plan.group
        if in_int8 and self.group.size > 1:
            raise UnknownPartError("weights as eight bits of several ranks")
        self.parts = parts = NativeParts(self.dtype, in_int8, self.group)
        self.numbers = [layer.attention.core_attention.layer_number for layer in layers]
        self.stack = parts.stack(layers, config)
        self.layers = (decode.Layer * len(layers))(*map(parts.layer, layers))
        self.turned = [parts.turns(layer.attention) for layer in layers]
        self.final_norm = language_model.encoder.final_norm
        self.norm = parts.norm(self.final_norm)
        self.head = None if head is None else parts.linear(*head, head[0].dtype)
        self.head_storage = 0 if head is None else STORAGE[head[0].dtype]
        self.divisor, self.cap = logits_divisor(config), config.final_logit_softcapping
        stack = self.stack
        stores = 1 if self.layers[0].latent else 2  # narrow vectors are keys and values in one
        self._like = (memory.empty((1, 1, stack.groups, stack.dim), self.dtype),) * stores
        self._seen: tuple[KVCache | None, int] = (None, 0)
        self._tables: tuple[Floats, ...] = ()
        self._clock: AbstractContextManager[object] = nullcontext()
        self.ranks: Ranks | None = None
        if self.group.size > 1:  # last: all ranks have come to it, or none
            self._share_memory()

    def _share_memory(self) -> None:
        """Make memory that the ranks sum in.

        Raises:
            UnknownPartError: they cannot share any.
        """
        group = self.group
        self._shared = comm.shared_memory(ranks.num_bytes(group.size), group)
        if self._shared is None:
            raise UnknownPartError("ranks without shared memory")
        self._clock = self._shared.clock
        self.ranks = ranks.ranks_of(self._shared.bytes, group.rank, group.size)
        self.stack.ranks = ctypes.addressof(self.ranks)

    def __call__(self, context: InferenceContext, x: Floats | None = None) -> Floats:
        """Logits of the places that the context wants, [S * B, v] or [B, v].

        The cache holds the keys of all new tokens then. What is padding stays out, and has zeros.

        Args:
            context: the new tokens.
            x: [n, h], what the stage before returned, changed in place; None: this is the first.

        Returns:
            The logits; of a stage without the head the hidden states [n, h].
        """
        steps, rows = context.shape
        # The tokens of a row follow one another: [n] numbers of places, which are step * B + row.
        numbers = np.arange(steps * rows).reshape(steps, rows).T[context.is_real.T]
        with self._clock:
            self._find_memory(context)
            if x is None:
                x = self._embedded(context.ids[0, numbers], context.positions[numbers])
            for first in range(0, len(numbers), MOST_TOKENS):
                part = slice(first, first + MOST_TOKENS)
                self._through_layers(context, numbers[part], x[part])
            return x if self.head is None else self._logits(self.head, context, numbers, x)

    def _logits(
        self, head: decode.Linear, context: InferenceContext, numbers: Places, x: Floats
    ) -> Floats:
        steps, rows = context.shape
        if context.keeps_hidden:
            hidden = _spread(x, numbers, steps * rows)[:, None]
            context.hidden = self.final_norm(ops.cast(memory.from_numpy(hidden), self.dtype))
        wanted = x if context.wants_all else x[np.cumsum(context.counts) - 1]
        logits = decode.decode_head(
            np.ascontiguousarray(wanted), self.norm, head, self.head_storage
        )
        if self.divisor != 1.0:
            logits *= np.float32(1.0 / self.divisor)
        if self.cap is not None:
            logits = np.tanh(logits / np.float32(self.cap)) * np.float32(self.cap)
        if self.ranks is not None:  # each has a part of the vocabulary
            parts = ranks.gathered(self.ranks, logits)
            logits = parts.swapaxes(0, 1).reshape(len(logits), -1)
        return _spread(logits, numbers, steps * rows) if context.wants_all else logits

    def _through_layers(self, context: InferenceContext, numbers: Places, x: Floats) -> None:
        """Take hidden states [n, h] through all layers; numbers [n] are of the tokens' places.

        The stack takes several tokens of a sequence for rows that share its slot: each writes its
        key first, and sees those up to its own place.
        """
        owners = numbers % len(context.slots)
        slots, places = context.slots[owners], context.positions[numbers]
        first, stops = np.zeros_like(places), places + 1
        counts = np.bincount(owners)[np.unique(owners)]
        stack, count = self.stack, len(places)
        stack.rows, stack.slots = count, slots.ctypes.data
        stack.starts, stack.stops = first.ctypes.data, stops.ctypes.data
        stack.offsets = places.ctypes.data
        # Few queries read the keys straight from memory; more are worth packing them for.
        is_prompt = count > FEW_ROWS and count > len(counts)
        stack.counts, stack.sequences = (counts.ctypes.data if is_prompt else None), len(counts)
        tables = self._rows_of_tables(places, context.lengths[numbers])
        for layer, turned in zip(self.layers, self.turned, strict=True):
            if tables and turned is not None:
                layer.cos, layer.sin = (table.ctypes.data for table in tables[turned])
        decode.decode_layers(x, self.layers, stack)

    def _rows_of_tables(self, places: Places, lengths: Places) -> list[Floats]:
        """Cosines and sines of each token, [n, d]."""
        if self.rotary is not None and self.rotary.goes_by_length:
            return _flat_tables(self.rotary.tables_for(places, lengths))
        return [np.take(table, places, axis=0) for table in self._tables]

    def _find_memory(self, context: InferenceContext) -> None:
        """Addresses of the cache, and tables of rotation as long as it."""
        cache, stack = context.cache, self.stack
        if cache is self._seen[0]:
            cache.grow()
            if cache.version == self._seen[1]:
                return
        for layer, number in zip(self.layers, self.numbers, strict=True):
            stores = cache.memory_of(number, *self._like)
            layer.keys, layer.values = stores[0].data_ptr(), stores[-1].data_ptr()
        stack.room = cache.room
        if self.rotary is not None:
            self._tables = tuple(_flat_tables(self.rotary.tables_for(np.arange(cache.room))))
            stack.rotated = self._tables[0].shape[1]
        self._seen = (cache, cache.version)

    def _embedded(self, ids: NDArray[np.integer], places: Places) -> Floats:
        """Sums of tables' rows, [n, h]."""
        table = self.embedding.word_embeddings
        if self.ranks is None:
            x = _rows(table.weight, ids)
        else:
            first, end = table.vocab_start_index, table.vocab_end_index
            x = _rows(table.weight, np.clip(ids, first, end - 1) - first)
            x[(ids < first) | (ids >= end)] = 0.0
            ranks.sum_over(self.ranks, x)
        if self.embedding.position_embeddings is not None:
            table = self.embedding.position_embeddings
            x += _rows(table.weight, places + table.offset)
        if self.embedding.norm is not None:
            hidden = ops.cast(memory.from_numpy(x[:, None]), self.dtype)
            x = in_fp32(self.embedding.norm(hidden)).reshape(x.shape)
        if self.embedding.multiplier != 1.0:
            x *= np.float32(self.embedding.multiplier)
        return x


def decoder_of(model: Cell, in_int8: bool = False) -> Decoder | None:
    """The native form of a model; None if it has none.

    Args:
        model: a ``GPTModel``, or a stage of one; its tensor parallel ranks call alike.
        in_int8: see ``Decoder``.
    """
    if ops.selected() != "cpu":
        return None
    language_model = model.language_model
    layers = list(language_model.encoder.layers)
    if not layers or not _is_plain(model.config):
        return None
    try:
        head = (model.head_weights(), model.head_bias()) if model.post_process else None
        return Decoder(language_model, layers, head, model.config, in_int8)
    except (UnknownPartError, AttributeError):
        return None


def _is_plain(config: TransformerConfig) -> bool:
    """Whether a model has none of the options of layers and adapters, which the stack lacks."""
    options = (item.name for item in section_fields(LayerOptions))
    known = _KNOWN | {item.name for item in section_fields(AttentionOptions)}
    is_usual = all(
        getattr(config, name) == field_default(TransformerConfig, name)
        for name in options
        # Layers for further tokens have no part in a step.
        if name not in known and not name.startswith("mtp_")
    )
    return is_usual and not config.lora_config.use_lora


def _flat_tables(tables: Sequence[Tensor]) -> list[Floats]:
    """[s, 1, 1, d] -> [s, d]."""
    return [np.ascontiguousarray(memory.as_numpy(table)[:, 0, 0]) for table in tables]


def _spread(values: Floats, numbers: Places, count: int) -> Floats:
    """Rows [n, c] at their places of all, [count, c]; zeros at the others."""
    whole = np.zeros((count, values.shape[1]), np.float32)
    whole[numbers] = values
    return whole


def _rows(table: Tensor, ids: NDArray[np.integer]) -> Floats:
    """Rows of a table, [..., h]."""
    return widened(memory.as_numpy(table)[ids])
