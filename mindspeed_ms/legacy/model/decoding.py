# SPDX-License-Identifier: Apache-2.0
"""A model's Cells as one native call per token, where a single rank holds the model.

The native stack knows what most families are made of; see ``NativeParts``. A model with anything
else goes on in its Cells; ``InferenceEngine`` compares both once per model, so that a part that
this file does not know of cannot change a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.config.attention_options import AttentionOptions
from mindspeed_ms.config.layer_options import LayerOptions
from mindspeed_ms.config.section import field_default, section_fields
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.legacy.model.native_parts import (
    Floats,
    NativeParts,
    UnknownPartError,
    widened,
)
from mindspeed_ms.ops.attention_call import Places
from mindspeed_ms.ops.cpu import decode
from mindspeed_ms.ops.cpu.library import STORAGE


class Decoder:
    """The native form of a model.

    Weights are read where they are; vectors (norms, biases) are copied, so a model that trained on
    needs a new one.

    Args:
        language_model: embedding, layers, final norm.
        layers: the layers.
        head: matrix of the head.
        config: the model's configuration.
        in_int8: keep copies of the weights of linear layers as eight bits, with a factor per row.

    Raises:
        UnknownPartError: the model has a part that the stack does not have.
    """

    def __init__(
        self,
        language_model: Cell,
        layers: Sequence[Cell],
        head: Tensor,
        config: TransformerConfig,
        in_int8: bool = False,
    ) -> None:
        self.rotary = language_model.rotary_pos_emb
        self.embedding = language_model.embedding
        self.dtype = memory.dtype_of(config.compute_dtype)
        self.parts = parts = NativeParts(self.dtype, in_int8)
        self.numbers = [layer.attention.core_attention.layer_number for layer in layers]
        self.stack = parts.stack(layers, config)
        self.layers = (decode.Layer * len(layers))(*map(parts.layer, layers))
        self.turned = [parts.turns(layer.attention) for layer in layers]
        self.final_norm = language_model.encoder.final_norm
        self.norm = parts.norm(self.final_norm)
        self.head = parts.linear(head, None, head.dtype)
        self.head_storage = STORAGE[head.dtype]
        self._version = -1
        self._tables: tuple[Floats, ...] = ()

    def __call__(self, context: InferenceContext) -> Floats:
        """Logits [S * B, v] behind the new tokens; the cache holds their keys then.

        The stack takes several tokens of a sequence for rows that share its slot: each writes its
        key first, and sees those up to its own place. What is padding stays out, and has zeros.
        """
        cache, (steps, rows) = context.cache, context.shape
        cache.grow()
        if cache.version != self._version:
            self._take_memory(context)
        real = context.is_real
        slots = np.broadcast_to(context.slots, real.shape)[real]
        places = context.positions[: steps * rows].reshape(real.shape)[real]
        first, stops = np.zeros_like(places), places + 1
        stack = self.stack
        stack.rows, stack.slots = len(places), slots.ctypes.data
        stack.starts, stack.stops = first.ctypes.data, stops.ctypes.data
        stack.offsets = places.ctypes.data
        tables = self._rows_of_tables(
            places, context.lengths[: steps * rows].reshape(real.shape)[real]
        )
        for layer, turned in zip(self.layers, self.turned, strict=True):
            if tables and turned is not None:
                layer.cos, layer.sin = (table.ctypes.data for table in tables[turned])
        x = self._embedded(context.ids[0, : steps * rows].reshape(real.shape)[real], places)
        decode.decode_layers(x, self.layers, stack)
        if context.keeps_hidden:
            hidden = ops.cast(memory.from_numpy(_spread(x, real)[:, None]), self.dtype)
            context.hidden = self.final_norm(hidden)
        logits = decode.decode_head(x, self.norm, self.head, self.head_storage)
        return _spread(logits, real)

    def _rows_of_tables(self, places: Places, lengths: Places) -> list[Floats]:
        """Cosines and sines of each token, [n, d]."""
        if self.rotary is not None and self.rotary.goes_by_length:
            return _flat_tables(self.rotary.tables_for(places, lengths))
        return [np.take(table, places, axis=0) for table in self._tables]

    def _take_memory(self, context: InferenceContext) -> None:
        """Addresses of the cache, and tables of rotation as long as it."""
        cache = context.cache
        for layer, number in zip(self.layers, self.numbers, strict=True):
            keys, values = cache.stores(number)
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        self.stack.room = cache.room
        if self.rotary is not None:
            self._tables = tuple(_flat_tables(self.rotary.tables_for(np.arange(cache.room))))
            self.stack.rotated = self._tables[0].shape[1]
        self._version = cache.version

    def _embedded(self, ids: NDArray[np.integer], places: Places) -> Floats:
        """Sums of tables' rows, [n, h]."""
        x = _rows(self.embedding.word_embeddings.weight, ids)
        if self.embedding.position_embeddings is not None:
            x += _rows(self.embedding.position_embeddings.weight, places)
        return x


def decoder_of(model: Cell, in_int8: bool = False) -> Decoder | None:
    """The native form of a model; None if it has none.

    Args:
        model: a ``GPTModel`` on a single rank.
        in_int8: see ``Decoder``.
    """
    if ops.selected() != "cpu" or not (model.pre_process and model.post_process):
        return None
    language_model = model.language_model
    layers = list(language_model.encoder.layers)
    plan = model.parallel_lm_logits.plan
    if not layers or plan.group.size > 1 or not _is_plain(model.config):
        return None
    try:
        return Decoder(language_model, layers, model.head_weights(), model.config, in_int8)
    except (UnknownPartError, AttributeError):
        return None


def _is_plain(config: TransformerConfig) -> bool:
    """Whether a model has none of the options of layers and adapters, which the stack lacks."""
    options = (item.name for item in section_fields(LayerOptions))
    known = {item.name for item in section_fields(AttentionOptions)}
    is_usual = all(
        getattr(config, name) == field_default(TransformerConfig, name)
        for name in options
        # Rotation is in the tables; layers for further tokens have no part in a step.
        if name not in (*known, "rope_scaling") and not name.startswith("mtp_")
    )
    return is_usual and not config.lora_config.use_lora


def _flat_tables(tables: Sequence[Tensor]) -> list[Floats]:
    """[s, 1, 1, d] -> [s, d]."""
    return [np.ascontiguousarray(memory.as_numpy(table)[:, 0, 0]) for table in tables]


def _spread(values: Floats, real: NDArray[np.bool_]) -> Floats:
    """Rows [n, c] at the n places that are real, of all; zeros at the others."""
    if len(values) == real.size:
        return values
    whole = np.zeros((real.size, values.shape[1]), np.float32)
    whole[real.reshape(-1)] = values
    return whole


def _rows(table: Tensor, ids: NDArray[np.integer]) -> Floats:
    """Rows of a table, [..., h]."""
    return widened(memory.as_numpy(table)[ids])
